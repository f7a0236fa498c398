"""The ending of a run on sequences: what `pretraining.finish` does, for the aggregates too."""

from collections.abc import Sequence
from typing import Any

from ssl_equi.data.sources import DataSource
from ssl_equi.export.folder import Export
from ssl_equi.export.sequence_model import sequence_export
from ssl_equi.objectives.seq_jepa import SeqJEPA
from ssl_equi.probing.records import ProbeRecord
from ssl_equi.probing.sequence_tasks import quick_sequence_results
from ssl_equi.probing.suite import ProbeResults
from ssl_equi.training.pretraining import check_ending, encoder_card, finish
from ssl_equi.training.pretraining_config import PretrainingOptions
from ssl_equi.training.run import Run

SEQUENCE_MODEL_FOLDER = "sequence_model"


def check_sequences_ending(
    run: Run, config: PretrainingOptions, objective: SeqJEPA, data: DataSource, sequences: dict[str, Any]
) -> None:
    """What `pretraining.check_ending` does, for `finish_sequences`."""
    check_ending(run, config, objective, data, _exports(run, config, objective, data, sequences))


def finish_sequences(
    run: Run, config: PretrainingOptions, objective: SeqJEPA, data: DataSource, sequences: dict[str, Any]
) -> None:
    """Exports the whole sequence model beside the encoder, probes both, prints the table, writes the report.

    Aggregates are probed here if the actions between stored views are known; `evaluation/sequences.py` asks more of
    any sequence model.

    Args:
        sequences: how the sequences were made, see `sequence_export.SequenceModel`.
    """

    objective = run.whole(objective)

    def ask_aggregates(results: ProbeResults) -> tuple[list[ProbeRecord], Sequence[str]]:
        found = quick_sequence_results(
            objective,
            results.train_features,
            results.test_features,
            sequences["actions"],
            len(results.class_names),
            device=run.device,
            seed=config.seed,
            split_name=config.evaluation_split,
        )
        return found.records, found.notes

    rendered = sequences["source"] == "rendered"
    exports = _exports(run, config, objective, data, sequences)
    finish(run, config, objective, data, ask_aggregates if rendered else None, exports)


def _exports(
    run: Run, config: PretrainingOptions, objective: SeqJEPA, data: DataSource, sequences: dict[str, Any]
) -> dict[str, Export]:
    objective = run.whole(objective)
    card = encoder_card(run.name, config, objective, data)
    return {SEQUENCE_MODEL_FOLDER: sequence_export(objective, card, sequences)}
