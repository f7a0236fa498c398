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
from ssl_equi.evaluation.symmetry.layers import LayerErrors, LayerSums, Spread, mean_squared_distance
from ssl_equi.runtime.frozen import frozen

Action = Callable[[Any, Tensor], Tensor]


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
    head: Callable[[Tensor], Tensor] | None = None,
    with_layers: bool = True,
    batch_size: int = 64,
) -> SymmetryErrors:
    """Shows the encoder every image under every element; its state and modes are left untouched.

    Args:
        encoder: maps images [N, 3, S, S] to features [N, D], in the precision of its weights.
        images: [N, 3, S, S], normalised; any device.
        symmetries: for images of side S.
        parts: named slices of the feature columns.
        labels: int64 [N], -1 for unknown. Predicted is then the class whose mean over the images is nearest.
        head: maps features [n, D] to logits [n, K]; predicts the class of parts that are all columns, instead.
        with_layers: measure layers too, which takes about twice as long.
        batch_size: images in one forward pass.

    Raises:
        ValueError: images are not square, fewer than 2 or of a side that the encoder can't take; labels don't fit; a
            part has no columns; all features are the same or one is not finite.
    """
    _check(images, symmetries, labels)
    parameter = next(encoder.parameters(), images)
    similarities: list[Tensor] = []
    similarities_of_action: list[Tensor] = []
    with frozen(encoder):
        batches = [
            symmetries.prepare(batch.to(parameter.device, parameter.dtype)) for batch in images.split(batch_size)
        ]
        features = _encode_all(encoder, batches)
        action, notes = _stated_action(encoder, symmetries, features)
        sums = {
            part: _PartSums(part, features[:, columns], columns, _predictor(features, part, columns, labels, head))
            for part, columns in parts.items()
        }
        layers = LayerSums(encoder, symmetries)
        centre = features.mean(dim=0, keepdim=True)
        for batch, known in zip(batches, features.split(batch_size)):
            if with_layers:
                layers.begin_batch(batch)
            of_batch: list[Tensor] = []
            of_action: list[Tensor] = []
            # Elements one by one, so that memory doesn't grow with their number: all shifts are thousands.
            for element in symmetries.elements:
                moved = symmetries.act(element, batch)
                found = encoder(moved).double()
                acted = None if action is None else action(element.value, known)
                for part_sums in sums.values():
                    part_sums.add(found, known, acted)
                of_batch.append(F.cosine_similarity(found - centre, known - centre))
                if action is not None and acted is not None:
                    # The mean moves, too: seen from where it was, an exact action would not be at 1.
                    acted_centre = action(element.value, centre)
                    of_action.append(F.cosine_similarity(found - acted_centre, acted - acted_centre))
                if with_layers:
                    layers.add(element, moved)
            similarities.append(torch.stack(of_batch, dim=1).cpu())
            if of_action:
                similarities_of_action.append(torch.stack(of_action, dim=1).cpu())
        interpolation = None if symmetries.exact else _interpolation_error(symmetries, batches)
    if all(part_sums.predict is None for part_sums in sums.values()):
        notes.append("consistency is not measured: there are not two classes among the images")
    if interpolation is not None:
        notes.append(
            f"interpolation alone: images that are turned there and back have the error {interpolation:.3f} in pixels, "
            "so no encoder is exact"
        )
    return SymmetryErrors(
        symmetries=symmetries,
        num_images=len(images),
        parts={part: part_sums.errors() for part, part_sums in sums.items()},
        layers=layers.errors(),
        left_out=layers.left_out,
        notes=tuple(notes),
        similarities=torch.cat(similarities),
        similarities_of_action=torch.cat(similarities_of_action) if similarities_of_action else None,
    )


class _PartSums:
    """Squared distances of a part of the features, added up over images and elements."""

    def __init__(self, part: str, features: Tensor, columns: slice, predict: Callable[[Tensor], Tensor] | None) -> None:
        self.columns, self.predict, self.count = columns, predict, 0
        self.spread = mean_squared_distance(features)
        if not bool(varying_components(features).any()):
            raise ValueError(
                f"part {part!r} of the features is the same for all {len(features)} images, so errors have no scale: "
                "give other images, or an encoder that has not collapsed"
            )
        self.changes, self.misses, self.kept = 0.0, 0.0, 0
        self.has_action = False
        self.chance: float | None = None
        if predict is not None:
            sizes = torch.bincount(predict(features)).double()
            self.chance = float((sizes * (sizes - 1)).sum() / (len(features) * (len(features) - 1)))

    def add(self, found: Tensor, known: Tensor, acted: Tensor | None) -> None:
        found, known = found[:, self.columns], known[:, self.columns]
        self.count += len(found)
        self.changes += float((found - known).square().sum())
        if acted is not None:
            self.misses += float((found - acted[:, self.columns]).square().sum())
            self.has_action = True
        if self.predict is not None:
            self.kept += int((self.predict(found) == self.predict(known)).sum())

    def errors(self) -> PartErrors:
        scale = self.count * self.spread
        return PartErrors(
            invariance_error=(self.changes / scale) ** 0.5,
            equivariance_error=(self.misses / scale) ** 0.5 if self.has_action else None,
            consistency=None if self.predict is None else self.kept / self.count,
            chance_consistency=self.chance,
        )


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
) -> tuple[Action | None, list[str]]:
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


def _predictor(
    features: Tensor, part: str, columns: slice, labels: Tensor | None, head: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor] | None:
    """Class numbers [n] of a part's features [n, d]; None if no class is known."""
    first, last, _ = columns.indices(features.shape[1])
    if last <= first:
        raise ValueError(f"part {part!r} has no columns of the {features.shape[1]} features: give it at least one")
    if head is not None and last - first == features.shape[1]:
        weights = head.parameters() if isinstance(head, nn.Module) else iter(())
        dtype = next((weight.dtype for weight in weights), features.dtype)
        return lambda rows: head(rows.to(dtype)).argmax(dim=1)
    classes = [] if labels is None else labels[labels >= 0].unique().tolist()
    if labels is None or len(classes) < 2:
        return None
    means = torch.stack([features[labels.to(features.device) == label, columns].mean(dim=0) for label in classes])
    return lambda rows: torch.cdist(rows, means).argmin(dim=1)


def _interpolation_error(symmetries: ImageSymmetries, batches: list[Tensor]) -> float:
    """The error of images that are turned by an angle, and by the opposite one: what interpolation alone does."""
    spread, changes, count = Spread(), 0.0, 0
    for images in batches:
        spread.add(images)
        for element in symmetries.elements:
            opposite = Element(360 - float(element.value), "", "", 0)  # type: ignore[arg-type]
            there_and_back = symmetries.act(opposite, symmetries.act(element, images))
            changes += float((there_and_back - images).double().square().sum())
            count += len(images)
    return (changes / count / spread.value) ** 0.5
