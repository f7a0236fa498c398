"""What every pretraining recipe does around its loop: the loader, online probes, the ending."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.decoded_cache import CachedViews
from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.remote_shards import RemoteImages, RemoteShards
from ssl_equi.data.sources import DataSource
from ssl_equi.data.streaming import StreamedLoader
from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.catalogue import model_arguments
from ssl_equi.errors import RunError
from ssl_equi.export.encoder import EncoderCard, Export, encoder_export
from ssl_equi.export.predictor import PREDICTOR_FOLDER, PredictorCard, predictor_export
from ssl_equi.files import read_json_object
from ssl_equi.objectives.output import ObjectiveOutput
from ssl_equi.probing.encode import state_sha256
from ssl_equi.probing.encoder_sources import EncoderSource
from ssl_equi.probing.evaluation_suite import Suite
from ssl_equi.probing.feature_store import FeatureStore
from ssl_equi.probing.online import OnlineProbes
from ssl_equi.probing.protocol import AUGMENTATION_EQUIVARIANCE, CORE_TASKS, PROBE_PROTOCOLS
from ssl_equi.probing.publish import publish_results
from ssl_equi.probing.records import ProbeRecord
from ssl_equi.probing.skipping import noted_if_unanswered
from ssl_equi.probing.suite import ProbeResults, check_splits
from ssl_equi.probing.tasks import tasks_for
from ssl_equi.runtime.device_copies import Unread, merged
from ssl_equi.runtime.system import software_versions
from ssl_equi.training.loader import TrainingLoader, device_decoded_loader, rendered_loader
from ssl_equi.training.pretraining_config import PretrainingConfig, PretrainingOptions
from ssl_equi.training.run import Run
from ssl_equi.views.makers import views_to_load

ENCODER_FOLDER = "encoder"
EMBEDDED_LICENCE = "apache-2.0"  # of weights that learnt from our own renderings
# Of others by what the manifest of their data states, as the Hugging Face hub spells it.
LICENCES = {
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "CC0-1.0": "cc0-1.0",
}


class Objective(Protocol):
    """What the ending needs to know of an objective: its encoder, and the parts of the features."""

    @property
    def encoder(self) -> nn.Module:
        """Maps images [N, 3, H, W] to features [N, D]."""

    @property
    def parts(self) -> dict[str, slice]:
        """Named slices of the feature columns."""


class DataIdentity:
    """What a checkpoint remembers of the training data, so that a run never goes on with another set.

    The plan (settings and list of objects) is compared and not the fingerprint of the bytes: the embedded set, rendered
    anew on another machine, may differ in the rounding of a pixel.
    """

    def __init__(self, train: ViewCollection) -> None:
        self.train = train

    def state_dict(self) -> dict[str, str]:
        return {"plan_sha256": self.train.plan_sha256, "source": self.train.source}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Raises RunError if the checkpoint was trained on other data."""
        if state["plan_sha256"] != self.train.plan_sha256:
            raise RunError(
                f"the run was trained on other data ({state['source']}) than {self.train.folder} holds: "
                "resume with the first --data-dir, or choose another --out"
            )


def open_loader(
    config: PretrainingOptions, data: DataSource, run: Run, stored_views: int | None = None
) -> TrainingLoader:
    """The loader of a run: its process's share of the global batches. Data that are streamed have one of their own.

    Args:
        stored_views: of each object; when None as many as a pair of views needs.
    """
    if stored_views is None:
        stored_views = views_to_load(config.views) if isinstance(config, PretrainingConfig) else 1
    for note in data.notes:
        run.say(note)
    if config.render_views:
        return rendered_loader(config, data, run, stored_views)
    if config.decode_on == "cuda":
        return device_decoded_loader(config, data, run, stored_views)
    if isinstance(data.train, (RemoteShards, RemoteImages)):
        return StreamedLoader(
            data.train.location,
            data.train.split,
            fit=data.train.fit if isinstance(data.train, RemoteImages) else None,
            image_size=data.train.image_size[0],
            global_batch_size=config.batch_size,
            views=stored_views,
            seed=config.seed,
            rank=run.rank,
            world_size=run.world_size,
            keep_incomplete_batch=config.keep_incomplete_batch,
            threads=run.loader_size.threads,
            shuffle_buffer=config.shuffle_buffer,
            on_bad_record=config.on_bad_record,
            max_skipped=config.max_skipped,
        )
    if run.loader_size.workers > 0:
        run.say(f"{run.loader_size.workers} processes decode the images")
    return ViewLoader(
        CachedViews(data.train, show_progress=run.is_main) if config.cache_decoded else data.train,
        global_batch_size=config.batch_size,
        views=stored_views,
        seed=config.seed,
        rank=run.rank,
        world_size=run.world_size,
        keep_incomplete_batch=config.keep_incomplete_batch,
        threads=run.loader_size.threads,
        workers=run.loader_size.workers,
        on_bad_record=config.on_bad_record,
        max_skipped=config.max_skipped,
    )


