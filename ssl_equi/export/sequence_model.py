"""Exported sequence models: encoder, aggregator, predictor and target encoder of seq-JEPA.

The `config.json` is that of an exported encoder with the sizes of the objective (`seq_jepa`) and how the sequences were
made that it was trained on (`sequences`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ssl_equi.errors import CheckpointError
from ssl_equi.export.encoder import EncoderCard, build_encoder, describe_encoder, read_encoder_config
from ssl_equi.export.folder import CONFIG_FILE, Export, check_sizes, open_module
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.base import SequenceObjective
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig

SEQUENCE_MODEL_FOLDER = "sequence_model"
# What `SequenceModel.sequences` says besides "source", by source.
NEEDED_KEYS = {
    "rendered": {"actions", "observed_views"},
    "augmented": {"observed_views", "preset", "action_encoding", "action_transforms"},
    "saccades": {"observed_views", "glimpses"},
}


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

    @property
    def told(self) -> ToldActions:
        """The actions between stored views that it was told; UserError if the file doesn't say."""
        return ToldActions.of(self.sequences.get("actions"))


def sequence_export(objective: SequenceObjective, card: EncoderCard, sequences: dict[str, Any]) -> Export:
    """The objective with all that its probes need; `card` is the encoder's, `sequences` as in `SequenceModel`."""
    config = describe_encoder(objective.encoder, card)
    config |= {"seq_jepa": asdict(objective.config), "sequences": sequences}
    return Export(objective, config, lambda: _build(config, Path("the export")))


def save_sequence_model(objective: SeqJEPA, folder: Path, card: EncoderCard, sequences: dict[str, Any]) -> None:
    """Writes what `sequence_export` makes of them, as `Export.write` does."""
    sequence_export(objective, card, sequences).write(folder)


def load_sequence_model(folder: str | Path) -> SequenceModel:
    """Opens a run's `sequence_model/`, on the CPU."""
    folder = Path(folder)
    config = read_encoder_config(folder)
    if not {"seq_jepa", "sequences"} <= config.keys():
        raise CheckpointError(f"{folder} holds an encoder without an aggregator: give the sequence_model/ of a run")
    sizes, sequences, trained = config["seq_jepa"], config["sequences"], config.get("ssl_equi", {})
    keys = NEEDED_KEYS.get(str(sequences.get("source"))) if isinstance(sequences, dict) else None
    if not isinstance(sizes, dict) or keys is None or not keys <= sequences.keys() or "trained_on" not in trained:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes no seq-JEPA (sequences are {sequences!r:.80}): export it again"
        )
    check_sizes(sizes, folder)
    data = config["pretrained_cfg"]
    return SequenceModel(
        objective=cast(SeqJEPA, open_module(folder, config, lambda: _build(config, folder), "seq-JEPA")),
        image_size=data["input_size"][-1],
        mean_rgb=tuple(data["mean"]),
        std_rgb=tuple(data["std"]),
        trained_on=trained["trained_on"],
        sequences=sequences,
    )


def _build(config: dict[str, Any], folder: Path) -> SeqJEPA:
    encoder = build_encoder(config, folder)
    encoder.num_features = config["num_features"]
    return SeqJEPA(encoder, SeqJEPAConfig(**config["seq_jepa"]))
