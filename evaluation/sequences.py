"""Asks a sequence model what its aggregates of 1 to 8 views know, and what they leave to the encoder.

    python evaluation/sequences.py runs/seq_jepa                                   the embedded test split
    python evaluation/sequences.py runs/seq_jepa --questions classification leakage
    python evaluation/sequences.py runs/seq_jepa --dataset 3diebench --data-dir SHARDS --split val
    python evaluation/sequences.py runs/cifar --dataset cifar100 --data-dir CIFAR        augmented images
    python evaluation/sequences.py runs/stl --dataset stl10 --data-dir STL10             saccades

- classification: the class from the aggregate of M views, and from one view by the encoder.
- pair_action: the action between two views, from the encoder's features of both.
- leakage: class and action, from the encoder and from aggregates.
- path_integration: the action from the first view to view M + 1, from the aggregate of M views and the last step; with
  zeros for images or for actions, beside the exact composition of all steps. M = 1 is trivial.

Sequences are made as in training, the same for every model; heads are trained on the train split. Images that are
augmented or looked at by saccades are those of the final probes: whole, in the size that the encoder takes. Prints
tables, appends all records to results.json and writes report.html in the run's folder. The embedded set takes 3
minutes on one CPU core.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DatasetName, DataSource, open_data
from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import encode_split
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, ProtocolName
from ssl_equi.evaluation.report.sequences import print_summary
from ssl_equi.evaluation.report.write import write_report_or_warn
from ssl_equi.evaluation.results import append_records, refuse_other_content
from ssl_equi.evaluation.sequences.embed import POSITION_NAMES, FeatureSequences, encode_sequences, sequences_of_cache
from ssl_equi.evaluation.sequences.tasks import QUESTIONS, Question, SequenceProtocol, probe_sequences
from ssl_equi.export.sequence_model import SEQUENCE_MODEL_FOLDER, SequenceModel, load_sequence_model
from ssl_equi.latents.actions import AUGMENTATION, actions_as_told
from ssl_equi.options import Count, Range, Seed, Width
from ssl_equi.views.actions import action_columns
from ssl_equi.views.glimpses import Glimpses, described_saccades
from ssl_equi.views.makers import ViewSequence, views
from ssl_equi.views.options import ViewOptions, augmentation_columns
from ssl_equi.views.presets import transforms_of_views

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MakeViews = Callable[[ViewBatch, int], ViewSequence]


@dataclass(frozen=True)
class Config:
    """Which model is asked what, and on which sequences."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of recipes/seq_jepa.py or recipes/seq_jepa_saccades.py."""
    dataset: DatasetName = "3diebench-p"
    """3diebench-p and 3diebench-pt (whose objects also move) render themselves; the others need --data-dir."""
    data_dir: str | Path | None = None
    """Folder with the data set; the user's cache folder for those that render themselves when not given."""
    split: str = "test"
    """Split that is judged; heads are trained on train."""
    questions: tuple[Question, ...] = QUESTIONS
    """What is asked."""
    lengths: tuple[Width, ...] = SequenceProtocol.lengths
    """Numbers M of views, for classification and path integration."""
    leakage_lengths: tuple[Width, ...] = SequenceProtocol.leakage_lengths
    """Numbers M of views for the leakage, which needs sequences of 2M."""
    sequences_per_object: Count | None = None
    """When not given 4 of a rendered object, 1 of an image."""
    views_per_sequence: Annotated[int, Range(minimum=2, maximum=10_000)] | None = None
    """When not given 20 of a rendered object (or all, if there are less), or as many as the other options need."""
    protocol: ProtocolName = "embedded"
    """How the heads are trained."""
    saliency_files: tuple[Path, Path] | None = None
    """Maps of the train split and of the judged one, for a model whose gaze followed a file."""
    seed: Seed = 0
    """Seeds the heads."""
    out: Path | None = None
    """Folder of results.json and report.html; the run's when not given."""


@dataclass(frozen=True)
class EvaluatedViews:
    """What making views depends on; the batch size is part of what is drawn."""

    views: ViewOptions
    image_size: int
    batch_size: int = 256
    seed: int = 0
    compile: bool = False


@dataclass
class OneProcess:
    """The evaluation is one process."""

    rank: int = 0
    world_size: int = 1


def main(config: Config) -> None:
    out = config.out or config.run
    refuse_other_content(out / "results.json")
    model = load_sequence_model(config.run / SEQUENCE_MODEL_FOLDER)
    model.objective.to(DEVICE)
    protocol = protocol_of(config, model)
    data = open_data(config.dataset, config.data_dir, config.split, model.image_size)
    data = replace(data, mean_rgb=model.mean_rgb, std_rgb=model.std_rgb)
    check_poses(config, model, data)
    train = encoded_sequences(config, model, data, data.probe_train, protocol)
    test = encoded_sequences(config, model, data, data.evaluation, protocol)
    print(
        f"asking {model.objective.__class__.__name__} on {len(test)} sequences of the {config.split} split", flush=True
    )
    results = probe_sequences(
        model.objective, train, test, len(data.evaluation.class_names), protocol,
        device=DEVICE, seed=config.seed, split_name=config.split,
    )  # fmt: skip
    notes = (*data.notes, *results.notes)
    print_summary(results.records, notes)
    described = {
        "title": f"sequences of {config.run.resolve().name}", "command": f"python {shlex.join(sys.argv)}",
        "protocol": asdict(protocol), "options": {name: str(value) for name, value in asdict(config).items()},
    }  # fmt: skip
    # A run's own title and command stay.
    append_records(out / "results.json", results.records, None if (out / "results.json").exists() else described, notes)
    write_report_or_warn([out], out / "report.html")
    print(f"added to {out / 'results.json'}; figures in {out / 'report.html'}")


