"""Which objects and views make up a batch: a pure function of (seed, step), whatever the ranks and threads.

Random words come from the Philox4x64 counter-based generator (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), keyed by (seed, epoch). Only its raw 64-bit words are used, whose stream NumPy keeps fixed; the
permutation and the draws made of them are defined here, so an order does not change with a NumPy release.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, Required, TypedDict

import numpy as np

from ssl_equi.data.bad_records import OnBadRecord
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.view_counts import ViewsOfEach, of_objects

_PERMUTATION_STREAM = 0
_VIEW_STREAM = 1
_WORDS_AT_ONCE = 1 << 20
_OBJECTS_PER_DRAW = 1024  # a draw for few objects costs as much as one for hundreds
_MOST_PASSES = 16

# Philox4x64-10
_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # the golden ratio and sqrt(3) - 1, as 64-bit fractions
_WORDS_PER_COUNTER = 4
_HALF_BITS = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


def epoch_permutation(num_objects: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the objects in an epoch, [n]: objects sorted by one random word each.

    int32 where that holds every object, else int64. The words are sorted in passes, each over one range of their
    values, and made anew for each: so beside the result, few of many millions of them are in memory at a time.
    """
    passes = min(_MOST_PASSES, 1 << (num_objects // _WORDS_AT_ONCE).bit_length())
    range_bits = np.uint64(64 - (passes - 1).bit_length())
    permutation = np.empty(num_objects, dtype=np.int32 if num_objects < 2**31 else np.int64)
    filled = 0
    for number in range(passes):
        parts = [np.empty((2, 0), dtype=np.uint64)]
        generator = _philox(seed, epoch, _PERMUTATION_STREAM)
        for first in range(0, num_objects, _WORDS_AT_ONCE):
            words = generator.random_raw(min(_WORDS_AT_ONCE, num_objects - first))
            found = np.arange(len(words)) if passes == 1 else np.flatnonzero(words >> range_bits == np.uint64(number))
            parts.append(np.stack([words[found], (found + first).astype(np.uint64)]))
        words, objects = np.concatenate(parts, axis=1)
        permutation[filled : filled + len(words)] = objects[np.argsort(words, kind="stable")]
        filled += len(words)
    return permutation


def epoch_views(num_objects: int, num_views: ViewsOfEach, views: int, seed: int, epoch: int) -> np.ndarray:
    """`views` distinct views of every object in an epoch, int64 [n, views], uniform over ordered choices.

    Row i belongs to object i and depends on (seed, epoch, i) and the number of its views only.
    """
    _check_views(views, num_views)
    return distinct_views(random_words(num_objects * views, seed, epoch, _VIEW_STREAM), num_views, views)


def views_of_objects(objects: np.ndarray, num_views: ViewsOfEach, views: int, seed: int, epoch: int) -> np.ndarray:
    """The rows `objects` [b] of `epoch_views`, int64 [b, views], without the others: for few of many objects."""
    positions = objects.astype(np.int64)[:, None] * views + np.arange(views)
    words = words_at(positions, (seed, epoch), (0, 0, _VIEW_STREAM))
    return distinct_views(words, of_objects(num_views, objects), views)


def distinct_views(words: np.ndarray, num_views: ViewsOfEach, views: int) -> np.ndarray:
    """`views` distinct ones of each row's views, int64 [n, views], from uint64 random words [n * views]."""
    words = words.reshape(-1, views)
    own_views = np.asarray(num_views).astype(np.uint64)
    chosen = np.empty((len(words), 0), dtype=np.int64)
    for draw in range(views):
        # The draw is a rank among the views not chosen yet; stepping over the chosen ones in ascending order
        # turns the rank into a view. A remainder of a 64-bit word is uniform to within 2**-50.
        view = (words[:, draw] % (own_views - np.uint64(draw))).astype(np.int64)
        for earlier in np.sort(chosen, axis=1).T:
            view += view >= earlier
        chosen = np.column_stack([chosen, view])
    return chosen


def random_words(count: int, seed: int, epoch: int, stream: int, rank: int = 0) -> np.ndarray:
    """uint64 [count]; each purpose has a stream of its own, and each rank if the ranks shall differ."""
    return _philox(seed, epoch, stream, rank).random_raw(count)


def _philox(seed: int, epoch: int, stream: int, rank: int = 0) -> np.random.Philox:
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, rank, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


class BatchOptions(TypedDict, total=False):
    """What the loaders of all sources take.

    `on_bad_record="skip"` replaces an object with a view that can't be read by the next good one of the same rank's
    batch, logs it and counts it in `skipped`, and raises DataError once more than `max_skipped` different objects were
    bad. A shard that is gone always raises: going on would leave a hole in the data.
    """

    global_batch_size: Required[int]  # objects, over all ranks
    views: int  # distinct ones of each object; 2 if not given
    seed: Required[int]  # of order and views
    rank: int
    world_size: int
    keep_incomplete_batch: bool  # the objects left over in an epoch make a smaller batch, instead of being dropped
    on_bad_record: OnBadRecord  # "raise" if not given
    max_skipped: int  # 100 if not given


class Order(Protocol):
    """What a loader asks of an order: which objects and views this rank's batches hold."""

    @property
    def views(self) -> int:
        """Views of each object in a batch."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""

    @property
    def local_batch_size(self) -> int:
        """The most objects in this rank's slice of a batch; an incomplete batch has fewer."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Object indices int64 [b] and view indices int64 [b, views] of this rank at global step `step` >= 0."""


@dataclass(frozen=True, eq=False)  # draws are kept by order, and arrays have no hash
class BatchOrder:
    """The batches of one rank: global batch k of an epoch is perm[k*G : (k+1)*G], rank r has its contiguous slice.

    The objects left over at the end of an epoch, others in each, are dropped. With `keep_incomplete_batch` they are one
    more batch, of which each rank has equally many and at most world_size - 1 objects are dropped; but a single object
    makes no batch. Raises ValueError for sizes that do not fit.
    """

    num_objects: int
    num_views: ViewsOfEach
    global_batch_size: int  # G, over all ranks
    views: int
    seed: int
    rank: int = 0
    world_size: int = 1
    keep_incomplete_batch: bool = False

    @classmethod
    def of(cls, collection: ViewCollection, options: BatchOptions) -> "BatchOrder":
        """The order in which a loader with these options gives out a collection."""
        check_enough_views(collection, options)
        return cls(num_objects=collection.num_objects, num_views=collection.views_of_each, **sizes_of(options))

    def __post_init__(self) -> None:
        check_sizes(
            num_objects=self.num_objects, num_views=self.num_views, global_batch_size=self.global_batch_size,
            views=self.views, seed=self.seed, rank=self.rank, world_size=self.world_size,
        )  # fmt: skip

    @cached_property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return batches_in_epoch(self.num_objects, self.global_batch_size, self.world_size, self.keep_incomplete_batch)

    @property
    def local_batch_size(self) -> int:
        """The most objects in this rank's slice of a batch; an incomplete batch has fewer."""
        return self.global_batch_size // self.world_size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Object indices int64 [b] and view indices int64 [b, views] of this rank at global step `step` >= 0."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        draw, step_in_draw = divmod(step_in_epoch, self._steps_per_draw)
        object_indices, view_indices = _kept_draw(self, epoch, draw)
        rows = slice(step_in_draw * self.local_batch_size, (step_in_draw + 1) * self.local_batch_size)
        return object_indices[rows].copy(), view_indices[rows].copy()

    @property
    def _steps_per_draw(self) -> int:
        return -(-_OBJECTS_PER_DRAW // self.local_batch_size)

    def _draw(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Objects [n] and views [n, views] of some consecutive steps of an epoch, one step after the other."""
        first = number * self._steps_per_draw
        end = min(first + self._steps_per_draw, self.steps_per_epoch)
        permutation = _kept_permutation(self.num_objects, self.seed, epoch)
        object_indices = np.concatenate([permutation[self._slice(step)] for step in range(first, end)]).astype(np.int64)
        return object_indices, views_of_objects(object_indices, self.num_views, self.views, self.seed, epoch)

    def _slice(self, step_in_epoch: int) -> slice:
        """This rank's places in the permutation at a step, of which only an incomplete batch has fewer than others."""
        first = step_in_epoch * self.global_batch_size
        count = min(self.local_batch_size, (self.num_objects - first) // self.world_size)
        return slice(first + self.rank * count, first + (self.rank + 1) * count)


def sizes_of(options: BatchOptions) -> dict[str, Any]:
    """The options that an order takes."""
    names = ("global_batch_size", "seed", "rank", "world_size", "keep_incomplete_batch")
    return {"views": options.get("views", 2), **{name: options[name] for name in names if name in options}}  # type: ignore[literal-required]


def batches_in_epoch(num_objects: int, global_batch_size: int, world_size: int, keep_incomplete_batch: bool) -> int:
    """Whole batches in an epoch, and one more if what is left over is kept and gives at least 2 objects."""
    batches, left_over = divmod(num_objects, global_batch_size)
    shared_out = left_over - left_over % world_size
    return batches + int(keep_incomplete_batch and shared_out >= 2)  # batch norms need 2


def check_enough_views(collection: ViewCollection, options: BatchOptions) -> None:
    """Raise ValueError, which names the object, where objects have different numbers of views and one has too few."""
    views = options.get("views", 2)
    lacking = collection.lacking(views)
    if collection.view_counts is not None and lacking is not None:
        raise ValueError(
            f"cannot draw {views} distinct views of each object of split {collection.split!r}, since {lacking}: draw "
            f"{collection.fewest_views} or fewer, or leave such objects out"
        )


def check_sizes(
    *,
    num_objects: int,
    num_views: ViewsOfEach,
    global_batch_size: int,
    views: int,
    seed: int,
    rank: int,
    world_size: int,
) -> None:
    """Raise ValueError unless these sizes of an order fit each other."""
    if not 1 <= global_batch_size <= num_objects:
        raise ValueError(
            f"global batch size {global_batch_size} does not fit a split of {num_objects} objects: "
            f"choose a size from 1 to {num_objects}"
        )
    if global_batch_size % world_size:
        raise ValueError(
            f"global batch size {global_batch_size} is not divisible by {world_size} processes: "
            f"choose a multiple of {world_size}"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside 0..{world_size - 1}: give each process its own rank")
    _check_views(views, num_views)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} is outside 0..2**63 - 1: choose a non-negative seed")


def _check_views(views: int, num_views: ViewsOfEach) -> None:
    fewest = np.min(num_views)
    if not 1 <= views <= fewest:
        raise ValueError(f"cannot draw {views} distinct views of objects that have {fewest}: draw fewer views")


@lru_cache(maxsize=2)  # two epochs: the prefetch of one overlaps the end of the other
def _kept_permutation(num_objects: int, seed: int, epoch: int) -> np.ndarray:
    permutation = epoch_permutation(num_objects, seed, epoch)
    permutation.flags.writeable = False
    return permutation


@lru_cache(maxsize=2)
def _kept_draw(order: BatchOrder, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    return order._draw(epoch, number)


def words_at(positions: np.ndarray, key: tuple[int, int], upper_counter: tuple[int, int, int]) -> np.ndarray:
    """The words at `positions` (int64, at least 0) of a Philox4x64 stream, uint64 of the same shape.

    Word p is `np.random.Philox(key=key, counter=(0, *upper_counter)).random_raw(p + 1)[p]`. The generator is a keyed
    bijection of a counter (section 3.3 of the paper): four words per counter, none of which needs those before it.
    """
    # NumPy only gives out runs of words, and setting it to another place costs more than computing a few words here.
    places = positions.ravel().astype(np.uint64)
    counters, place_of_counter = np.unique(places // np.uint64(_WORDS_PER_COUNTER), return_inverse=True)
    counter_words = np.empty((_WORDS_PER_COUNTER, len(counters)), dtype=np.uint64)
    counter_words[0] = counters + np.uint64(1)  # NumPy counts up before it makes its first words
    for row, word in enumerate(upper_counter, start=1):
        counter_words[row] = word
    words = _philox4x64(counter_words, key)[places % np.uint64(_WORDS_PER_COUNTER), place_of_counter]
    return words.reshape(positions.shape)


def _philox4x64(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds on counters uint64 [4, n]; the words that NumPy gives out for them, in its order."""
    first, second, third, fourth = counters
    for number in range(_ROUNDS):
        low_key, high_key = (np.uint64((word + number * step) % 2**64) for word, step in zip(key, _KEY_STEPS))
        first_high, first_low = _product(first, _MULTIPLIERS[0])
        third_high, third_low = _product(third, _MULTIPLIERS[1])
        first, second, third, fourth = (
            third_high ^ second ^ low_key,
            third_low,
            first_high ^ fourth ^ high_key,
            first_low,
        )
    return np.stack([first, second, third, fourth])


def _product(values: np.ndarray, factor: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 64 bits of the 128-bit products, from the products of 32-bit halves."""
    value_low, value_high = values & _LOW_HALF, values >> _HALF_BITS
    factor_low, factor_high = factor & _LOW_HALF, factor >> _HALF_BITS
    carried = value_high * factor_low + (value_low * factor_low >> _HALF_BITS)  # at most 2**64 - 2**32: no overflow
    middle = value_low * factor_high + (carried & _LOW_HALF)
    return value_high * factor_high + (carried >> _HALF_BITS) + (middle >> _HALF_BITS), values * factor
