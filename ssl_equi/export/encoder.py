"""Encoders as files: safetensors + JSON, in timm's folder layout, loaded strictly and never through pickle.

`timm.create_model("local-dir:FOLDER", pretrained=True)` opens the folder wherever the architecture is timm's own;
`ssl_equi.load_encoder(FOLDER)` opens it for every architecture that timm or this project registers, and fills a
module of yours (`encoder=`) for any other. Its `config.json` holds the SHA-256 of the weights, so that damage is found;
folders of earlier versions and of timm don't.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor, nn

from ssl_equi.checkpoint import load_module_strictly, read_tensors, refuse_other_tensors, write_checkpoint_files
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.files import parse_json_object, read_json_object, sha256_of_file

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
WEIGHTS_HASH = "weights_sha256"
LARGEST_SIZE = 16384  # of a module that a file describes: a width, a depth, the side of an image


@dataclasses.dataclass(frozen=True)
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
    model_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    crop_share: float = 1.0
    interpolation: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class Export:
    """What a folder is to hold: a module's weights, and what describes it.

    Attributes:
        module: whose weights are written.
        config: `config.json` but for the checksum of the weights.
        build: makes the described module with random weights; None if only its user can.
    """

    module: nn.Module
    config: dict[str, Any]
    build: Callable[[], nn.Module] | None

    def write(self, folder: Path) -> None:
        """Writes the folder as a whole.

        Raises:
            CheckpointError: the folder can't be written, or the module holds what safetensors can't.
        """
        write_checkpoint_files(folder, self._files())

    def check(self) -> None:
        """Does what writing the folder and opening it again will do, but for the disk.

        Raises:
            UserError: the export could not be written or opened.
        """
        files = self._files()
        parse_json_object(files[CONFIG_FILE], CONFIG_FILE, CheckpointError, "choose other options")
        if self.build is not None:
            state = _state_without_memory(self.build)
            if state is None:
                with torch.random.fork_rng(devices=[]):
                    state = self.build().state_dict()
            refuse_other_tensors(state, safetensors.torch.load(files[WEIGHTS_FILE]), Path(WEIGHTS_FILE))

    def _files(self) -> dict[str, bytes]:
        weights = safetensors.torch.save(module_tensors(self.module), metadata={"format": "pt"})
        described = self.config | {WEIGHTS_HASH: hashlib.sha256(weights).hexdigest()}
        return {WEIGHTS_FILE: weights, CONFIG_FILE: json.dumps(described, indent=1).encode()}


def encoder_export(encoder: nn.Module, card: EncoderCard) -> Export:
    """The bare encoder, in the layout that timm reads."""
    config = describe_encoder(encoder, card)
    known = card.architecture is not None
    return Export(encoder, config, (lambda: build_encoder(config, Path("the export"))) if known else None)


def save_encoder(encoder: nn.Module, folder: Path, card: EncoderCard) -> None:
    """Writes the bare encoder: `model.safetensors` and `config.json`, in the layout that timm reads.

    Raises:
        CheckpointError: the folder can't be written, or the encoder holds what safetensors can't.
    """
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


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, on the CPU, as safetensors wants them.

    Weights that layers share are there under each name, in memory of their own: so the file has the names that timm
    and `load_state_dict` ask for, and a module that ties its layers ties them again.

    Raises:
        CheckpointError: the module's state holds something else than dense tensors.
    """
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
            what = "a tensor without values" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise CheckpointError(f"{name} of the {type(module).__name__} is {what}: export a module of dense tensors")
        tensor = value.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in memory:
            tensor = tensor.clone()
        memory.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


