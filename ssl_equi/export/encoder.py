"""Exported encoders, in timm's folder layout.

`timm.create_model("local-dir:FOLDER", pretrained=True)` opens the folder wherever the architecture is timm's own;
`ssl_equi.load_encoder(FOLDER)` opens it for every architecture that timm or this project registers, and fills a
module of yours (`encoder=`) for any other.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_equi.encoders.backbones import refuse_reserved_arguments
from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.errors import CheckpointError
from ssl_equi.export.folder import (
    CONFIG_FILE,
    LARGEST_SIZE,
    WEIGHTS_FILE,
    Export,
    check_sizes,
    open_module,
    read_config,
)

ENCODER_FOLDER = "encoder"  # within a run's folder


@dataclass(frozen=True)
class EncoderCard:
    """What a user of the encoder must know besides its weights.

    Attributes:
        architecture: timm's name (ours included), or None for a module that timm doesn't know.
        model_args: arguments that `timm.create_model` needs besides the name.
        image_size: side in pixels of the images that it was trained on.
        mean_rgb, std_rgb: normalisation of images scaled to [0, 1].
        crop_share: side of the central crop that is evaluated, as a share of the image's shorter side.
        interpolation: how images are resized.
        parts: columns [start, stop) of the features by name (`all`, `inv`, `equi`).
        objective: name of the method that trained it.
        trained_on: name and fingerprint of the training data.
        license: licence of the weights.
        tag: label of these weights, as timm's `architecture.tag`.
    """

    architecture: str | None
    image_size: int
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    parts: dict[str, tuple[int, int]]
    objective: str
    trained_on: str
    license: str
    tag: str
    model_args: dict[str, Any] = field(default_factory=dict)
    crop_share: float = 1.0
    interpolation: str = "bicubic"


def encoder_export(encoder: nn.Module, card: EncoderCard) -> Export:
    """The bare encoder, in the layout that timm reads."""
    config = describe_encoder(encoder, card)
    known = card.architecture is not None
    return Export(encoder, config, (lambda: build_encoder(config, Path("the export"))) if known else None)


def save_encoder(encoder: nn.Module, folder: Path, card: EncoderCard) -> None:
    """Writes the bare encoder, as `Export.write` does."""
    encoder_export(encoder, card).write(folder)


def describe_encoder(encoder: nn.Module, card: EncoderCard) -> dict[str, Any]:
    """The `config.json` of an exported encoder."""
    return {
        "architecture": card.architecture,
        "num_classes": 0,
        "num_features": int(encoder.num_features),  # type: ignore[arg-type]
        "model_args": card.model_args,
        "pretrained_cfg": {
            "tag": card.tag,
            "custom_load": False,
            "input_size": [3, card.image_size, card.image_size],
            "fixed_input_size": "img_size" in card.model_args,
            "interpolation": card.interpolation,
            "crop_pct": card.crop_share,
            "mean": list(card.mean_rgb),
            "std": list(card.std_rgb),
            "num_classes": 0,
            "license": card.license,
        },
        "ssl_equi": {"objective": card.objective, "parts": card.parts, "trained_on": card.trained_on},
    }


def load_encoder(folder: str | Path, encoder: nn.Module | None = None) -> nn.Module:
    """The exported encoder in eval mode: images [N, 3, S, S], normalised as its config says, to features [N, D].

    Args:
        folder: a run's `encoder/`. A CheckpointError names what is missing or damaged, or of another architecture.
        encoder: a module to fill, for architectures that neither timm nor this project registers.
    """
    folder = Path(folder)
    config = read_encoder_config(folder)
    build = partial(build_encoder, config, folder) if encoder is None else lambda: encoder
    filled = open_module(folder, config, build, "encoder")
    if "num_features" in config:
        filled.num_features = config["num_features"]
    return filled


def read_encoder_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of an exported encoder, whose entries have the types and ranges that readers rely on."""
    folder = Path(folder)
    inner = folder / ENCODER_FOLDER
    if (inner / CONFIG_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} is the folder of a run: give {inner}")
    if (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} is the folder of a run that has exported no encoder yet, which comes at the end: let it go on, "
            "with --resume if it was stopped"
        )
    config = read_config(folder, "encoder", "give a run's encoder/")
    _check_encoder_config(config, folder)
    return config


