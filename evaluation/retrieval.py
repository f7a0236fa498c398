"""Retrieves views by their predicted features: does seq-JEPA's predictor know which view an action leads to?

    python evaluation/retrieval.py runs/seq_jepa                          from 1 and from 3 observed views
    python evaluation/retrieval.py runs/seq_jepa --contexts 1 2 3 4 5     from more of them
    python evaluation/retrieval.py runs/seq_jepa --split ood_rotation     among poses that were never trained on
    python evaluation/retrieval.py runs/seq_jepa --dataset 3diebench --data-dir SHARDS --split val

From the aggregate of the observed views and the action that leads from the last of them to another view of the same
object, the features of that view are predicted, and looked for among those of the object's views by the encoder that
the predictor was trained towards (the momentum encoder, if there is one). Once as in SIE, with the observed views in
the gallery, and once without them; `retrieval_error` looks among all views of the split. Prints the table with chance
beside each number and appends the records to results.json in the run's folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DatasetName, open_data
from ssl_equi.errors import UserError
from ssl_equi.pretraining_sequences import SEQUENCE_MODEL_FOLDER
from ssl_equi.probing.encode import encode_split
from ssl_equi.probing.records import ProbeRecord, append_records, print_records
from ssl_equi.probing.retrieval import Similarity
from ssl_equi.probing.sequence_retrieval import retrieval_records, retrieve_with_sequences
from ssl_equi.sequence_export import SequenceModel, load_sequence_model
from ssl_equi.training_views import check_translations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOTES = (
    "pred@M: predicted from M observed views; from 1, that view is asked for, too",
    "mrr, hit_at_k: rank of the true view among those of its object",
    "retrieval_error: 1 - (q_true . q_nearest)^2, rotations among all views; lower is better",
    "without_source: observed views are neither asked for nor in the gallery",
)


@dataclass(frozen=True)
class Config:
    """Which predictor looks for which views."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of recipes/seq_jepa.py on rendered views."""
    contexts: tuple[int, ...] = (1, 3)
    """Numbers of observed views, each less than the views of an object."""
    dataset: DatasetName = "3diebench-p"
    """3diebench-p and 3diebench-pt render themselves; 3diebench and 3diebench-t need --data-dir. Ordinary images have
    no known poses."""
    data_dir: str | Path | None = None
    """Folder with the data set; the user's cache folder for those that render themselves when not given."""
    split: str = "test"
    """Split whose views are looked for."""
    contexts_per_object: int | None = None
    """Contexts of each object; when not given one for each view, which is its last."""
    similarity: Similarity = "cosine"
    """What near means. seq-JEPA's loss and SIE's protocol: cosine."""
    whole_split: bool = True
    """Look among all views of the split, too; the effort grows with the square of its size."""
    out: Path | None = None
    """Folder of results.json; the run's when not given."""


def main(config: Config) -> None:
    model = load_sequence_model(config.run / SEQUENCE_MODEL_FOLDER)
    check_actions_are_known(config, model)
    data = open_data(config.dataset, config.data_dir, config.split, model.image_size)
    if not data.has_poses:
        raise UserError(
            f"--dataset is {config.dataset}, whose views have no known poses: retrieve among rendered views, such as "
            "those of 3diebench-p"
        )
    check_translations(model.sequences["actions"], data)
    check_contexts(config, data.evaluation)
    records = retrieve(config, model, data.evaluation)
    print_records(records, NOTES)
    out = config.out or config.run
    append_records(out / "results.json", records)
    print(f"added to {out / 'results.json'}")


def check_actions_are_known(config: Config, model: SequenceModel) -> None:
    """Raises UserError unless the model was told of changes of pose."""
    source = model.sequences["source"]
    if source != "rendered":
        raise UserError(
            f"{config.run} was trained on views of source '{source}': only rendered views have a gallery of known "
            "poses, so give a run on rendered views"
        )


def check_contexts(config: Config, views: ViewCollection) -> None:
    """Raises UserError unless contexts of these sizes leave a view to ask for."""
    largest = views.num_views - 1
    if not config.contexts or min(config.contexts) < 1 or max(config.contexts) > largest:
        raise UserError(
            f"--contexts is {config.contexts} and the objects of {config.dataset} have {views.num_views} views: give "
            f"numbers from 1 to {largest}"
        )
    if config.contexts_per_object is not None and not 1 <= config.contexts_per_object <= views.num_views:
        raise UserError(
            f"--contexts-per-object is {config.contexts_per_object}: give a number from 1 to {views.num_views}, the "
            "views of an object"
        )


def retrieve(config: Config, model: SequenceModel, views: ViewCollection) -> list[ProbeRecord]:
    """Every view is encoded once by the encoder, and once by the target encoder; then each context length in turn."""
    objective = model.objective.to(DEVICE)
    cache = encode_split(objective.encoder, views, model.mean_rgb, model.std_rgb, DEVICE)
    target_features, gallery_encoder = cache.features, "the encoder"
    if objective.target_encoder is not None:
        target = encode_split(objective.target_encoder, views, model.mean_rgb, model.std_rgb, DEVICE)
        target_features, gallery_encoder = target.features, "the momentum encoder"
    records = []
    for context_views in config.contexts:
        retrieval = retrieve_with_sequences(
            objective,
            cache,
            target_features,
            model.sequences["actions"],
            context_views=context_views,
            contexts_per_object=config.contexts_per_object,
            metric=config.similarity,
            whole_set=config.whole_split,
            device=DEVICE,
        )
        records += retrieval_records(retrieval, gallery_encoder, config.split)
    return records


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
