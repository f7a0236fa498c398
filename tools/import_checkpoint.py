"""Brings checkpoints of the released seq-JEPA code into this project's layout.

    python tools/import_checkpoint.py 3diebench_rot_seqlen3.pth --out runs/seq-jepa-rotation
    python tools/import_checkpoint.py 3diebench_rotcol_seqlen4.pth --actions rotation_color --out runs/seq-jepa-colour
    python tools/import_checkpoint.py stl10_pls.pth --actions position --out runs/seq-jepa-saccades

The folder then holds encoder/ and sequence_model/ as after a run, for `ssl_equi.load_encoder`, `load_sequence_model`
and the scripts in evaluation/. Every tensor of the file must have its place here, or belong to a probe, which is left
out; every parameter here must be in the file. Files are opened without running code from them. Sizes are read from the
file, but for the number of attention heads, which shapes don't tell.

Actions are given to the model here as there: R1^-1 R2 as a quaternion xyzw, plain differences of hues, differences of
(row, column) in units of the image's sides. Before version 1.11, SciPy returned inverse rotations with the other sign;
for a checkpoint that was trained with it, --action-sign -1 turns the sign in the weights. (seq-JEPA asks for SciPy
1.15.1.) The released code exchanges row and column when it cuts glimpses out, so a move that it calls one along rows
was seen as one along columns; the folder says so (`transposed`), and scripts that read it take glimpses the same way.
They copy pixels, where the released code interpolates at a pitch of 32/31 pixels.

The weights stay under the terms of their authors.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
import tyro
from torch import Tensor

from ssl_equi.checkpoint import CheckpointError
from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.actions import ACTION_SIZES
from ssl_equi.encoders import create_encoder
from ssl_equi.export import EncoderCard, save_encoder
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.sequence_export import save_sequence_model
from ssl_equi.training_saccades import ACTION_SIZE as SACCADE_SIZE
from ssl_equi.training_saccades import SaccadeOptions, describe_saccades

Actions = Literal["rotation", "rotation_color", "position"]

# Beginnings of names there -> beginnings of names here; what follows is the same.
NAMES = {
    "encoder.": "encoder.",
    "target_encoder.": "target_encoder.",
    "action_proj.0.": "action_embedding.projection.",
    "action_proj.1.": "action_embedding.norm.",
    "agg_token": "aggregator.token",
    "transformer_encoder.transformer_encoder.layers.": "aggregator.transformer.layers.",
    "transformer_encoder.norm.": "aggregator.transformer.norm.",
    "predictor.": "predictor.layers.",
}
BESIDE_THE_MODEL = {"optimizer", "lr_scheduler", "min_loss", "epoch", "run_id", "args"}
PROBES = (
    "online_linprobe.", "online_res_probe.", "online_agg_probe.", "online_equiprobe.", "agg_classifier.",
    "res_classifier.", "pos_regressor.", "rot_regressor.", "color_regressor.", "blur_regressor.", "crop_regressor.",
    "jitter_regressor.",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What a checkpoint of one kind of action was trained on; the file says nothing of it."""

    data: str
    action_dim: int
    image_size: int
    observed_views: int
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]


QUATERNION_SIZE = 4
RENDERED_MEAN, RENDERED_STD = (0.5016, 0.5037, 0.5060), (0.1030, 0.0999, 0.0969)
VARIANTS: dict[Actions, Variant] = {
    "rotation": Variant("3diebench", ACTION_SIZES["rotation"], 128, 3, RENDERED_MEAN, RENDERED_STD),
    "rotation_color": Variant("3diebench", ACTION_SIZES["rotation_color"], 128, 4, RENDERED_MEAN, RENDERED_STD),
    "position": Variant("stl10", SACCADE_SIZE, 96, 4, (0.4467, 0.4398, 0.4066), (0.2241, 0.2215, 0.2239)),
}