def _check_encoder_config(config: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError for an entry that is not what `describe_encoder` or timm writes under its name."""

    def require(holds: bool, name: str, value: Any) -> None:
        if not holds:
            file = folder / CONFIG_FILE
            raise CheckpointError(f"{file} describes no encoder ({name} is {value!r:.80}): export the encoder again")

    architecture, num_features = config.get("architecture"), config.get("num_features", 1)
    arguments, data = config.get("model_args", {}), config.get("pretrained_cfg", {})
    require(isinstance(architecture, str | None), "architecture", architecture)
    require(type(num_features) is int and num_features > 0, "num_features", num_features)
    require(isinstance(arguments, dict), "model_args", arguments)
    require(isinstance(data, dict), "pretrained_cfg", data)
    check_sizes(arguments, folder)
    # Folders that timm saved by itself may say nothing of images, and have no parts.
    if data or "ssl_equi" in config:
        for name, least in (("input_size", 0), ("mean", -math.inf), ("std", 0)):
            numbers = (int,) if name == "input_size" else (int, float)
            three: Any = data.get(name)
            are_three = isinstance(three, list) and len(three) == 3 and all(type(each) in numbers for each in three)
            require(are_three and all(least < each < math.inf for each in three), name, three)
        size = data["input_size"]
        require(size[1] == size[2] <= LARGEST_SIZE, "input_size", size)
    if "ssl_equi" in config:
        parts: Any = config["ssl_equi"].get("parts") if isinstance(config["ssl_equi"], dict) else None
        require(isinstance(parts, dict) and len(parts) > 0 and "num_features" in config, "ssl_equi.parts", parts)
        for part, columns in parts.items():
            are_two = isinstance(columns, list) and len(columns) == 2 and all(type(each) is int for each in columns)
            require(are_two and 0 <= columns[0] < columns[1], f"part {part!r}", columns)


def encoder_folder(folder: Path) -> Path:
    """The exported encoder's folder: the one that is given, or `encoder/` in it, of a run's."""
    whole = (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
    inner = folder / ENCODER_FOLDER
    return inner if not whole and (inner / CONFIG_FILE).is_file() else folder


def image_size_of(config: dict[str, Any], folder: Path) -> int:
    """Side in pixels of the images that it was trained on; CheckpointError for what timm may leave out."""
    if not config.get("pretrained_cfg"):
        raise CheckpointError(f"{folder} says nothing of images' size and normalisation: export the encoder again")
    return int(config["pretrained_cfg"]["input_size"][-1])


def build_encoder(config: dict[str, Any], folder: Path) -> nn.Module:
    """The architecture of an exported encoder with random weights."""
    architecture = config.get("architecture")
    if architecture is None:
        raise CheckpointError(
            f"{folder} holds an encoder that timm doesn't know: build the module and pass it as encoder="
        )
    # timm saves both, whatever they are.
    saved_by_timm = ("num_classes", "in_chans")
    arguments = {name: value for name, value in config.get("model_args", {}).items() if name not in saved_by_timm}
    refuse_reserved_arguments(arguments)
    timm = timm_with_our_encoders()
    if not timm.is_model(architecture):
        raise CheckpointError(f"{folder} holds a {architecture}, which this timm doesn't know: update timm")
    return timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)


def parts_of(config: dict[str, Any]) -> dict[str, slice]:
    """Columns of the features by part, from an exported encoder's config."""
    return {name: slice(start, stop) for name, (start, stop) in config["ssl_equi"]["parts"].items()}


def normalization_of(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(mean, std) [3] each for RGB in [0, 1], from an exported encoder's config."""
    data = config["pretrained_cfg"]
    return torch.tensor(data["mean"]), torch.tensor(data["std"])
