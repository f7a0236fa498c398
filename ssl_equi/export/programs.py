"""Encoders as programs that run without this library: torch.export's files (`.pt2`) and ONNX.

A program takes images float32 [N, 3, S, S] in [0, 1], of the size S that the encoder was trained on and any number N,
normalises them itself, and gives the features of each part under the part's name: `all`, `inv`, `equi`, ... It is
compared with the encoder before it is written.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ssl_equi.errors import CheckpointError, EncoderError, UserError, described
from ssl_equi.export.encoder import image_size_of, load_encoder, normalization_of, parts_of, read_encoder_config
from ssl_equi.export.onnx_files import onnx_file, onnx_runner
from ssl_equi.files import write_atomically

ProgramFormat = Literal["torch", "onnx"]
SUFFIXES: dict[ProgramFormat, str] = {"torch": ".pt2", "onnx": ".onnx"}
INPUT = "images"
DESCRIPTION_FILE = "ssl_equi.json"
"""In a `.pt2` file: what `ProgrammedEncoder.description` says."""
LARGEST_DIFFERENCE = 1e-4
"""Between a program's features and the encoder's: absolute, relative to the largest one where that is above 1."""
TRACED_IMAGES = 2
COMPARED_IMAGES = (1, 5)


class ProgrammedEncoder(nn.Module):
    """Images float32 [N, 3, S, S] in [0, 1] to features [N, d] by the name of their part.

    Attributes:
        encoder: takes normalised images.
        image_size: S.
        parts: columns of the features by name.
        description: what files say of the encoder, each value as text: architecture, parts, image_size, mean_rgb,
            std_rgb, interpolation, crop_share, objective, trained_on, license.
    """

    mean_rgb: Tensor
    std_rgb: Tensor

    def __init__(self, encoder: nn.Module, parts: dict[str, slice], config: dict[str, Any]) -> None:
        super().__init__()
        data, labels = config["pretrained_cfg"], config.get("ssl_equi", {})
        mean, std = normalization_of(config)
        self.encoder, self.parts = encoder, parts
        self.register_buffer("mean_rgb", mean.view(3, 1, 1))
        self.register_buffer("std_rgb", std.view(3, 1, 1))
        self.image_size = int(data["input_size"][-1])
        self.description = {
            "architecture": str(config["architecture"]),
            "parts": json.dumps({part: [columns.start, columns.stop] for part, columns in parts.items()}),
            "image_size": str(self.image_size),
            "mean_rgb": json.dumps(data["mean"]),
            "std_rgb": json.dumps(data["std"]),
            "interpolation": str(data.get("interpolation", "")),
            "crop_share": str(data.get("crop_pct", "")),
            "objective": str(labels.get("objective", "")),
            "trained_on": str(labels.get("trained_on", "")),
            "license": str(data.get("license", "")),
        }
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder((images - self.mean_rgb) / self.std_rgb)
        return {part: features[:, columns] for part, columns in self.parts.items()}


def open_programmed(folder: Path) -> ProgrammedEncoder:
    """The exported encoder of a folder, with its normalisation and its parts."""
    config = read_encoder_config(folder)
    image_size = image_size_of(config, folder)
    encoder = load_encoder(folder)
    with torch.no_grad():  # timm's `num_features`, in folders that it saved, leaves out what some heads add
        width = encoder(random_images(1, image_size)).shape[1]
    parts = parts_of(config) if "ssl_equi" in config else {"all": slice(0, width)}
    for part, columns in parts.items():
        if columns.stop > width:
            raise CheckpointError(
                f"part {part!r} of {folder} ends at column {columns.stop}, and the encoder has {width} features: "
                "export the encoder again"
            )
    return ProgrammedEncoder(encoder, parts, config)


def write_program(folder: Path, file: Path, program_format: ProgramFormat) -> float:
    """Writes the exported encoder of a folder as a program, replacing the file as a whole.

    Returns:
        the largest difference from the encoder on random images, see `LARGEST_DIFFERENCE`.

    Raises:
        EncoderError: the format can't hold this architecture, or its features differ by more; nothing is written.
        UserError: the extra `onnx` is missing.
    """
    encoder = open_programmed(folder)
    content, difference = compared_program(encoder, program_format)
    write_atomically(file, content, CheckpointError)
    return difference


def compared_program(encoder: ProgrammedEncoder, program_format: ProgramFormat) -> tuple[bytes, float]:
    """The content of a program's file, and its largest difference from the encoder; raises as `write_program` does."""
    name = encoder.description["architecture"]
    try:
        content, run = _FORMATS[program_format](encoder)
        difference = largest_difference(encoder, run)
    except UserError:
        raise
    except Exception as error:  # whatever the exporters raise, about any operation of any architecture
        raise EncoderError(
            f"{name} can't be exported to {program_format} ({_reason(error)}): choose another format or architecture"
        ) from error
    if not difference <= LARGEST_DIFFERENCE:
        raise EncoderError(
            f"{name} gives other features once exported to {program_format} (they differ by {difference:.1e}, and "
            f"{LARGEST_DIFFERENCE:.0e} is the most): choose another format"
        )
    return content, difference


