"""Sequence models as files: encoder, aggregator, predictor and target encoder of seq-JEPA, without pickle.

The folder holds `model.safetensors` and `config.json`, which is that of an exported encoder with the sizes of the
objective (`seq_jepa`) and how the sequences were made that it was trained on (`sequences`).
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from ssl_equi.checkpoint import CheckpointError, load_module_strictly, write_checkpoint_files
from ssl_equi.export import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    EncoderCard,
    build_encoder,
    describe_encoder,
    module_tensors,
    read_encoder_config,
    read_weights,
)
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig


@dataclass(frozen=True)
class SequenceModel:
    """An exported sequence model.

    Attributes:
        objective: in eval mode; `encoder`, `aggregate`, `predict` and `target_features` are what one needs of it.
        image_size: side in pixels of the views that it was trained on.
        mean_rgb, std_rgb: normalisation of images scaled to [0, 1].
        trained_on: name and fingerprint of the training data.
        sequences: how the training sequences were made: "source" is rendered, augmented or saccades;
            "observed_views" is M; the rest are the options of that source.
    """

    objective: SeqJEPA
    image_size: int
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    trained_on: str
    sequences: dict[str, Any]


def save_sequence_model(objective: SeqJEPA, folder: Path, card: EncoderCard, sequences: dict[str, Any]) -> None:
    """Writes the objective with all that its probes need.

    Args:
        card: of the encoder.
        sequences: see `SequenceModel`; what JSON can hold.

    Raises:
        CheckpointError: the folder can't be written.
    """
    config = describe_encoder(objective.encoder, card)
    config |= {"seq_jepa": dataclasses.asdict(objective.config), "sequences": sequences}
    write_checkpoint_files(
        folder,
        {
            WEIGHTS_FILE: safetensors.torch.save(module_tensors(objective), metadata={"format": "pt"}),
            CONFIG_FILE: json.dumps(config, indent=1).encode(),
        },
    )


def load_sequence_model(folder: str | Path) -> SequenceModel:
    """Opens a run's `sequence_model/`.

    Raises:
        CheckpointError: a file is missing or damaged, it is no sequence model, or its weights have another layout.
    """
    folder = Path(folder)
    config = read_encoder_config(folder)
    if not {"seq_jepa", "sequences"} <= config.keys():
        raise CheckpointError(f"{folder} holds an encoder without an aggregator: give the sequence_model/ of a run")
    encoder = build_encoder(config, folder)
    encoder.num_features = config["num_features"]
    try:
        objective = SeqJEPA(encoder, SeqJEPAConfig(**config["seq_jepa"]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} describes no seq-JEPA ({error}): export it again") from error
    load_module_strictly(objective, read_weights(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    data = config["pretrained_cfg"]
    return SequenceModel(
        objective=objective.eval(),
        image_size=data["input_size"][-1],
        mean_rgb=tuple(data["mean"]),
        std_rgb=tuple(data["std"]),
        trained_on=config["ssl_equi"]["trained_on"],
        sequences=config["sequences"],
    )