def protocol_of(config: Config, model: SequenceModel) -> SequenceProtocol:
    """The protocol that the options ask for; its name tells of heads and sequences that are not the usual ones."""
    rendered = model.sequences["source"] == "rendered"
    needed = [length + 1 for length in config.lengths] + [2 * length for length in config.leakage_lengths]
    views = config.views_per_sequence or (SequenceProtocol.views if rendered else max(needed, default=2))
    per_object = config.sequences_per_object or (SequenceProtocol.sequences_per_object if rendered else 1)
    name = SequenceProtocol.name if rendered else f"{SequenceProtocol.name}_{model.sequences['source']}"
    if config.protocol != "embedded":
        name += f", heads {config.protocol}"
    if config.views_per_sequence or config.sequences_per_object:
        name += f", {per_object} x {views} views"
    return SequenceProtocol(
        name=name,
        questions=config.questions,
        lengths=config.lengths,
        leakage_lengths=config.leakage_lengths,
        views=views,
        sequences_per_object=per_object,
        heads=PROBE_PROTOCOLS[config.protocol](),
    )


def check_poses(config: Config, model: SequenceModel, data: DataSource) -> None:
    """Raises UserError for a model of stored views, and data without the latents that it is told of."""
    if model.sequences["source"] != "rendered":
        return
    if data.evaluation.schema is None:
        raise UserError(
            f"{config.run} was trained on stored views of known latents, and {config.dataset} has none: give rendered "
            "data, such as 3diebench-p"
        )
    actions_as_told(data.evaluation.schema, model.told)


def encoded_sequences(
    config: Config, model: SequenceModel, data: DataSource, collection: ViewCollection, protocol: SequenceProtocol
) -> FeatureSequences:
    """Sequences of one split, made as those that the model was trained on."""
    print(f"encoding sequences of {collection.num_objects} objects of the {collection.split} split", flush=True)
    encoder, views, per_object = model.objective.encoder, protocol.views, protocol.sequences_per_object
    if model.sequences["source"] == "rendered":
        cache = encode_split(encoder, collection, model.mean_rgb, model.std_rgb, DEVICE)
        # Hues are asked for, too, if the model was not told of them.
        length, seed = min(views, cache.fewest_views), protocol.sequences_seed
        return sequences_of_cache(cache, model.told.names, length, per_object, seed, ask_for_hues=True)
    told_columns = None
    if model.sequences["source"] == "augmented":
        make_views, names, told_columns = augmented_views(model, data, protocol)
    else:
        make_views, names = glimpses_of_images(config, model, data, collection, protocol), POSITION_NAMES
    sequences = encode_sequences(
        encoder, collection, make_views, names,
        length=views, per_object=per_object, batch_size=EvaluatedViews.batch_size, device=DEVICE,
    )  # fmt: skip
    return replace(sequences, told_columns=told_columns)


def augmented_views(
    model: SequenceModel, data: DataSource, protocol: SequenceProtocol
) -> tuple[MakeViews, tuple[str, ...], tuple[int, ...] | None]:
    """Augmentations as of observed views, names of the columns of every action, and which columns the model is told.

    With the encoding seq_jepa_legacy, actions depend on how many views a sequence has, here more than in training.
    """
    described = model.sequences
    options = ViewOptions("augmented", described["preset"], described["action_encoding"])
    every_action = EvaluatedViews(options, model.image_size, seed=protocol.sequences_seed)
    told = replace(options, action_transforms=tuple(described["action_transforms"]))
    columns = action_columns(options.action_encoding, transforms_of_views(options.preset, model.image_size))
    # One view more, because the last one is augmented like a view that is predicted.
    make_views = views(every_action, data, OneProcess(), length=protocol.views + 1, actions=(AUGMENTATION,))
    return make_views, tuple(columns), augmentation_columns(replace(every_action, views=told))


def glimpses_of_images(
    config: Config, model: SequenceModel, data: DataSource, collection: ViewCollection, protocol: SequenceProtocol
) -> MakeViews:
    """Glimpses of whole images, where the gaze follows the same kind of saliency."""
    file = None
    if config.saliency_files is not None:
        file = config.saliency_files[0 if collection is data.probe_train else 1]
    options = described_saccades(model.sequences, file)
    views = EvaluatedViews(ViewOptions("augmented"), model.image_size, seed=protocol.sequences_seed)
    return Glimpses(views, data, OneProcess(), options, length=protocol.views, collection=collection)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
