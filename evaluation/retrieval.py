"""Retrieves views by their predicted embeddings: does a predictor know which view an action leads to?

    python evaluation/retrieval.py runs/sie                               from view 0 of each object, as in SIE
    python evaluation/retrieval.py runs/sie --sources 5                   from the first five views of each
    python evaluation/retrieval.py runs/seq_jepa                          from 1 and from 3 observed views
    python evaluation/retrieval.py runs/seq_jepa --contexts 1 2 3 4 5     from more of them
    python evaluation/retrieval.py runs/seq_jepa --split ood_rotation     among poses that were never trained on
    python evaluation/retrieval.py runs/sie --dataset 3diebench --data-dir SHARDS --split val

Opens the `predictor/` of a two-view method (SIE, EquiMod, SEN, conditional BYOL, EquiCaps, CapsIE) or the
`sequence_model/` of seq-JEPA. From the embedding of one view, or the aggregate of the observed ones, and the action
that leads to another view of the same object, the embedding of that view is predicted, and looked for among those of
the object's views: once as in SIE, with the observed views in the gallery, and once without them; `retrieval_error`
looks among all views of the split. seq-JEPA's gallery is encoded by what the predictor was trained towards (the
momentum encoder, if there is one). A two-view predictor is also asked whether it is consistent: how far is it from
staying by the identity, from coming back by the inverse, from doing two actions as one (`predictor_consistency`)? And
all are asked how much larger their error is with the actions of other objects: 0 means that they don't use what they
are told (`action_gain`). Prints the table with chance beside each number and appends the records to results.json in the
run's folder.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.sources import DatasetName, DataSource, open_data
from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import encode_split
from ssl_equi.evaluation.predictors.action_gain import action_gain, gain_records, predictor_gain
from ssl_equi.evaluation.predictors.consistency import consistency_records, predictor_consistency
from ssl_equi.evaluation.predictors.retrieval import Similarity, retrieval_records
from ssl_equi.evaluation.predictors.two_views import retrieve_with_predictor
from ssl_equi.evaluation.results import ProbeRecord, append_records, refuse_other_content
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.sequences.retrieval import require_equal_galleries, retrieve_with_sequences
from ssl_equi.evaluation.suite import noted_if_unanswered
from ssl_equi.evaluation.tables import print_records
from ssl_equi.export.encoder import load_encoder, normalization_of, read_encoder_config
from ssl_equi.export.predictor import PREDICTOR_FOLDER, load_predictor
from ssl_equi.export.sequence_model import SEQUENCE_MODEL_FOLDER, load_sequence_model
from ssl_equi.latents.actions import actions_as_told
from ssl_equi.options import Count, Width

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEFAULT_CONTEXTS = (1, 3)
NOTES = (
    "pred@M: predicted from M observed views; from 1, that view is asked for, too",
    "mrr, hit_at_k: rank of the true view among those of its object",
    "retrieval_error: 1 - (q_true . q_nearest)^2, rotations among all views; lower is better",
    "without_identity: the observed view is not asked for, but is in the gallery",
    "without_source: observed views are neither asked for nor in the gallery",
    "action_gain: share by which the error grows with the actions of other objects",
)


@dataclass(frozen=True)
class Config:
    """Which predictor looks for which views."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run whose objective has a predictor, on rendered views."""
    contexts: tuple[Width, ...] | None = None
    """Sequence models only: numbers of observed views, each less than the views of an object; 1 and 3 when not
    given."""
    dataset: DatasetName = "3diebench-p"
    """3diebench-p and 3diebench-pt render themselves; 3diebench and 3diebench-t need --data-dir. Ordinary images have
    no known poses."""
    data_dir: str | Path | None = None
    """Folder with the data set; the user's cache folder for those that render themselves when not given."""
    split: str = "test"
    """Split whose views are looked for."""
    contexts_per_object: Count | None = None
    """Sequence models only: contexts of each object; when not given one for each view, which is its last."""
    sources: Count | None = None
    """Two-view predictors only: number of views per object, the first ones, that are asked from; 1 when not given, as
    in SIE."""
    similarity: Similarity = "cosine"
    """What near means. seq-JEPA's loss and SIE's protocol: cosine."""
    whole_split: bool = True
    """Look among all views of the split, too; the effort grows with the square of its size."""
    out: Path | None = None
    """Folder of results.json; the run's when not given."""


def main(config: Config) -> None:
    out = (config.out or config.run) / "results.json"
    refuse_other_content(out)
    of_sequences = (config.run / SEQUENCE_MODEL_FOLDER).is_dir()
    try:
        records, notes = records_of_sequence_model(config) if of_sequences else records_of_predictor(config)
    except TaskSkipped as reason:
        raise UserError(f"{config.run}: {reason}") from reason
    print_records(records, (*NOTES, *notes))
    append_records(out, records)
    print(f"added to {out}")