def random_images(count: int, image_size: int) -> Tensor:
    """Images [N, 3, S, S] in [0, 1], always the same."""
    return torch.rand(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def largest_difference(encoder: ProgrammedEncoder, run: "_Run") -> float:
    """Over parts and random images, in other numbers than were traced; see `LARGEST_DIFFERENCE`."""
    differences = []
    for count in COMPARED_IMAGES:
        images = random_images(count, encoder.image_size)
        found = run(images)
        for part, expected in encoder(images).items():
            if found[part].shape != expected.shape:
                raise ValueError(f"part {part!r} has shape {tuple(found[part].shape)}, not {tuple(expected.shape)}")
            differences.append((found[part] - expected).abs().max() / expected.abs().max().clamp(min=1))
    # The maximum of a tensor, unlike Python's, is NaN if one of them is.
    return float(torch.stack(differences).max())


# ---------------------------------------------------------------- formats

_Run = Callable[[Tensor], Mapping[str, Tensor]]


def _traced(encoder: ProgrammedEncoder) -> ExportedProgram:
    """The encoder as a graph for any number of images."""
    images = random_images(TRACED_IMAGES, encoder.image_size)
    with torch.no_grad():
        return torch.export.export(
            encoder, (images,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}}, strict=False
        )


def _torch_program(encoder: ProgrammedEncoder) -> tuple[bytes, _Run]:
    buffer = io.BytesIO()
    torch.export.save(_traced(encoder), buffer, extra_files={DESCRIPTION_FILE: json.dumps(encoder.description)})
    buffer.seek(0)
    return buffer.getvalue(), torch.export.load(buffer).module()


@contextmanager
def _without_fused_attention(encoder: nn.Module) -> Iterator[None]:
    """Inside, timm's attention is written as products and a softmax: ONNX has the fused one for 4 dimensions only."""
    fused: list[Any] = [layer for layer in encoder.modules() if getattr(layer, "fused_attn", False)]
    for layer in fused:
        layer.fused_attn = False
    try:
        yield
    finally:
        for layer in fused:
            layer.fused_attn = True


def _onnx_program(encoder: ProgrammedEncoder) -> tuple[bytes, _Run]:
    with _without_fused_attention(encoder):
        program = _traced(encoder)
    content = onnx_file(program, INPUT, list(encoder.parts), encoder.description)
    return content, onnx_runner(content, INPUT)


_FORMATS: dict[ProgramFormat, Callable[[ProgrammedEncoder], tuple[bytes, _Run]]] = {
    "torch": _torch_program,
    "onnx": _onnx_program,
}


def _reason(error: BaseException) -> str:
    """The first error of a chain, which says more than those that wrap it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return described(error)  # type: ignore[arg-type]
