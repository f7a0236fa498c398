"""Encoders and sequence models from checkpoints of the released seq-JEPA code.

Actions are given to the model here as there: R1^-1 R2 as a quaternion xyzw, plain differences of hues, differences of
(row, column) in units of the image's sides. The released code exchanges row and column when it cuts glimpses out, so a
move that it calls one along rows was seen as one along columns; the folder says so (`transposed`), and scripts that
read it take glimpses the same way. They copy pixels, where the released code interpolates at a pitch of 32/31 pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, LayoutError
from ssl_equi.export.encoder import EncoderCard
from ssl_equi.export.layouts import RENDERED, Normalisation, imported_card
from ssl_equi.export.tensors import check_complete, named_tensors
from ssl_equi.geometry.poses import ROTATION_ACTION_SIZE
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig

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
    """How a checkpoint was trained, of which the file says nothing."""

    actions: Actions
    """What the model was told of."""
    action_dim: int
    data: str
    observed_views: int
    normalisation: Normalisation
    heads: int = 4
    """Attention heads of each layer."""
    action_sign: Literal[1, -1] = 1
    """-1 if it was trained with SciPy before 1.11."""


_RENDERED = replace(RENDERED, image_size=128)
_STL10 = Normalisation((0.4467, 0.4398, 0.4066), (0.2241, 0.2215, 0.2239), 96)
VARIANTS: dict[Actions, Variant] = {
    "rotation": Variant("rotation", ToldActions.of("rotation").width, "3diebench", 3, _RENDERED),
    "rotation_color": Variant("rotation_color", ToldActions.of("rotation_color").width, "3diebench", 4, _RENDERED),
    "position": Variant("position", 2, "stl10", 4, _STL10),
}
"""The released ones."""
# How the released code takes glimpses, as `views.saccades.describe_saccades` writes it; a test compares the two.
GLIMPSES = {
    "saliency": "file",
    "saliency_file": None,
    "glimpse_size": 32,
    "inhibition": "square",
    "inhibition_radius_px": 16,
    "augmentation": "none",
    "transposed": True,
}


def model_tensors(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The model's tensors by their names in the released code, without those of probes; `source` is for messages."""
    unknown = [key for key in content if key != "model" and key not in BESIDE_THE_MODEL]
    if "model" in content and unknown:
        raise LayoutError(
            f"{source} holds {unknown[0]!r} beside the model, which no seq-JEPA checkpoint does", "give one of those"
        )
    tensors = named_tensors(content, source)
    return {name: value for name, value in tensors.items() if not name.startswith(PROBES)}


def sizes_of(tensors: Mapping[str, Tensor], variant: Variant) -> SeqJEPAConfig:
    """The sizes that the shapes of the tensors tell."""
    action_width, action_dim = _shape(tensors, "action_proj.0.weight")
    if action_dim != variant.action_dim:
        fitting = [kind for kind, other in VARIANTS.items() if other.action_dim == action_dim]
        cure = f"give --actions {fitting[0]}" if fitting else "its actions are of none of the known kinds"
        raise CheckpointError(
            f"'action_proj.0.weight' takes actions of {action_dim} numbers, but {variant.actions} has "
            f"{variant.action_dim}: {cure}"
        )
    layers = "transformer_encoder.transformer_encoder.layers."
    return SeqJEPAConfig(
        action_dim=action_dim,
        action_width=action_width,
        layers=len({name.removeprefix(layers).split(".")[0] for name in tensors if name.startswith(layers)}),
        heads=variant.heads,
        feedforward_width=_shape(tensors, f"{layers}0.linear1.weight")[0],
        predictor_hidden_width=_shape(tensors, "predictor.0.weight")[0],
        momentum_target=any(name.startswith("target_encoder.") for name in tensors),
    )


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int = 2) -> tuple[int, ...]:
    """The shape of a weight from which a size is read."""
    if name not in tensors:
        raise LayoutError(f"the checkpoint lacks {name!r}", "give one of seq-JEPA with learned action embeddings")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise LayoutError(f"{name!r} has shape {shape}, not {dimensions} dimensions", "give a seq-JEPA checkpoint")
    return shape


def architecture_of(tensors: Mapping[str, Tensor]) -> str:
    """timm's name of the encoder: a ResNet-18 with the usual stem, or with that for small images."""
    kernel = _shape(tensors, "encoder.conv1.weight", dimensions=4)[2:]
    return "resnet18_small_images" if kernel == (3, 3) else "resnet18"


def build_objective(tensors: Mapping[str, Tensor], variant: Variant) -> SeqJEPA:
    """seq-JEPA in eval mode with the tensors of `model_tensors`; a LayoutError names the first that doesn't fit."""
    encoder = create_encoder(architecture_of(tensors), variant.normalisation.image_size)
    objective = SeqJEPA(encoder, sizes_of(tensors, variant))
    own = objective.state_dict()
    names_there: dict[str, str] = {}  # -> names here
    for place in own:
        theirs, ours = next((theirs, ours) for theirs, ours in NAMES.items() if place.startswith(ours))
        names_there[theirs + place.removeprefix(ours)] = place
    unknown = next((name for name in tensors if name not in names_there), None)
    if unknown is not None:
        raise LayoutError(f"the checkpoint holds {unknown!r}, which seq-JEPA doesn't have", "give one of seq-JEPA")
    own_there = {name: own[place] for name, place in names_there.items()}
    found = {name: (name, value) for name, value in tensors.items()}
    check_complete(own_there, found, "{}", "seq-JEPA", "give a whole checkpoint of seq-JEPA with a ResNet-18")
    objective.load_state_dict({place: tensors[name] for name, place in names_there.items()})
    if variant.action_sign == -1:
        if variant.actions == "position":
            raise CheckpointError("--action-sign is -1, but positions have no sign to turn: leave it out")
        assert objective.action_embedding is not None
        # The embedding of q becomes what that of -q was; hues keep their sign. The embedded values stay what they were,
        # so the running statistics of their batch norm hold as they are.
        with torch.no_grad():
            objective.action_embedding.projection.weight[:, :ROTATION_ACTION_SIZE].neg_()
    return objective.eval()


def card_of(objective: SeqJEPA, architecture: str, variant: Variant, trained_on: str) -> EncoderCard:
    """What users must know of the weights; `trained_on` says on which data, and from which file they come."""
    parts = {part: (columns.start, columns.stop) for part, columns in objective.parts.items()}
    return imported_card(architecture, variant.normalisation, "seq_jepa", variant.data, trained_on, parts)


def describe_sequences(variant: Variant) -> dict[str, Any]:
    """How the sequences were made that it was trained on, see `sequence_model.SequenceModel`."""
    if variant.actions == "position":
        return {"source": "saccades", "observed_views": variant.observed_views, "glimpses": dict(GLIMPSES)}
    actions = ToldActions.of(variant.actions).describe()
    return {"source": "rendered", "actions": actions, "observed_views": variant.observed_views}
