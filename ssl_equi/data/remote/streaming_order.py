"""Which objects a streamed epoch reads, in which order, and in which order it gives them out.

All of it follows from (seed, epoch, rank, world size) and from how many objects each shard holds, without reading one:
so a batch is known before its bytes are there, and a run can be resumed at any step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ssl_equi.data.order import batches_in_epoch, check_sizes, distinct_views, epoch_views, random_words
from ssl_equi.data.view_counts import ViewsOfEach, of_objects

StreamingMode = Literal["exact", "resampled"]

# The order of whole batches has streams 0 and 1 of the random words.
_SHARD_STREAM = 2
_BUFFER_STREAM = 3
_RESAMPLING_STREAM = 4
_RESAMPLED_VIEW_STREAM = 5


@dataclass(frozen=True)
class EpochPlan:
    """What one rank reads and gives out in an epoch; m objects with k views each."""

    objects: np.ndarray  # int64 [m] in the order they are read: ascending within a piece of a shard
    views: np.ndarray  # int64 [m, k]
    given_out: np.ndarray  # int64 [m], place in the reading order of the i-th object that is given out
    needed: np.ndarray  # int64 [m], objects that must have been read before the i-th can be given out


@dataclass(frozen=True, eq=False)  # arrays have no hash
class StreamedOrder:
    """The batches of one rank when shards are read from front to back.

    An object that is read at place p is given out when its key p + shuffle_buffer * u, u uniform in [0, 1), is the
    smallest: at most `shuffle_buffer` objects wait at any time, and none moves by more places than that. With
    shuffle_buffer=1 the reading order is kept. Raises ValueError for sizes that do not fit.

    exact: the shards of an epoch, in an order drawn anew, are laid end to end, turned by a random number of objects and
    cut into one equally long piece a rank. Every object is in exactly one batch of one rank, but for the
    num_objects % global_batch_size at the end, which each object is equally likely to be one of. With
    `keep_incomplete_batch` these are one more batch as in `ssl_equi.data.order.BatchOrder`.

    resampled: each rank draws, with replacement, runs of consecutive objects as long as the mean shard, until it has as
    many objects as in the other mode. A run starts at any object and goes on in the next shard, so that each object is
    equally likely to be drawn; with whole shards, those of uneven shards would not be.
    """

    shard_counts: tuple[int, ...]  # objects in each shard
    num_views: ViewsOfEach
    global_batch_size: int  # over all ranks
    views: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle_buffer: int = 1000  # objects
    mode: StreamingMode = "exact"
    keep_incomplete_batch: bool = False

    def __post_init__(self) -> None:
        check_sizes(
            num_objects=self.num_objects, num_views=self.num_views, global_batch_size=self.global_batch_size,
            views=self.views, seed=self.seed, rank=self.rank, world_size=self.world_size,
        )  # fmt: skip
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer is {self.shuffle_buffer}: give at least 1 object, which shuffles nothing")
        if self.mode not in ("exact", "resampled"):
            raise ValueError(f"mode is {self.mode!r}: give 'exact' or 'resampled'")

    @cached_property
    def num_objects(self) -> int:
        """Objects in all shards."""
        return sum(self.shard_counts)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the same number on every rank."""
        return batches_in_epoch(self.num_objects, self.global_batch_size, self.world_size, self.keep_incomplete_batch)

    @property
    def local_batch_size(self) -> int:
        """The most objects in this rank's slice of a batch; an incomplete batch has fewer."""
        return self.global_batch_size // self.world_size

    @property
    def objects_per_epoch(self) -> int:
        """Objects that this rank gives out in an epoch."""
        return min(self.steps_per_epoch * self.local_batch_size, self.num_objects // self.world_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Object indices int64 [b] and view indices int64 [b, views] of this rank at global step `step` >= 0."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        plan = self.epoch_plan(epoch)
        first = step_in_epoch * self.local_batch_size
        places = plan.given_out[first : first + self.local_batch_size]
        return plan.objects[places], plan.views[places]

    def epoch_plan(self, epoch: int) -> EpochPlan:
        """What this rank reads in an epoch; the plans of two epochs are kept."""
        plans = self._plans
        if epoch not in plans:
            for earlier in sorted(plans)[:-1]:
                del plans[earlier]
            plans[epoch] = self._make_plan(epoch)
        return plans[epoch]

    @cached_property
    def _plans(self) -> dict[int, EpochPlan]:
        return {}

    def _make_plan(self, epoch: int) -> EpochPlan:
        objects = self._exact_objects(epoch) if self.mode == "exact" else self._resampled_objects(epoch)
        if self.mode == "exact":
            views = epoch_views(self.num_objects, self.num_views, self.views, self.seed, epoch)[objects]
        else:  # an object that is drawn twice gets other views each time
            words = random_words(len(objects) * self.views, self.seed, epoch, _RESAMPLED_VIEW_STREAM, self.rank)
            views = distinct_views(words, of_objects(self.num_views, objects), self.views)
        words = random_words(len(objects), self.seed, epoch, _BUFFER_STREAM, self.rank)
        keys = np.arange(len(objects)) + self.shuffle_buffer * _uniform(words)
        given_out = np.argsort(keys, kind="stable")
        return EpochPlan(objects, views, given_out, needed=np.maximum.accumulate(given_out) + 1)

    def _exact_objects(self, epoch: int) -> np.ndarray:
        words = random_words(len(self.shard_counts) + 1, self.seed, epoch, _SHARD_STREAM)
        shards = np.argsort(words[1:], kind="stable")
        in_a_row = np.concatenate([self._objects_of_shard(shard) for shard in shards])
        in_a_row = np.roll(in_a_row, int(words[0] % np.uint64(self.num_objects)))
        return in_a_row[self.rank * self.objects_per_epoch : (self.rank + 1) * self.objects_per_epoch]

    def _resampled_objects(self, epoch: int) -> np.ndarray:
        run_length = -(-self.num_objects // len(self.shard_counts))
        num_runs = -(-self.objects_per_epoch // run_length)
        words = random_words(num_runs, self.seed, epoch, _RESAMPLING_STREAM, self.rank)
        starts = (words % np.uint64(self.num_objects)).astype(np.int64)
        runs = (starts[:, None] + np.arange(run_length)) % self.num_objects
        return runs.ravel()[: self.objects_per_epoch]

    def _objects_of_shard(self, shard: int) -> np.ndarray:
        return np.arange(self._ends[shard] - self.shard_counts[shard], self._ends[shard])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.shard_counts)


def _uniform(words: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the upper 53 bits of uint64 words."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
