"""What each layer of an encoder gives, brought to maps [N, C, h, w] where that is possible."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


def layer_outputs(encoder: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Maps [N, C, h, w] and vectors [N, D] of the layers, in order, and why other layers are left out.

    The layers are those that timm's `forward_intermediates` gives, or else the encoder's children (and the children of
    those that only hold others, `nn.Sequential` and `nn.ModuleList`).

    Args:
        images: [N, 3, S, S].

    Returns:
        outputs by name, and reasons by name.
    """
    if callable(getattr(encoder, "forward_intermediates", None)):
        return _intermediates(encoder, images), {}
    return _hooked(encoder, images)


def _intermediates(encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
    maps = encoder.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)  # type: ignore[operator]
    info: Any = getattr(encoder, "feature_info", None) or []
    names = [str(entry["module"]) for entry in info]
    if len(names) != len(maps):
        names = [f"intermediate {number}" for number in range(len(maps))]
    return dict(zip(names, maps))


def _hooked(encoder: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
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
