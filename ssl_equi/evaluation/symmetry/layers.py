"""What each layer of an encoder gives, and its errors under symmetries of the images; `errors` says what they are."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.evaluation.symmetry.image_symmetries import Element, ImageSymmetries


@dataclass(frozen=True)
class LayerErrors:
    """Errors of a layer; None where they can't be measured. The spatial error is a mean over `compared_elements`."""

    name: str
    spatial_error: float | None
    equivariance_error: float | None
    invariance_error: float | None
    compared_elements: int


class Spread:
    """S, the mean of |v_i - v_j|^2 over all pairs of different rows, which come in batches [N, ...].

    It is twice their total variance.
    """

    def __init__(self) -> None:
        self.count, self.squares, self.size = 0, 0.0, 0.0
        self.mean = torch.zeros(1)

    def add(self, values: Tensor) -> None:
        # Means and sums of squares of two batches are put together as by Chan et al. 1983, which doesn't cancel.
        rows = values.double().flatten(1)
        mean, count = rows.mean(dim=0), len(rows)
        total = self.count + count
        offset = mean - self.mean.to(mean)
        self.squares += float((rows - mean).square().sum() + offset.square().sum() * self.count * count / total)
        self.mean = self.mean.to(mean) + offset * count / total
        self.count = total
        self.size += float(rows.square().sum()) * torch.finfo(values.dtype).eps ** 2

    @property
    def value(self) -> float:
        """0 also for rows that differ by rounding only."""
        return 2 * self.squares / (self.count - 1) if self.squares > 100 * self.size else 0.0


@dataclass
class Misses:
    """Squared distances between what is found and what is expected, added up, and their number."""

    total: float = 0.0
    count: int = 0

    def add(self, found: Tensor, expected: Tensor) -> None:
        self.total += float((found.double() - expected.double()).square().sum())
        self.count += len(found)

    def error(self, spread: Spread) -> float | None:
        if self.count == 0 or math.isnan(self.total) or spread.value == 0:
            return None
        return float((self.total / self.count / spread.value) ** 0.5)


@dataclass
class _Layer:
    """What is added up of one layer; spread and misses of its pooled output are those of the mean over cells."""

    known: Tensor
    spread: Spread = field(default_factory=Spread)
    pooled_spread: Spread = field(default_factory=Spread)
    spatial: Misses = field(default_factory=Misses)
    equivariance: Misses = field(default_factory=Misses)
    invariance: Misses = field(default_factory=Misses)
    compared: set[Element] = field(default_factory=set)