class FollowingProbes:
    """Online probes of a run: saved with its checkpoints, fed with the objective's output.

    Args:
        run: the probes are registered with it.
        objective: with an attribute `aggregate_width`, the class is read from its aggregates too, as part `agg`.
        data: what is trained on.
    """

    def __init__(self, run: Run, objective: Objective, data: DataSource) -> None:
        num_classes = len(data.train.class_names)

        def probes(width: int, columns: dict[str, slice]) -> OnlineProbes:
            return OnlineProbes(width, columns, num_classes, seed=run.config.seed, device=run.device)

        self.probes = probes(objective.parts["all"].stop, probed_parts(objective))
        run.register("online_probes", self.probes)
        aggregate_width = getattr(objective, "aggregate_width", None)
        self.aggregate_probes = None
        if aggregate_width is not None:
            self.aggregate_probes = probes(aggregate_width, {"agg": slice(0, aggregate_width)})
            run.register("online_aggregate_probes", self.aggregate_probes)

    def update(self, output: ObjectiveOutput, batch: ViewBatch) -> None:
        """Measures and trains the probes on one step's features.

        Augmentations turn and crop a picture, so the poses are followed only if the views are stored ones: then a
        batch holds more than one of each object.
        """
        num_views = output.features.shape[1]
        stored_views = batch.quat_xyzw is not None and batch.images.shape[1] > 1
        poses = batch.quat_xyzw[:, :num_views] if stored_views and batch.quat_xyzw is not None else None
        self.probes.update(output.features, batch.labels, poses)
        if self.aggregate_probes is not None and output.aggregates is not None:
            self.aggregate_probes.update(output.aggregates.unsqueeze(1), batch.labels, None)

    def metrics(self) -> Unread[dict[str, float]]:
        """What `Run.log` reads and writes: accuracy and rotation of each part since the last call."""
        probes = (self.probes, self.aggregate_probes)
        return merged([probe.unread_metrics() for probe in probes if probe is not None])


def probed_parts(objective: Objective) -> dict[str, slice]:
    """Columns of the features by name: those that the objective makes.

    Of an objective that makes none, those of its encoder: what stays and what follows when the image is turned.
    """
    parts = dict(objective.parts)
    if set(parts) == {"all"}:
        encoders: dict[str, slice] = getattr(objective.encoder, "parts", {})
        parts |= {name: columns for name, columns in encoders.items() if columns != parts["all"]}
    return parts


def check_ending(
    run: Run,
    config: PretrainingOptions,
    objective: Objective,
    data: DataSource,
    further_exports: Mapping[str, Export] | None = None,
) -> None:
    """Tries before the first step what a run ends with, so that it can't train for days and then fail.

    Everything that it exports is written and built again in memory, and the splits that are probed are compared.

    Args:
        further_exports: what else it exports, by folder.

    Raises:
        UserError, ValueError: an export or the probes would fail.
    """
    check_splits(probed_parts(objective), data.probe_train, data.evaluation, config.evaluation_split)
    exports = exports_of(run, config, run.whole(objective), data) | dict(further_exports or {})

    def check_exports() -> None:
        for export in exports.values():
            export.check()

    run.on_main_then_everywhere(check_exports)


