"""Encoded sequences of views, with the actions between any two views of a sequence.

Sequences depend on seeds and on the split's shape only, so every model is judged on the same ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.actions import ACTION_SIZES, ActionKind, relative_hues, relative_rotation
from ssl_equi.probing.encode import FeatureCache
from ssl_equi.probing.pairs import training_views

ROTATION_NAMES = ("quat_x", "quat_y", "quat_z", "quat_w")
HUE_NAMES = ("floor_hue", "light_hue")


@dataclass(frozen=True)
class FeatureSequences:
    """N sequences of L views of one object each, encoded.

    Attributes:
        features: float32 `[N, L, D]` of the encoder, in the order of observation.
        actions: float32 `[N, L, L, A]`; `actions[:, i, j]` takes view i to view j, and nothing on the diagonal.
        labels: int64 `[N]`.
        objects: int64 `[N]`, which object a sequence shows; one object may have several sequences.
        action_names: of the A columns of an action.

    Raises:
        ValueError: the shapes do not belong together.
    """

    features: Tensor
    actions: Tensor
    labels: Tensor
    objects: Tensor
    action_names: tuple[str, ...]

    def __post_init__(self) -> None:
        count, length = self.features.shape[:2]
        shapes = [tuple(tensor.shape) for tensor in (self.actions, self.labels, self.objects)]
        if shapes != [(count, length, length, len(self.action_names)), (count,), (count,)]:
            raise ValueError(
                f"features {tuple(self.features.shape)} do not fit actions {shapes[0]} of {len(self.action_names)} "
                f"names, labels {shapes[1]} and objects {shapes[2]}: give [N, L, D], [N, L, L, A], [N] and [N]"
            )

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

    def one_per_object(self) -> "FeatureSequences":
        """The first sequence of each object."""
        objects = self.objects.cpu().numpy()
        first = torch.from_numpy(np.sort(np.unique(objects, return_index=True)[1])).to(self.objects.device)
        return FeatureSequences(
            self.features[first], self.actions[first], self.labels[first], self.objects[first], self.action_names
        )

    def to(self, device: torch.device | str) -> "FeatureSequences":
        """The same sequences with their tensors on `device`."""
        return FeatureSequences(
            self.features.to(device),
            self.actions.to(device),
            self.labels.to(device),
            self.objects.to(device),
            self.action_names,
        )


def sequences_of_cache(
    cache: FeatureCache, kind: ActionKind, length: int, per_object: int, seed: int
) -> FeatureSequences:
    """Sequences of distinct stored views of each object, whose poses are known.

    Args:
        cache: every view of a split, encoded.
        kind: "rotation", the body-frame relative quaternion with the sign as it comes; "rotation_color": and the
            differences of floor and light hue.
        length: views of each sequence.
        per_object: sequences of each object, drawn independently of each other.
        seed: of the draw, which depends on the split's shape besides.

    Raises:
        ValueError: the poses are unknown, the kind is, or an object has fewer views than a sequence needs.
    """
    if cache.quats_xyzw is None:
        raise ValueError("the cache has no poses: sequences of stored views need a rendered data set")
    if kind not in ACTION_SIZES:
        raise ValueError(f"action kind '{kind}' is unknown: choose one of {', '.join(ACTION_SIZES)}")
    if not 1 <= length <= cache.num_views or per_object < 1:
        raise ValueError(
            f"{per_object} sequences of {length} distinct views were asked for and objects have {cache.num_views}: "
            "ask for 1 sequence or more, of so many views at most"
        )
    drawn = [training_views(cache.num_objects, cache.num_views, length, seed, number) for number in range(per_object)]
    views = torch.from_numpy(np.stack(drawn, axis=1).reshape(-1, length))
    objects = torch.arange(cache.num_objects).repeat_interleave(per_object)
    latents, quats_xyzw = cache.latents.cpu()[objects[:, None], views], cache.quats_xyzw.cpu()[objects[:, None], views]
    actions = _between_all_views(relative_rotation, quats_xyzw)
    if kind == "rotation_color":
        actions = torch.cat([actions, _between_all_views(relative_hues, latents)], dim=-1)
    device = cache.features.device
    return FeatureSequences(
        features=cache.features[objects.to(device)[:, None], views.to(device)],
        actions=actions,
        labels=cache.labels.cpu()[objects],
        objects=objects,
        action_names=ROTATION_NAMES + (HUE_NAMES if kind == "rotation_color" else ()),
    ).to(device)


def _between_all_views(relative: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """`[N, L, L, A]` of a function of pairs `[n, 2, k]` and the values `[N, L, k]` of each view."""
    shape = (*values.shape[:2], *values.shape[1:])
    pairs = torch.stack([values[:, :, None].expand(shape), values[:, None].expand(shape)], dim=3)
    return relative(pairs.flatten(0, 2)).unflatten(0, shape[:3])
