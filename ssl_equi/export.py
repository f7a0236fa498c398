"""Encoders as files: safetensors + JSON, in timm's folder layout, loaded strictly and never through pickle.

`timm.create_model("local-dir:FOLDER", pretrained=True)` opens the folder wherever the architecture is timm's own;
`ssl_equi.load_encoder(FOLDER)` opens it for every architecture that timm or this project registers, and fills a
module of yours (`encoder=`) for any other.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ssl_equi.checkpoint import CheckpointError, load_module_strictly, write_checkpoint_files

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class EncoderCard:
    """What a user of the encoder must know besides its weights.

    Attributes:
        architecture: timm's name (ours included), or None for a module that timm doesn't know.
        model_args: arguments that `timm.create_model` needs besides the name.
        image_size: side in pixels of the images that it was trained on.
        mean_rgb, std_rgb: normalisation of images scaled to [0, 1].
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
    model_args: dict[str, Any] = dataclasses.field(default_factory=dict)


def save_encoder(encoder: nn.Module, folder: Path, card: EncoderCard) -> None:
    """Writes the bare encoder: `model.safetensors` and `config.json`, in the layout that timm reads.

    Raises:
        CheckpointError: the folder can't be written.
    """
    config = describe_encoder(encoder, card)
    tensors = module_tensors(encoder)
    write_checkpoint_files(
        folder,
        {
            WEIGHTS_FILE: safetensors.torch.save(tensors, metadata={"format": "pt"}),
            CONFIG_FILE: json.dumps(config, indent=1).encode(),
        },
    )


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
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(card.mean_rgb),
            "std": list(card.std_rgb),
            "num_classes": 0,
            "license": card.license,
        },
        "ssl_equi": {"objective": card.objective, "parts": card.parts, "trained_on": card.trained_on},
    }


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, on the CPU, as safetensors wants them."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def read_encoder_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of an exported encoder.

    Raises:
        CheckpointError: it is missing or not JSON.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no exported encoder ({CONFIG_FILE} is missing): give a run's encoder/")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}): export the encoder again") from error


def load_encoder(folder: str | Path, encoder: nn.Module | None = None) -> nn.Module:
    """The exported encoder in eval mode: images [N, 3, S, S], normalised as its config says, to features [N, D].

    Args:
        folder: a run's `encoder/`.
        encoder: a module to fill, for architectures that neither timm nor this project registers.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights belong to another architecture.
    """
    folder = Path(folder)
    config = read_encoder_config(folder)
    if encoder is None:
        encoder = build_encoder(config, folder)
    load_module_strictly(encoder, read_weights(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    encoder.num_features = config["num_features"]
    return encoder.eval()


def build_encoder(config: dict[str, Any], folder: Path) -> nn.Module:
    """The architecture of an exported encoder with random weights.

    Raises:
        CheckpointError: neither timm nor this project knows it.
        UserError: the folder states an argument that is not part of an architecture, such as a file of weights.
    """
    architecture = config.get("architecture")
    if architecture is None:
        raise CheckpointError(
            f"{folder} holds an encoder that timm doesn't know: build the module and pass it as encoder="
        )
    from ssl_equi.encoders.arguments import refuse_reserved_arguments
    from ssl_equi.encoders.create import timm_with_our_encoders

    arguments = {name: value for name, value in config.get("model_args", {}).items() if name != "num_classes"}
    refuse_reserved_arguments(arguments)
    timm = timm_with_our_encoders()
    if not timm.is_model(architecture):
        raise CheckpointError(f"{folder} holds a {architecture}, which this timm doesn't know: update timm")
    return timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: export the encoder again") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({error}): copy it or export the encoder again") from error


def parts_of(config: dict[str, Any]) -> dict[str, slice]:
    """Columns of the features by part, from an exported encoder's config."""
    return {name: slice(start, stop) for name, (start, stop) in config["ssl_equi"]["parts"].items()}


def normalization_of(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(mean, std) [3] each for RGB in [0, 1], from an exported encoder's config."""
    data = config["pretrained_cfg"]
    return torch.tensor(data["mean"]), torch.tensor(data["std"])