@dataclass(frozen=True)
class Config:
    """Which checkpoint, and how it was trained."""

    file: Annotated[Path, tyro.conf.Positional]
    """The checkpoint: torch's format, or safetensors."""
    out: Path
    """Folder to make; it must not be there yet."""
    actions: Actions = "rotation"
    """What the model was told of: rotation, rotation_color (3DIEBench), or position (glimpses of STL-10)."""
    image_size: int | None = None
    """Side in pixels of the images that it was trained on; 128 for 3DIEBench, 96 for STL-10 when not given."""
    observed_views: int | None = None
    """Views that it observed in training; 3 for rotation and 4 for the others when not given."""
    heads: int = 4
    """Attention heads of each layer; 4 in the released checkpoints."""
    action_sign: Literal[1, -1] = 1
    """-1 if it was trained with SciPy before 1.11."""


# ---------------------------------------------------------------- the file


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The model's tensors by their names in the released code, without those of probes.

    Raises:
        CheckpointError: the file is missing, is no checkpoint, holds code, or holds what no seq-JEPA checkpoint does.
    """
    content = open_file(file)
    if "model" in content:
        unknown = [key for key in content if key != "model" and key not in BESIDE_THE_MODEL]
        if unknown:
            raise CheckpointError(
                f"{file} holds {unknown[0]!r} beside the model, which no seq-JEPA checkpoint does: give one of those"
            )
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no named tensors: give a checkpoint with the state of the model")
    tensors = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {name: value for name, value in tensors.items() if not name.startswith(PROBES)}


def open_file(file: Path) -> Mapping[str, Any]:
    """What the file holds, on the CPU; never by running code from it."""
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}: give the path of a checkpoint")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds something besides tensors, numbers and text, which could be code, so it is not opened: "
            "give a checkpoint of seq-JEPA as its authors released it"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no checkpoint ({error}): fetch it again") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}: give a checkpoint with the state of the model")
    return content


# ---------------------------------------------------------------- the model


def our_name(name: str) -> str | None:
    """A tensor's name here, or None for one that has no place."""
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


def their_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(f"{name} has no name in the released code")


def rows_of(tensors: Mapping[str, Tensor], name: str, dimensions: int = 2) -> tuple[int, ...]:
    """The shape of a weight from which a size is read."""
    if name not in tensors:
        raise CheckpointError(f"the checkpoint lacks {name!r}: give one of seq-JEPA with learned action embeddings")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{name!r} has shape {shape}, not {dimensions} dimensions: give a seq-JEPA checkpoint")
    return shape


def sizes_of(tensors: Mapping[str, Tensor], config: Config) -> SeqJEPAConfig:
    """The sizes that the shapes of the tensors tell.

    Raises:
        CheckpointError: a tensor is missing, or its actions have another width than those of `config.actions`.
    """
    action_width, action_dim = rows_of(tensors, "action_proj.0.weight")
    expected = VARIANTS[config.actions].action_dim
    if action_dim != expected:
        fitting = [kind for kind, variant in VARIANTS.items() if variant.action_dim == action_dim]
        cure = f"give --actions {fitting[0]}" if fitting else "its actions are of none of the known kinds"
        raise CheckpointError(
            f"'action_proj.0.weight' takes actions of {action_dim} numbers, but {config.actions} has {expected}: {cure}"
        )
    layers = "transformer_encoder.transformer_encoder.layers."
    return SeqJEPAConfig(
        action_dim=action_dim,
        action_width=action_width,
        layers=len({name.removeprefix(layers).split(".")[0] for name in tensors if name.startswith(layers)}),
        heads=config.heads,
        feedforward_width=rows_of(tensors, f"{layers}0.linear1.weight")[0],
        predictor_hidden_width=rows_of(tensors, "predictor.0.weight")[0],
        momentum_target=any(name.startswith("target_encoder.") for name in tensors),
    )


