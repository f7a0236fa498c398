"""Encoded sequences of views, with the actions between any two views of a sequence.

Sequences depend on seeds and on the split's shape only, so every model is judged on the same ones.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.samples import training_views
from ssl_equi.latents.actions import SEVERAL, ActionPart, LatentActions, actions_of, offered_names
from ssl_equi.latents.motion import RigidMotion
from ssl_equi.runtime.frozen import frozen
from ssl_equi.views.makers import ViewSequence

POSITION_NAMES = ("position_down", "position_right")
HUES = SEVERAL["rotation_color"][1:]


@dataclass(frozen=True)
class FeatureSequences:
    """N sequences of L views of one object each, encoded.

    Attributes:
        features: float32 `[N, L, D]` of the encoder, in the order of observation.
        actions: float32 `[N, L, L, A]`; `actions[:, i, j]` takes view i to view j, and nothing on the diagonal.
        labels: int64 `[N]`.
        objects: int64 `[N]`, which object a sequence shows; one object may have several sequences.
        action_names: of the A columns of an action.
        told_columns: the columns that the model is told of, the others are only asked for; None for all.
        latents: the actions of stored views; None of augmentations and glimpses.
    """

    features: Tensor
    actions: Tensor
    labels: Tensor
    objects: Tensor
    action_names: tuple[str, ...]
    told_columns: tuple[int, ...] | None = None
    latents: LatentActions | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def length(self) -> int:
        """Views L of each sequence."""
        return self.features.shape[1]

    @property
    def num_objects(self) -> int:
        """Objects that the sequences show."""
        return len(self.objects.unique())

    def steps(self, first: int, count: int) -> Tensor:
        """The actions `[N, count, A]` from view `first` to the next one, from that to the next, and so on."""
        views = torch.arange(first, first + count, device=self.actions.device)
        return self.actions[:, views, views + 1]

    def told_steps(self, first: int, count: int) -> Tensor:
        """What the model is told of `steps`."""
        steps = self.steps(first, count)
        return steps if self.told_columns is None else steps[..., list(self.told_columns)]

    def one_per_object(self) -> "FeatureSequences":
        """The first sequence of each object."""
        first = np.sort(np.unique(self.objects.cpu().numpy(), return_index=True)[1])
        rows = torch.from_numpy(first).to(self.objects.device)
        return self._with_each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "FeatureSequences":
        """The same sequences with their tensors on `device`."""
        return self._with_each(lambda tensor: tensor.to(device))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "FeatureSequences":
        tensors = {name: change(getattr(self, name)) for name in ("features", "actions", "labels", "objects")}
        return replace(self, **tensors)  # type: ignore[arg-type]


def sequences_of_cache(
    cache: FeatureCache, told: Sequence[str], length: int, per_object: int, seed: int, *, ask_for_hues: bool = False
) -> FeatureSequences:
    """Sequences of `length` distinct stored views, `per_object` of each object, drawn independently of each other.

    ValueError if an object has fewer views than a sequence needs.

    Args:
        cache: every view of a split, encoded, with latents.
        told: names of the actions that the model is told; UserError if the views have no such latents. The quaternion
            of the object's pose is asked for in any case, also if the model is told of it without a sign, or of other
            latents.
        ask_for_hues: the differences of 3DIEBench's hues are asked for in any case, too.
    """
    actions = actions_of(cache.schema, told)
    assert cache.schema is not None
    if not 1 <= length <= cache.fewest_views or per_object < 1:
        raise ValueError(
            f"{per_object} sequences of {length} distinct views were asked for and objects have {cache.fewest_views}: "
            "ask for 1 sequence or more, of so many views at most"
        )
    # One draw for each sequence of an object: within a draw views are distinct, between draws they may return.
    drawn = [training_views(cache.num_objects, cache.views_of_each, length, seed, round) for round in range(per_object)]
    views = torch.from_numpy(np.stack(drawn, axis=1).reshape(-1, length))
    objects = torch.arange(cache.num_objects).repeat_interleave(per_object)

    # What is asked for besides stands behind what the model is told, whose columns stay the first ones.
    pose = cache.schema.pose
    besides = [] if pose is None or actions.told.quaternion_columns else [pose.name]
    if ask_for_hues and set(HUES) <= set(offered_names(cache.schema)) - set(actions.told.names):
        besides += HUES
    asked = LatentActions((*actions.parts, *actions_of(cache.schema, besides).parts)) if besides else actions

    latents = cache.latents.cpu()[objects[:, None], views]
    quats_xyzw = None if cache.quats_xyzw is None else cache.quats_xyzw.cpu()[objects[:, None], views]
    device = cache.features.device
    return FeatureSequences(
        features=cache.features[objects.to(device)[:, None], views.to(device)],
        actions=asked.between_all(latents, quats_xyzw),
        labels=cache.labels.cpu()[objects],
        objects=objects,
        action_names=tuple(name for part in asked.parts for name in _column_names(part)),
        told_columns=tuple(range(actions.width)) if besides else None,
        latents=asked,
    ).to(device)


def _column_names(part: ActionPart) -> tuple[str, ...]:
    """What the columns of an action are called, one word each."""
    if isinstance(part.space, RigidMotion):
        return (*(f"quat_{axis}" for axis in "xyzw"), *(f"{part.space.frame}_translation_{axis}" for axis in "xyz"))
    if part.has_sign:
        return tuple(f"quat_{axis}" if part.name == "rotation" else f"{part.name}_{axis}" for axis in "xyzw")
    width, name = part.space.sizes.action, part.name.removesuffix("_difference")
    return (name,) if width == 1 else tuple(f"{name}_{column}" for column in range(width))


def encode_sequences(
    encoder: nn.Module,
    collection: ViewCollection,
    make_views: Callable[[ViewBatch, int], ViewSequence],
    action_names: tuple[str, ...],
    *,
    length: int,
    per_object: int = 1,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> FeatureSequences:
    """Sequences of views that are made from stored images, encoded in evaluation mode.

    Every step goes on in the collection, which is gone through `per_object` times; sequence k of an object is made from
    its stored view k (the first one after the last). What `make_views` draws depends on the step and the size of the
    batch, so models can be compared if both are the same. RuntimeError if a feature is not finite.

    Args:
        encoder: maps `[N, 3, S, S]` to `[N, D]`; on `device`; its state and modes are left untouched.
        make_views: from a batch of stored images and the number of the step to `length` views or more, with known
            actions; further ones are left out.
        batch_size: objects in a step.
    """
    features: list[Tensor] = []
    actions: list[Tensor] = []
    objects: list[Tensor] = []
    with frozen(encoder):
        for step, batch in enumerate(_stored_batches(collection, per_object, batch_size)):
            views = make_views(batch.to(device), step)
            images = views.images[:, :length]
            features.append(encoder(images.flatten(0, 1)).float().unflatten(0, images.shape[:2]).cpu())
            actions.append(_known_actions(views, length))
            objects.append(batch.object_indices)
    encoded = torch.cat(features)
    if not bool(torch.isfinite(encoded).all()):
        raise RuntimeError(
            "the encoder produced features that are not finite: the run diverged, use an earlier checkpoint"
        )
    order = torch.cat(objects)
    labels = torch.from_numpy(np.array(collection.labels, dtype=np.int64))[order]
    return FeatureSequences(encoded, torch.cat(actions), labels, order, action_names)


def _stored_batches(collection: ViewCollection, per_object: int, batch_size: int) -> Iterator[ViewBatch]:
    """One stored view of each object, in order, as often as asked; the last batch of a round may be smaller."""
    for number in range(per_object):
        for start in range(0, collection.num_objects, batch_size):
            objects = np.arange(start, min(start + batch_size, collection.num_objects))
            own_views = np.broadcast_to(collection.views_of_each, collection.num_objects)[objects]
            views = (number % own_views[:, None]).astype(np.int64)
            images = np.empty((len(objects), 1, *collection.image_size, 3), dtype=np.uint8)
            sizes = None if collection.fills_image else np.empty((len(objects), 1, 2), dtype=np.int64)
            collection.read_views(objects, views, images, sizes)
            yield ViewBatch(
                images=torch.from_numpy(images),
                latents=torch.zeros(len(objects), 1, 0),
                quat_xyzw=None,
                labels=torch.from_numpy(np.array(collection.labels[objects], dtype=np.int64)),
                object_indices=torch.from_numpy(objects),
                view_indices=torch.from_numpy(views),
                content_sizes=None if sizes is None else torch.from_numpy(sizes),
            )


def _known_actions(views: ViewSequence, length: int) -> Tensor:
    """`[B, L, L, A]` between the first L views, float32 on the CPU."""
    assert views.action_between is not None
    one = views.action_between(0, 1)
    actions = one.new_zeros(len(one), length, length, one.shape[1])
    for first, second in itertools.permutations(range(length), 2):
        actions[:, first, second] = views.action_between(first, second)
    return actions.float().cpu()