def finish(
    run: Run,
    config: PretrainingOptions,
    objective: Objective,
    data: DataSource,
    ask_more: Callable[[ProbeResults], tuple[list[ProbeRecord], Sequence[str]]] | None = None,
    further_exports: Mapping[str, Export] | None = None,
) -> None:
    """Exports the encoder, probes it and a random one on unseen objects, prints the table, writes the report.

    Only the first process works, and without the others, which end here.

    Args:
        ask_more: asks more of the encoded splits; its records and notes join the table.
        further_exports: what else is exported, by folder.
    """
    with run.ending():
        if not run.is_main:
            return
        started = time.perf_counter()
        objective = run.whole(objective)
        exports = exports_of(run, config, objective, data) | dict(further_exports or {})
        for name, export in exports.items():
            export.write(run.folder / name)
            run.say(f"exported {run.folder / name}")
        run.say(f"probing on the {config.evaluation_split} split")
        results = probe_encoder(run, config, objective, data)
        records: list[ProbeRecord] = []
        notes = [*results.notes]
        if ask_more is not None:
            with noted_if_unanswered("further questions", notes):
                records, further_notes = ask_more(results)
                notes += further_notes
        results = replace(results, records=results.records + records, notes=tuple(notes))
        set_aside_earlier_results(run.folder)
        versions = recorded_versions(run.folder)
        report = publish_results(
            run.folder,
            results,
            data.evaluation,
            title=f"{run.name} on {data.name}",
            command=str(versions.get("command", "")),
            run={
                "name": run.name,
                "steps": run.step_done,
                "records_skipped": run.records_skipped,
                "data": data.name,
                "source": data.train.source,
                "train_fingerprint": data.train.fingerprint,
                "evaluation_fingerprint": data.evaluation.fingerprint,
                "commit": str(versions.get("commit", "unknown")),
            },
        )
        run.say(f"probed in {time.perf_counter() - started:.0f} s; open {report} in a browser")


def probe_encoder(run: Run, config: PretrainingOptions, objective: Objective, data: DataSource) -> ProbeResults:
    """Asks one question of each kind and those of the chosen protocol, as far as the data have the latents."""
    protocol = PROBE_PROTOCOLS[config.probe_protocol]()
    asked = dict.fromkeys((*CORE_TASKS, AUGMENTATION_EQUIVARIANCE, *protocol.tasks))
    source = EncoderSource(
        name=run.name,
        module=objective.encoder,
        parts=probed_parts(objective),
        image_size=config.image_size,
        mean_rgb=None,
        std_rgb=None,
        state_sha256=state_sha256(objective.encoder),
        architecture=config.encoder,
        build_untrained=lambda: create_encoder(config.encoder, config.image_size, **config.encoder_arguments),
    )
    suite = Suite(
        protocol,
        tasks_for(data.evaluation, list(asked)),
        seeds=(config.seed,),
        device=run.device,
        say=lambda line: None,
    )
    return suite.evaluate(
        source,
        data,
        FeatureStore(None),
        compare_with_random=config.compare_with_random,
        bad_train_records=BadRecords(config.on_bad_record, config.max_skipped, run.rank),
    ).first_seed


def exports_of(run: Run, config: PretrainingOptions, objective: Objective, data: DataSource) -> dict[str, Export]:
    """The encoder, and the predictor that the objective may hand out (`latent_predictor()`), by folder."""
    card = encoder_card(run.name, config, objective, data)
    exports = {ENCODER_FOLDER: encoder_export(objective.encoder, card)}
    latent_predictor = getattr(objective, "latent_predictor", lambda: None)()
    actions: str | None = getattr(config, "actions", None)
    if latent_predictor is not None and actions is not None:
        predictor_card = PredictorCard(run.name, actions, card.trained_on)
        exports[PREDICTOR_FOLDER] = predictor_export(latent_predictor, predictor_card)
    return exports


def recorded_versions(folder: Path) -> dict[str, Any]:
    """What the run noted when it started; what is here now, if that file was lost meanwhile."""
    try:
        return read_json_object(folder / "versions.json", RunError)
    except RunError:
        return dict(software_versions())


def set_aside_earlier_results(folder: Path) -> None:
    """Renames a results.json written before the run was resumed: its numbers are those of an earlier encoder."""
    results = folder / "results.json"
    if results.is_file():
        number = 1 + len(list(folder.glob("results-earlier-*.json")))
        results.replace(folder / f"results-earlier-{number}.json")


def encoder_card(name: str, config: PretrainingOptions, objective: Objective, data: DataSource) -> EncoderCard:
    """The labels of the exported encoder: ours, not those of timm's pretrained weights.

    Posed views of others go by the source that their manifest states, since `3diebench` also opens sets in its layout.
    """
    embedded = data.name in ("3diebench-p", "3diebench-pt")
    stated = data.license is not None and not embedded
    return EncoderCard(
        architecture=config.encoder,
        model_args=model_arguments(config.encoder, config.image_size, config.encoder_arguments),
        image_size=config.image_size,
        mean_rgb=data.mean_rgb,
        std_rgb=data.std_rgb,
        parts={part: (columns.start, columns.stop) for part, columns in probed_parts(objective).items()},
        objective=name,
        trained_on=f"{data.train.source if stated else data.name} {data.train.fingerprint[:16]}",
        license=EMBEDDED_LICENCE if embedded else LICENCES.get(data.license or "", "other"),
        tag=f"{name}_{data.name}".replace("-", "_"),
    )