def architecture_of(tensors: Mapping[str, Tensor]) -> str:
    """timm's name of the encoder: a ResNet-18 with the usual stem, or with that for small images."""
    kernel = rows_of(tensors, "encoder.conv1.weight", dimensions=4)[2:]
    return "resnet18_small_images" if kernel == (3, 3) else "resnet18"


def build_objective(tensors: Mapping[str, Tensor], config: Config) -> SeqJEPA:
    """seq-JEPA in eval mode with the tensors of `read_tensors`.

    Raises:
        CheckpointError: a tensor has no place here, is missing, or has another shape; the sentence names the first.
    """
    image_size = config.image_size or VARIANTS[config.actions].image_size
    objective = SeqJEPA(create_encoder(architecture_of(tensors), image_size), sizes_of(tensors, config))
    own = objective.state_dict()
    for name, value in tensors.items():
        place = our_name(name)
        if place not in own:
            raise CheckpointError(f"the checkpoint holds {name!r}, which seq-JEPA doesn't have: give one of seq-JEPA")
        if value.shape != own[place].shape:
            raise CheckpointError(
                f"{name!r} has shape {tuple(value.shape)} and not {tuple(own[place].shape)}: give a whole checkpoint "
                "of seq-JEPA with a ResNet-18"
            )
    for place in own:
        if their_name(place) not in tensors:
            raise CheckpointError(f"the checkpoint lacks {their_name(place)!r}: give a whole checkpoint of seq-JEPA")
    objective.load_state_dict({str(our_name(name)): value for name, value in tensors.items()})
    if config.action_sign == -1:
        turn_sign(objective, config.actions)
    return objective.eval()


@torch.no_grad()
def turn_sign(objective: SeqJEPA, actions: Actions) -> None:
    """Makes the embedding of q what that of -q was; hues keep their sign.

    The embedded values stay what they were, so the running statistics of their batch norm hold as they are.
    """
    if actions == "position":
        raise CheckpointError("--action-sign is -1, but positions have no sign to turn: leave it out")
    assert objective.action_embedding is not None
    objective.action_embedding.projection.weight[:, :QUATERNION_SIZE].neg_()


# ---------------------------------------------------------------- the folder


def card_of(objective: SeqJEPA, architecture: str, config: Config) -> EncoderCard:
    """What users must know of the weights; the digest says from which file they come."""
    variant = VARIANTS[config.actions]
    digest = hashlib.sha256(config.file.read_bytes()).hexdigest()
    return EncoderCard(
        architecture=architecture,
        image_size=config.image_size or variant.image_size,
        mean_rgb=variant.mean_rgb,
        std_rgb=variant.std_rgb,
        parts={part: (columns.start, columns.stop) for part, columns in objective.parts.items()},
        objective="seq_jepa",
        trained_on=f"{variant.data}, by others: {config.file.name}, SHA-256 {digest[:16]}",
        license="other",
        tag=f"seq_jepa_{variant.data}_imported",
    )


def describe_sequences(config: Config) -> dict[str, Any]:
    """How the sequences were made that it was trained on, see `sequence_export.SequenceModel`."""
    observed_views = config.observed_views or VARIANTS[config.actions].observed_views
    if config.actions == "position":
        return describe_saccades(SaccadeOptions(saliency="file", inhibition="square", transposed=True), observed_views)
    return {"source": "rendered", "actions": config.actions, "observed_views": observed_views}


def main(config: Config) -> None:
    if config.out.exists():
        raise CheckpointError(f"{config.out} is there already: give --out a folder that isn't")
    tensors = read_tensors(config.file)
    objective = build_objective(tensors, config)
    card = card_of(objective, architecture_of(tensors), config)
    save_encoder(objective.encoder, config.out / "encoder", card)
    save_sequence_model(objective, config.out / "sequence_model", card, describe_sequences(config))
    target = "with" if objective.target_encoder is not None else "without"
    print(f"{card.architecture}, {objective.config.layers} layers, {target} a momentum target: {config.out}")
    print("The weights stay under the terms of their authors.")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