def read_encoder_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of an exported encoder, whose entries have the types and ranges that readers rely on.

    Raises:
        CheckpointError: it is missing, is not JSON, or describes no encoder.
    """
    _refuse_other_folders(folder)
    file = Path(folder) / CONFIG_FILE
    config = read_json_object(file, CheckpointError, "export the encoder again")
    _check_encoder_config(config, file)
    return config


def _refuse_other_folders(folder: Path) -> None:
    """Raises CheckpointError for what is no exported encoder's folder; of a run's folder it names the one within."""
    folder = Path(folder)
    inner = folder / "encoder"
    if (inner / CONFIG_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} is the folder of a run: give {inner}")
    if (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} is the folder of a run that has exported no encoder yet, which comes at the end: let it go on, "
            "with --resume if it was stopped"
        )
    if not (folder / CONFIG_FILE).is_file():
        why = f"{CONFIG_FILE} is missing" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"{folder} holds no exported encoder ({why}): give a run's encoder/")


def _check_encoder_config(config: dict[str, Any], file: Path) -> None:
    """Raises CheckpointError for an entry that is not what `describe_encoder` or timm writes under its name."""

    def refuse(name: str, value: Any) -> NoReturn:
        raise CheckpointError(f"{file} describes no encoder ({name} is {value!r:.80}): export the encoder again")

    if not isinstance(config.get("architecture"), str | None):
        refuse("architecture", config["architecture"])
    if not _is_count(config.get("num_features", 1)):
        refuse("num_features", config["num_features"])
    if not isinstance(config.get("model_args", {}), dict):
        refuse("model_args", config["model_args"])
    check_sizes(config.get("model_args", {}), file)
    data = config.get("pretrained_cfg", {})
    if not isinstance(data, dict):
        refuse("pretrained_cfg", data)
    if data or "ssl_equi" in config:
        size, mean, std = (data.get(name, ()) for name in ("input_size", "mean", "std"))
        if not (_are_three(size, _is_count) and size[1] == size[2] <= LARGEST_SIZE):
            refuse("input_size", size)
        if not _are_three(mean, _is_number):
            refuse("mean", mean)
        if not (_are_three(std, _is_number) and min(std) > 0):
            refuse("std", std)
    if "ssl_equi" in config:
        parts = config["ssl_equi"].get("parts") if isinstance(config["ssl_equi"], dict) else None
        if not isinstance(parts, dict) or not parts or "num_features" not in config:
            refuse("ssl_equi.parts", parts)
        for part, columns in parts.items():
            are_two = isinstance(columns, list) and len(columns) == 2 and all(type(each) is int for each in columns)
            if not (are_two and 0 <= columns[0] < columns[1]):
                refuse(f"part {part!r}", columns)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_three(values: Any, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(is_one(value) for value in values)


def check_sizes(described: Any, file: Path) -> None:
    """Raises CheckpointError if a number in what a file says of a module is beyond all sizes of modules."""
    if isinstance(described, dict | list):
        for value in described.values() if isinstance(described, dict) else described:
            check_sizes(value, file)
    elif isinstance(described, int) and abs(described) > LARGEST_SIZE:
        raise CheckpointError(
            f"{file} describes a module with a size of {described:,}, and {LARGEST_SIZE:,} is the most: export it again"
        )


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
        encoder = built_and_filled(lambda: build_encoder(config, folder), folder, config)
    else:
        load_module_strictly(encoder, read_weights(folder, config), folder / WEIGHTS_FILE)
    if "num_features" in config:
        encoder.num_features = config["num_features"]
    return encoder.eval()


def built_and_filled(
    build: Callable[[], nn.Module], folder: Path, config: dict[str, Any], what: str = "encoder"
) -> nn.Module:
    """The module that a folder's config describes, with the folder's weights.

    Args:
        build: makes it with random weights.
        what: it is, for messages.

    Raises:
        CheckpointError: it can't be made, or the weights are damaged or have other names and shapes.
        UserError: as `build` does.
    """
    file = folder / WEIGHTS_FILE
    weights = read_weights(folder, config)
    # What the config says decides about memory, so it is compared with the weights before any is taken.
    state = _state_without_memory(build)
    if state is not None:
        refuse_other_tensors(state, weights, file)
    try:
        module = build()
    except UserError:
        raise
    except Exception as error:  # whatever sizes that don't go together raise, in this project's modules or in timm's
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes no {what} ({type(error).__name__}: {error}): export it again"
        ) from error
    load_module_strictly(module, weights, file)
    return module


def _state_without_memory(build: Callable[[], nn.Module]) -> dict[str, Tensor] | None:
    """Names and shapes of a module's tensors; None if it can't be made without values."""
    try:
        with torch.device("meta"):
            return build().state_dict()
    except Exception:  # making it with values tells what is wrong, if anything is
        return None


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
    from ssl_equi.encoders.backbones import refuse_reserved_arguments
    from ssl_equi.encoders.catalogue import timm_with_our_encoders

    # timm saves both, whatever they are.
    saved_by_timm = ("num_classes", "in_chans")
    arguments = {name: value for name, value in config.get("model_args", {}).items() if name not in saved_by_timm}
    refuse_reserved_arguments(arguments)
    timm = timm_with_our_encoders()
    if not timm.is_model(architecture):
        raise CheckpointError(f"{folder} holds a {architecture}, which this timm doesn't know: update timm")
    return timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)


def read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of an exported folder, on the CPU.

    Args:
        config: of the folder, which may hold their checksum.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = folder / WEIGHTS_FILE
    weights = read_tensors(file, "copy the folder or export again")
    if WEIGHTS_HASH in config and config[WEIGHTS_HASH] != sha256_of_file(file):
        raise CheckpointError(
            f"{file} is damaged (its SHA-256 is not the one in {CONFIG_FILE}): copy the folder or export again"
        )
    return weights


def parts_of(config: dict[str, Any]) -> dict[str, slice]:
    """Columns of the features by part, from an exported encoder's config."""
    return {name: slice(start, stop) for name, (start, stop) in config["ssl_equi"]["parts"].items()}


def normalization_of(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(mean, std) [3] each for RGB in [0, 1], from an exported encoder's config."""
    data = config["pretrained_cfg"]
    return torch.tensor(data["mean"]), torch.tensor(data["std"])