class LayerSums:
    """Squared distances of the outputs of all layers, added up over images and elements."""

    def __init__(self, encoder: nn.Module, symmetries: ImageSymmetries) -> None:
        self.encoder, self.symmetries = encoder, symmetries
        self.left_out: dict[str, str] = {}
        self.layers: dict[str, _Layer] = {}

    def begin_batch(self, images: Tensor) -> None:
        """Remembers what the layers say of untransformed images."""
        outputs, left_out = self._outputs(images)
        self.left_out |= left_out
        for name, known in outputs.items():
            layer = self.layers.setdefault(name, _Layer(known))
            layer.known = known
            layer.spread.add(known)
            layer.pooled_spread.add(_pooled(known))

    def add(self, element: Element, moved_images: Tensor) -> None:
        """Compares with what they say of the images that the element has moved."""
        outputs, _ = self._outputs(moved_images)
        for name, found in outputs.items():
            layer = self.layers[name]
            if found.ndim == 4:
                self._add_maps(name, layer, element, found)
            layer.invariance.add(_pooled(found), _pooled(layer.known))

    def _outputs(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
        outputs, left_out = _layer_outputs(self.encoder, images)
        prepare = self.symmetries.prepare
        return {name: prepare(each) if each.ndim == 4 else each for name, each in outputs.items()}, left_out

    def _add_maps(self, name: str, layer: _Layer, element: Element, found: Tensor) -> None:
        try:
            expected = self.symmetries.act(element, layer.known)
        except ValueError as error:
            self.left_out.setdefault(name, f"measured after pooling only: {error}")
            return
        layer.compared.add(element)
        layer.spatial.add(found, expected)
        if not isinstance(self.encoder, Symmetric):
            return
        try:
            acted = self.encoder.act_on_layer(name, element.value, layer.known)
            if acted is not None:
                layer.equivariance.add(found, acted)
        except ValueError:
            # An action of c4 has no mirrorings: a mean over the turns alone would be taken for one over d4.
            layer.equivariance.total = float("nan")

    def errors(self) -> tuple[LayerErrors, ...]:
        """Of all layers that vary, in order; the others are left out."""
        errors = []
        for name, layer in self.layers.items():
            if layer.spread.value == 0:
                self.left_out[name] = "its output is the same for all images"
                continue
            if layer.compared:
                # Some elements could be compared, so the layer is not left out.
                self.left_out.pop(name, None)
            errors.append(
                LayerErrors(
                    name=name,
                    spatial_error=layer.spatial.error(layer.spread),
                    equivariance_error=layer.equivariance.error(layer.spread),
                    invariance_error=layer.invariance.error(layer.pooled_spread),
                    compared_elements=len(layer.compared),
                )
            )
        return tuple(errors)


def _pooled(output: Tensor) -> Tensor:
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output


def _layer_outputs(encoder: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Maps [N, C, h, w] and vectors [N, D] of the layers, in order, and why other layers are left out, by name.

    The layers are those that timm's `forward_intermediates` gives, or else the encoder's children (and the children of
    those that only hold others, `nn.Sequential` and `nn.ModuleList`).
    """
    if callable(getattr(encoder, "forward_intermediates", None)):
        maps = encoder.forward_intermediates(  # type: ignore[operator]
            images, output_fmt="NCHW", intermediates_only=True
        )
        info: Any = getattr(encoder, "feature_info", None) or []
        names = [str(entry["module"]) for entry in info]
        if len(names) != len(maps):
            names = [f"intermediate {number}" for number in range(len(maps))]
        return dict(zip(names, maps)), {}
    calls: dict[str, list[Any]] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy, because the next layer may change it in place.
            calls.setdefault(name, []).append(output.clone() if isinstance(output, Tensor) else output)

        return hook

    layers = dict(_children(encoder))
    handles = [module.register_forward_hook(remember(name)) for name, module in layers.items()]
    try:
        encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    outputs: dict[str, Tensor] = {}
    left_out = {name: "it is not called in the forward pass" for name in layers if name not in calls}
    for name, found in calls.items():
        try:
            outputs[name] = _as_map_or_vector(encoder, found, len(images))
        except ValueError as error:
            left_out[name] = str(error)
    return outputs, left_out


def _children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from _children(child, f"{prefix}{name}.")
        elif not isinstance(child, nn.Identity):
            yield f"{prefix}{name}", child


def _as_map_or_vector(encoder: nn.Module, found: list[Any], num_images: int) -> Tensor:
    """[N, C, h, w] or [N, D] of what the calls of a layer gave; raises ValueError with a reason if it is neither."""
    output = found[0]
    if len(found) > 1:
        raise ValueError(f"it is called {len(found)} times")
    if not isinstance(output, Tensor):
        raise ValueError(f"its output is a {type(output).__name__}, not one tensor")
    if output.ndim == 0 or len(output) != num_images:
        raise ValueError(f"its output has shape {tuple(output.shape)} for {num_images} images")
    if output.ndim == 4:
        # Of square images only a map with its channels last has two equal sides first and another one after them.
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.permute(0, 3, 1, 2) if channels_last else output
    if output.ndim == 2:
        return output
    if output.ndim == 3:
        patches = output[:, getattr(encoder, "num_prefix_tokens", 0) :]
        side = math.isqrt(patches.shape[1])
        if side * side == patches.shape[1] > 0:
            return patches.transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(f"its output of shape {tuple(output.shape)} is neither maps, tokens on a square grid nor vectors")