def open_rendered_data(config: Config, image_size: int) -> DataSource:
    data = open_data(config.dataset, config.data_dir, config.split, image_size)
    if data.evaluation.schema is None:
        raise UserError(
            f"--dataset is {config.dataset}, whose views have no known poses or other latents: retrieve among rendered "
            "views, such as those of 3diebench-p"
        )
    return data


def check_option(option: str, numbers: Sequence[int], largest: int, meaning: str) -> None:
    """Raises UserError unless there are numbers and all are from 1 to `largest`."""
    if not numbers or min(numbers) < 1 or max(numbers) > largest:
        given = ", ".join(map(str, numbers)) or "empty"
        raise UserError(f"{option} is {given}: give a number from 1 to {largest}, {meaning}")


def records_of_predictor(config: Config) -> tuple[list[ProbeRecord], tuple[str, ...]]:
    """Of a run's `predictor/`: every view is encoded once; then retrieval and consistency. Records and notes."""
    predictor = load_predictor(config.run / PREDICTOR_FOLDER)
    if config.contexts is not None or config.contexts_per_object is not None:
        raise UserError(
            f"{config.run} holds a predictor from one view: --contexts and --contexts-per-object belong to sequence "
            "models, so give --sources"
        )
    folder = config.run / predictor.features_from
    encoder_config = read_encoder_config(folder)
    mean_rgb, std_rgb = (values.tolist() for values in normalization_of(encoder_config))
    data = open_rendered_data(config, encoder_config["pretrained_cfg"]["input_size"][-1])
    sources = 1 if config.sources is None else config.sources
    check_option("--sources", (sources,), data.evaluation.num_views, "the views of an object")
    cache = encode_split(load_encoder(folder).to(DEVICE), data.evaluation, mean_rgb, std_rgb, DEVICE)
    retrieval = retrieve_with_predictor(
        predictor, cache, source_views=sources, metric=config.similarity, whole_set=config.whole_split, device=DEVICE
    )
    records = retrieval_records(retrieval, f"the {predictor.features_from.replace('_', ' ')}", config.split)
    notes = [*data.notes]
    with noted_if_unanswered("predictor_consistency", notes):
        consistency = predictor_consistency(predictor, cache, metric=config.similarity, device=DEVICE)
        records += consistency_records(consistency, cache.num_objects, config.split)
        notes += consistency.notes
    with noted_if_unanswered("action_gain", notes):
        gain = predictor_gain(predictor, cache, DEVICE)
        records += gain_records(gain, 1, cache.num_objects, config.split)
        notes += gain.notes
    return records, tuple(notes)


def records_of_sequence_model(config: Config) -> tuple[list[ProbeRecord], tuple[str, ...]]:
    """Of a run's `sequence_model/`: records of each context length, and notes."""
    model = load_sequence_model(config.run / SEQUENCE_MODEL_FOLDER)
    if config.sources is not None:
        raise UserError(
            f"{config.run} holds a sequence model: --sources belongs to predictors from one view, so give --contexts "
            "and --contexts-per-object"
        )
    if model.sequences["source"] != "rendered":
        raise UserError(
            f"{config.run} was trained on views of source '{model.sequences['source']}': only rendered views have a "
            "gallery of known poses, so give a run on rendered views"
        )
    data = open_rendered_data(config, model.image_size)
    views = data.evaluation
    actions_as_told(views.schema, model.told)
    require_equal_galleries(views)  # before they are encoded
    contexts = DEFAULT_CONTEXTS if config.contexts is None else config.contexts
    check_option("--contexts", contexts, views.num_views - 1, "so that a view of the object is left to ask for")
    if config.contexts_per_object is not None:
        check_option("--contexts-per-object", (config.contexts_per_object,), views.num_views, "the views of an object")
    objective = model.objective.to(DEVICE)
    cache = encode_split(objective.encoder, views, model.mean_rgb, model.std_rgb, DEVICE)
    target_features, gallery_encoder = cache.features, "the encoder"
    if objective.target_encoder is not None:
        target = encode_split(objective.target_encoder, views, model.mean_rgb, model.std_rgb, DEVICE)
        target_features, gallery_encoder = target.features, "the momentum encoder"
    records: list[ProbeRecord] = []
    notes = [*data.notes]
    for context_views in contexts:
        retrieval = retrieve_with_sequences(
            objective, cache, target_features, model.told.names, context_views=context_views,
            contexts_per_object=config.contexts_per_object, metric=config.similarity, whole_set=config.whole_split,
            device=DEVICE,
        )  # fmt: skip
        records += retrieval_records(retrieval, gallery_encoder, config.split)
        if not (objective.aggregator_takes_actions or objective.predictor_takes_actions):
            continue
        with noted_if_unanswered(f"action_gain, pred@{context_views}", notes):
            known = actions_as_told(views.schema, model.told)
            gain = action_gain(objective, cache, target_features, known, context_views=context_views, device=DEVICE)
            records += gain_records(gain, context_views, cache.num_objects, config.split)
            notes += gain.notes
    return records, tuple(notes)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
