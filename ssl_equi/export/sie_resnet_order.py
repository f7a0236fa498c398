"""SIE's ResNets, recognised by the order and the shapes of their tensors.

The code of SIE, EquiCaps and CapsIE is under the GPL, so nothing here is taken from it, names neither. What is known is
the network (`ssl_equi.encoders.resnets`), and that a state dict keeps the order in which layers were made. So: the
first convolution of 7 x 7 pixels on 3 colours is the stem; each convolution is followed by its batch norm; blocks come
in order, and in each its convolutions, too, with the 1 x 1 convolution of the shortcut anywhere among them (behind one
of its shape). One tensor out of place, or of another shape, is an error. A file whose names are our own is matched by
name instead, which needs no order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.errors import LayoutError

STEM_SHAPE = (64, 3, 7, 7)
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ARCHITECTURES = ("sie_resnet18", "sie_resnet34", "sie_resnet50")


@dataclass(frozen=True)
class Found:
    """Where a file has the encoder."""

    architecture: str
    names: dict[str, str]
    """Names in the file -> names in the encoder."""
    prefix: str
    """What all of the encoder's names in the file begin with."""


def find_sie_resnet(tensors: Mapping[str, Tensor]) -> Found:
    """The encoder among all tensors of a checkpoint.

    Raises:
        LayoutError: none of SIE's ResNets is in it; the message names the first tensor that doesn't fit the one that
            fits longest.
    """
    stem = next((name for name, value in tensors.items() if value.shape == STEM_SHAPE), None)
    if stem is None:
        raise LayoutError(
            f"no tensor of shape {STEM_SHAPE}, the stem of SIE's ResNets, is in the checkpoint",
            "give one with the whole encoder",
        )
    furthest: tuple[int, LayoutError] | None = None
    for architecture in ARCHITECTURES:
        own = _own_shapes(architecture)
        prefix = stem.removesuffix("conv1.weight")
        if prefix != stem and all(prefix + name in tensors for name in own):
            return Found(architecture, {prefix + name: name for name in own}, prefix)
        names: dict[str, str] = {}
        try:
            _match_in_order(_starting_at(tensors, stem), own, names)
        except LayoutError as error:
            if furthest is None or len(names) > furthest[0]:
                furthest = len(names), error
        else:
            return Found(architecture, names, _common_prefix(list(names)))
    assert furthest is not None
    raise furthest[1]


def _own_shapes(architecture: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        encoder = timm_with_our_encoders().create_model(architecture, num_classes=0)
    return {name: value.shape for name, value in encoder.state_dict().items()}


def _starting_at(tensors: Mapping[str, Tensor], first: str) -> Iterator[tuple[str, torch.Size]]:
    names = list(tensors)
    for name in names[names.index(first) :]:
        yield name, tensors[name].shape


def _match_in_order(
    theirs: Iterator[tuple[str, torch.Size]], own: Mapping[str, torch.Size], names: dict[str, str]
) -> None:
    """Fills `names`, from names in the file to names in the encoder, until all are found or one doesn't fit."""
    for convolutions in _convolutions_of_blocks(own):
        path = [place for place in convolutions if "downsample" not in place]
        shortcut = [place for place in convolutions if "downsample" in place]
        while path or shortcut:
            open_places = path[:1] + shortcut
            name, shape = _next(theirs, open_places[0])
            place = next((place for place in open_places if own[place] == shape), None)
            if place is None:
                raise _misfit(name, shape, " or ".join(sorted({str(tuple(own[place])) for place in open_places})))
            (shortcut if place in shortcut else path).remove(place)
            names[name] = place
            _match_norm(theirs, _norm_behind(place), own, names)


def _match_norm(
    theirs: Iterator[tuple[str, torch.Size]], norm: str, own: Mapping[str, torch.Size], names: dict[str, str]
) -> None:
    for part in NORM_PARTS:
        place = f"{norm}.{part}"
        name, shape = _next(theirs, place)
        if shape != own[place] or not name.endswith(f".{part}"):
            raise _misfit(name, shape, f"the {part} {tuple(own[place])} of a batch norm")
        names[name] = place


def _next(theirs: Iterator[tuple[str, torch.Size]], place: str) -> tuple[str, torch.Size]:
    found = next(theirs, None)
    if found is None:
        raise LayoutError(
            f"the checkpoint ends where SIE's ResNet has {place!r}", "give one with the whole encoder in its order"
        )
    return found


def _misfit(name: str, shape: torch.Size, expected: str) -> LayoutError:
    return LayoutError(
        f"{name!r} has shape {tuple(shape)} where SIE's ResNet has {expected}",
        "give a checkpoint of SIE, EquiCaps or CapsIE as their code saved it (.safetensors keep no order)",
    )


def _convolutions_of_blocks(own: Mapping[str, torch.Size]) -> list[list[str]]:
    """Names of the convolutions' weights, the stem first, then block by block."""
    blocks: dict[str, list[str]] = {}
    for name, shape in own.items():
        if len(shape) == 4:
            blocks.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return list(blocks.values())


def _norm_behind(convolution: str) -> str:
    """conv1.weight -> bn1, downsample.0.weight -> downsample.1"""
    layer = convolution.removesuffix(".weight")
    return f"{layer[:-1]}1" if layer.endswith("downsample.0") else layer.replace("conv", "bn")


def _common_prefix(names: list[str]) -> str:
    """The longest beginning of whole components that all names share, with its last dot."""
    shared = []
    for components in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(components)) > 1:
            break
        shared.append(components[0])
    return "".join(f"{component}." for component in shared)
