"""How far an encoder is from invariant and from equivariant under symmetries of its images, and where it gets lost.

With images x_1 ... x_N and elements g other than the identity, and S the mean of |f(x_i) - f(x_j)|^2 over all pairs of
different images, the errors are

    invariance error      sqrt(mean over i and g of |f(g x_i) - f(x_i)|^2 / S)
    equivariance error    sqrt(mean over i and g of |f(g x_i) - A_g f(x_i)|^2 / S)

where A_g is how the encoder itself says that g acts on its features. They have no unit: 0 is exact, and at 1 an image
and its transformed copy are as different as two images. Maps within the encoder, m(x) [C, h, h], have the same errors:

    spatial error         A_g moves the cells of the map as the pixels of the image, and leaves the channels alone
    equivariance error    A_g is the encoder's own, which may also change places or signs of channels
    invariance error      of the mean over all cells

Consistency is the share of pairs (i, g) for which the predicted class stays the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.evaluation.metrics import varying_components
from ssl_equi.evaluation.symmetry.image_symmetries import Element, ImageSymmetries
from ssl_equi.evaluation.symmetry.layers import LayerErrors, LayerSums, Misses, Spread
from ssl_equi.runtime.frozen import frozen


@dataclass(frozen=True)
class PartErrors:
    """Errors of a part of the features; None where the encoder states no action, or no class is known."""

    invariance_error: float
    equivariance_error: float | None
    consistency: float | None
    chance_consistency: float | None  # share of pairs of different images that are predicted to be of one class


@dataclass(frozen=True)
class SymmetryErrors:
    """What was measured.

    Attributes:
        num_images: N.
        parts: by part of the features.
        layers: in the order of the forward pass.
        left_out: by layer, what can't be compared of it and why.
        notes: a sentence for everything else that is missing or not exact.
        similarities: float64 [N, E], of f(g x_i) with f(x_i): cosine of the angle between them, seen from the mean of
            f over the images.
        similarities_of_action: the same with A_g f(x_i), or None.
    """

    symmetries: ImageSymmetries
    num_images: int
    parts: dict[str, PartErrors]
    layers: tuple[LayerErrors, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    similarities: Tensor
    similarities_of_action: Tensor | None


def measure_symmetry(
    encoder: nn.Module,
    images: Tensor,
    symmetries: ImageSymmetries,
    parts: Mapping[str, slice],
    labels: Tensor | None = None,
    with_layers: bool = True,
    batch_size: int = 64,
) -> SymmetryErrors:
    """Shows the encoder every image under every element; its state and modes are left untouched.

    Raises ValueError for images, labels and parts that don't fit, and for features without a scale.

    Args:
        encoder: maps images [N, 3, S, S] to features [N, D], in the precision of its weights.
        images: [N, 3, S, S], normalised; any device.
        parts: named slices of the feature columns.
        labels: int64 [N], -1 for unknown. Predicted is the class whose mean over the images is nearest.
        with_layers: takes about twice as long.
    """
    _check(images, symmetries, labels)
    parameter = next(encoder.parameters(), images)
    with frozen(encoder):
        batches = [
            symmetries.prepare(batch.to(parameter.device, parameter.dtype)) for batch in images.split(batch_size)
        ]
        features = _encode_all(encoder, batches)
        act, notes = _stated_action(encoder, symmetries, features)
        sums = {part: _PartSums(part, features, columns, labels) for part, columns in parts.items()}
        layers = LayerSums(encoder, symmetries)
        centre = features.mean(dim=0, keepdim=True)
        similarities = torch.empty(len(images), len(symmetries.elements), dtype=torch.float64)
        similarities_of_action = torch.empty_like(similarities)
        for batch, rows in zip(batches, torch.arange(len(images)).split(batch_size)):
            known = features[rows]
            if with_layers:
                layers.begin_batch(batch)
            # Elements one by one, so that memory doesn't grow with their number: all shifts are thousands.
            for column, element in enumerate(symmetries.elements):
                moved = symmetries.act(element, batch)
                found = encoder(moved).double()
                acted = None
                similarities[rows, column] = F.cosine_similarity(found - centre, known - centre).cpu()
                if act is not None:
                    acted, acted_centre = act(element.value, known), act(element.value, centre)
                    # The mean moves, too: seen from where it was, an exact action would not be at 1.
                    similar = F.cosine_similarity(found - acted_centre, acted - acted_centre)
                    similarities_of_action[rows, column] = similar.cpu()
                for part_sums in sums.values():
                    part_sums.add(found, known, acted)
                if with_layers:
                    layers.add(element, moved)
        if all(part_sums.class_means is None for part_sums in sums.values()):
            notes.append("consistency is not measured: there are not two classes among the images")
        if not symmetries.exact:
            error = _interpolation_error(symmetries, batches)
            notes.append(
                f"interpolation alone: images that are turned there and back have the error {error:.3f} in pixels, "
                "so no encoder is exact"
            )
    return SymmetryErrors(
        symmetries=symmetries,
        num_images=len(images),
        parts={part: part_sums.errors() for part, part_sums in sums.items()},
        layers=layers.errors(),
        left_out=layers.left_out,
        notes=tuple(notes),
        similarities=similarities,
        similarities_of_action=None if act is None else similarities_of_action,
    )


class _PartSums:
    """Squared distances of a part of the features, added up over images and elements, and predictions that stay."""

    def __init__(self, part: str, features: Tensor, columns: slice, labels: Tensor | None) -> None:
        first, last, _ = columns.indices(features.shape[1])
        if last <= first:
            raise ValueError(f"part {part!r} has no columns of the {features.shape[1]} features: give it at least one")
        features = features[:, columns]
        if not bool(varying_components(features).any()):
            raise ValueError(
                f"part {part!r} of the features is the same for all {len(features)} images, so errors have no scale: "
                "give other images, or an encoder that has not collapsed"
            )
        self.columns, self.spread = columns, Spread()
        self.spread.add(features)
        self.changes, self.misses, self.kept = Misses(), Misses(), 0
        self.class_means: Tensor | None = None
        self.chance: float | None = None
        classes = [] if labels is None else labels[labels >= 0].unique().tolist()
        if labels is not None and len(classes) > 1:
            labels = labels.to(features.device)
            self.class_means = torch.stack([features[labels == label].mean(dim=0) for label in classes])
            sizes = torch.bincount(_nearest(features, self.class_means)).double()
            self.chance = float((sizes * (sizes - 1)).sum() / (len(features) * (len(features) - 1)))

    def add(self, found: Tensor, known: Tensor, acted: Tensor | None) -> None:
        found, known = found[:, self.columns], known[:, self.columns]
        self.changes.add(found, known)
        if acted is not None:
            self.misses.add(found, acted[:, self.columns])
        if self.class_means is not None:
            self.kept += int((_nearest(found, self.class_means) == _nearest(known, self.class_means)).sum())

    def errors(self) -> PartErrors:
        count = self.changes.count
        scale = count * self.spread.value
        return PartErrors(
            invariance_error=(self.changes.total / scale) ** 0.5,
            equivariance_error=(self.misses.total / scale) ** 0.5 if self.misses.count else None,
            consistency=None if self.class_means is None else self.kept / count,
            chance_consistency=self.chance,
        )


def _nearest(features: Tensor, class_means: Tensor) -> Tensor:
    return torch.cdist(features, class_means).argmin(dim=1)


def _check(images: Tensor, symmetries: ImageSymmetries, labels: Tensor | None) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3] or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: symmetries are asked of square ones, floats "
            "[N, 3, S, S]"
        )
    if images.shape[2] != symmetries.image_side:
        raise ValueError(
            f"images have {images.shape[2]} x {images.shape[2]} pixels and the symmetries are those of images of "
            f"{symmetries.image_side}: make both for one size"
        )
    if len(images) < 2:
        raise ValueError(f"{len(images)} image was given: errors are relative to other images, give 2 or more")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype != torch.int64):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: give int64 [{len(images)}], one an image"
        )


def _encode_all(encoder: nn.Module, batches: list[Tensor]) -> Tensor:
    """Features float64 [N, D]."""
    side = batches[0].shape[2]
    try:
        features = torch.cat([encoder(batch) for batch in batches])
    # What timm and PyTorch raise at a size that they don't take.
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the encoder can't take images of {side} x {side} pixels ({error}): give images of the size that it was "
            "made for"
        ) from error
    if features.ndim != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}: give an encoder that pools them to [N, D]")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features are not finite: the run diverged, use an earlier checkpoint")
    return features.double()


def _stated_action(
    encoder: nn.Module, symmetries: ImageSymmetries, features: Tensor
) -> tuple[Callable[[Any, Tensor], Tensor] | None, list[str]]:
    """How the elements act on features, where the encoder says so, or a note that it doesn't."""
    missing = f"equivariance_error is not measured: the encoder states no action of {symmetries.name} on its features"
    if not isinstance(encoder, Symmetric):
        return None, [missing]
    try:
        # All of them: an encoder that is exact under c4 states an action of some elements of d4.
        for element in symmetries.elements:
            encoder.act_on_features(element.value, features[:1])
    except ValueError as error:
        return None, [f"{missing} ({error})"]
    return encoder.act_on_features, []


def _interpolation_error(symmetries: ImageSymmetries, batches: list[Tensor]) -> float:
    """The error of images that are turned by an angle, and by the opposite one: what interpolation alone does."""
    spread, changes = Spread(), Misses()
    for images in batches:
        spread.add(images)
        for element in symmetries.elements:
            opposite = Element(360 - float(element.value), "", "", 0)  # type: ignore[arg-type]
            changes.add(symmetries.act(opposite, symmetries.act(element, images)), images)
    return (changes.total / changes.count / spread.value) ** 0.5
