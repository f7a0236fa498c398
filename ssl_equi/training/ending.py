"""What a pretraining run ends with, and tries before its first step: exports, probes on unseen objects, report."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.sources import DATASETS, DataSource
from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.catalogue import model_arguments
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.predictors.action_gain import TASK as GAIN
from ssl_equi.evaluation.predictors.action_gain import sequence_gain
from ssl_equi.evaluation.predictors.capsules import capsule_results
from ssl_equi.evaluation.protocol import (
    AUGMENTATION_EQUIVARIANCE,
    AUGMENTATION_PARAMETERS,
    CORE_TASKS,
    PROBE_PROTOCOLS,
    ProbeProtocol,
)
from ssl_equi.evaluation.publish import publish_results
from ssl_equi.evaluation.results import ProbeRecord, records_of
from ssl_equi.evaluation.sequences.tasks import quick_sequence_results
from ssl_equi.evaluation.suite import (
    Evaluation,
    asked_tasks,
    check_splits,
    evaluate,
    noted_if_unanswered,
    tasks_for,
)
from ssl_equi.evaluation.tables import in_short_tables
from ssl_equi.evaluation.task import TaskResult
from ssl_equi.export.encoder import ENCODER_FOLDER, EncoderCard, encoder_export
from ssl_equi.export.folder import Export
from ssl_equi.export.predictor import PREDICTOR_FOLDER, PredictorCard, TrainedPredictor, predictor_export
from ssl_equi.export.sequence_model import SEQUENCE_MODEL_FOLDER, sequence_export
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.base import Objective
from ssl_equi.runtime.frozen import state_sha256
from ssl_equi.runtime.progress import LiveProgress
from ssl_equi.training.config import PretrainingOptions
from ssl_equi.training.folder import recorded_versions, set_aside_earlier_results
from ssl_equi.training.run import Run
from ssl_equi.training.trackers import final_results

CAPSULE_FOLDER = "capsule_network"


@dataclass(frozen=True)
class Ending:
    """The end of a run: what is exported and asked follows from the objective.

    Attributes:
        sequences: how the views were made, see `SequenceModel.sequences`; pairs are sequences of two.
    """

    run: Run
    config: PretrainingOptions
    objective: Objective
    data: DataSource
    sequences: dict[str, Any]

    def check(self) -> None:
        """Tries it before the first step, so that no run can train for days and then fail.

        Everything that it exports is written and built again in memory, the splits that are probed are compared, and
        the tasks looked up.
        """
        check_splits(probed_parts(self.objective), self.data.probe_train, self.data.evaluation)
        if self.config.evaluate:
            self.num_tasks()
        for export in self.exports(self.run.whole(self.objective)).values():
            self.run.processes.on_main_then_everywhere(export.check)

    def finish(self) -> None:
        """Exports, probes the encoder and a random one on unseen objects, prints the table, writes the report.

        Only the first process works, and without the others, which end here.
        """
        with self.run.ending():
            if self.run.processes.is_main:
                self._finish_alone(self.run.whole(self.objective))

    def _finish_alone(self, objective: Objective) -> None:
        run, data = self.run, self.data
        started = time.perf_counter()
        for name, export in self.exports(objective).items():
            export.write(run.folder / name)
            run.processes.say(f"exported {run.folder / name}")
        if not self.config.evaluate:
            run.processes.say(f"--no-evaluate: not probed; evaluation/suite.py --encoder {run.folder} does it")
            return
        run.processes.say(f"probing on the {self.config.evaluation_split} split")
        records: list[ProbeRecord] = []
        with LiveProgress() as progress:
            results = self.probe(objective, progress)
            notes = [*results.notes]
            if objective.sequence_model is not None or objective.capsule_network is not None:
                progress.show("probing what stands on the encoder")
            with noted_if_unanswered("further questions", notes):
                records, further_notes = self.ask_more(objective, results)
                notes += further_notes
        results = replace(results, records=results.records + records, notes=tuple(notes))
        shown = in_short_tables(results.records)
        run.track({f"final/{record.task}/{record.part}/{record.metric}": record.value for record in shown})
        set_aside_earlier_results(run.folder)
        versions = recorded_versions(run.folder)
        told = {
            "name": run.name, "steps": run.state.steps_done, "records_skipped": run.state.records_skipped,
            "data": data.name, "source": data.train.source, "train_fingerprint": data.train.fingerprint,
            "evaluation_fingerprint": data.evaluation.fingerprint, "commit": str(versions.get("commit", "unknown")),
        }  # fmt: skip
        report = publish_results(
            run.folder, results, data.evaluation, title=f"{run.name} on {data.name}",
            command=str(versions.get("command", "")), run=told, verbose=self.config.verbose,
        )  # fmt: skip
        run.track_results(partial(final_results, run.folder, shown))
        run.processes.say(f"probed in {time.perf_counter() - started:.0f} s: open {report} in a browser")
        if not self.config.verbose:
            numbers = f"all {len(results.records)} numbers and how they were made"
            run.processes.say(f"it has {numbers}; --verbose prints them")

    @property
    def protocol(self) -> ProbeProtocol:
        """How the heads are trained."""
        return PROBE_PROTOCOLS[self.config.probe_protocol]()

    def outlook(self) -> str:
        """What comes behind the training, in words."""
        if not self.config.evaluate:
            return "the export"
        probes = f"{self.num_tasks()} probes"
        return f"{probes} of it and of a random encoder" if self.config.compare_with_random else probes

    def num_tasks(self) -> int:
        """How many tasks are asked, of groups each one; a UserError names what can't be."""
        predictor, schema = self.predictor_from_features(self.objective), self.data.evaluation.schema
        return len(asked_tasks(self.run.name, predictor, schema, self.protocol, self.tasks(self.objective)))

    def tasks(self, objective: Objective) -> tuple[str, ...]:
        """What is asked: the tasks that are named, or one of each kind and those of the protocol.

        Of the latter as far as the data have the latents; of images without any, what changes from view to view are
        their augmentations.
        """
        if self.config.tasks:
            return self.config.tasks
        usual = dict.fromkeys((*CORE_TASKS, AUGMENTATION_EQUIVARIANCE, *self.protocol.tasks))
        if self.data.evaluation.schema is None:
            usual[AUGMENTATION_PARAMETERS] = None
        if self.predictor_from_features(objective) is not None:
            usual[GAIN] = None
        return tasks_for(self.data.evaluation, list(usual))

    def source(self, objective: Objective) -> EncoderSource:
        """The encoder, as it is asked."""
        config = self.config
        return EncoderSource(
            name=self.run.name, module=objective.encoder, parts=probed_parts(objective), image_size=config.image_size,
            mean_rgb=None, std_rgb=None, state_sha256=state_sha256(objective.encoder), architecture=config.encoder,
            build_untrained=lambda: create_encoder(config.encoder, config.image_size, **config.encoder_arguments),
            predictor=self.predictor_from_features(objective),
        )  # fmt: skip

    def probe(self, objective: Objective, progress: LiveProgress) -> Evaluation:
        """Asks the encoder and a random one about unseen objects."""
        return evaluate(
            self.source(objective), self.data, self.protocol, tasks=self.tasks(objective), seeds=(self.config.seed,),
            device=self.run.device, compare_with_random=self.config.compare_with_random,
            bad_train_records=BadRecords(self.config.on_bad_record, self.config.max_skipped, self.run.processes.rank),
            progress=progress,
        )  # fmt: skip

    def ask_more(self, objective: Objective, results: Evaluation) -> tuple[list[ProbeRecord], Sequence[str]]:
        """Of the aggregates of sequences and of capsules' poses, where they know the actions between stored views."""
        device, seed, data, test = self.run.device, self.config.seed, self.data, results.test_features
        model, network = objective.sequence_model, objective.capsule_network
        records: list[ProbeRecord] = []
        notes: list[str] = []
        answers: dict[str, dict[str, TaskResult]] = {}
        if model is not None and self.told is not None:
            found = quick_sequence_results(
                model, results.train_features, test, self.told.names, len(results.class_names), device=device,
                seed=seed, split_name=data.evaluation.split,
            )  # fmt: skip
            records, notes = found.records, [*found.notes]
            if model.aggregator_takes_actions or model.predictor_takes_actions:
                observed = self.sequences["observed_views"]
                with noted_if_unanswered(GAIN, notes):
                    answers[f"pred@{observed}"] = {GAIN: sequence_gain(model, test, data, self.told, observed, device)}
        predictor = self.predictor_between_stored_views(objective)
        if network is not None and predictor is not None:
            answers["capsules"] = capsule_results(network, predictor, data, results.protocol, device)
        records += records_of(
            answers, None, split=data.evaluation.split, protocol=results.protocol, seed=seed,
            num_objects=test.num_objects,
        )  # fmt: skip
        notes += [
            f"{task}, part {part}: {note}"
            for part, tasks in answers.items()
            for task, result in tasks.items()
            for note in result.notes
        ]
        return records, notes

    @property
    def told(self) -> ToldActions | None:
        """The actions between stored views that the objective is given; None of other views, and without any."""
        actions = self.sequences.get("actions") if self.sequences["source"] == "rendered" else None
        return None if actions is None else ToldActions.of(actions)

    def predictor_between_stored_views(self, objective: Objective) -> TrainedPredictor | None:
        """The predictor as it is exported; None without one or without actions between stored views."""
        predictor = objective.latent_predictor()
        if predictor is None or self.told is None:
            return None
        return TrainedPredictor(predictor, PredictorCard(self.run.name, self.told, self.data.train.fingerprint))

    def predictor_from_features(self, objective: Objective) -> TrainedPredictor | None:
        """The same where it reads the encoder's own features, so that it can be asked beside the encoder."""
        predictor = self.predictor_between_stored_views(objective)
        return predictor if predictor is not None and predictor.features_from == "encoder" else None

    def exports(self, objective: Objective) -> dict[str, Export]:
        """By folder: the encoder, the predictor that the objective may hand out, and the network around an encoder."""
        card = self.encoder_card(objective)
        exports = {ENCODER_FOLDER: encoder_export(objective.encoder, card)}
        predictor, actions = objective.latent_predictor(), self.sequences.get("actions")
        if predictor is not None and actions is not None:
            predictor_card = PredictorCard(self.run.name, ToldActions.of(actions), card.trained_on)
            exports[PREDICTOR_FOLDER] = predictor_export(predictor, predictor_card)
        if objective.sequence_model is not None:
            exports[SEQUENCE_MODEL_FOLDER] = sequence_export(objective.sequence_model, card, self.sequences)
        if objective.capsule_network is not None:
            network = objective.capsule_network
            # `evaluation/probe.py` asks the same of the network's activations and poses.
            arguments = {
                "backbone": self.config.encoder, "backbone_arguments": self.config.encoder_arguments,
                "num_capsules": network.num_capsules, "pose_side": network.pose_side, "votes": network.votes,
                "img_size": self.config.image_size,
            }  # fmt: skip
            # Beside the backbone's `all` in one results.json, the capsules need a name of their own.
            named = {"capsules" if part == "all" else part: columns for part, columns in network.parts.items()}
            capsule_card = replace(card, architecture="capsule_network", model_args=arguments, parts=_as_numbers(named))
            exports[CAPSULE_FOLDER] = encoder_export(network, capsule_card)
        return exports

    def encoder_card(self, objective: Objective) -> EncoderCard:
        """The labels of the exported encoder: ours, not those of timm's pretrained weights."""
        config, data, name = self.config, self.data, self.run.name
        known = DATASETS.get(data.name)
        # `3diebench` also opens other posed views in its layout: they go by the source that their manifest states.
        stated = data.license is not None and not (known is not None and known.embedded)
        return EncoderCard(
            architecture=config.encoder,
            model_args=model_arguments(config.encoder, config.image_size, config.encoder_arguments),
            image_size=config.image_size,
            mean_rgb=data.mean_rgb,
            std_rgb=data.std_rgb,
            parts=_as_numbers(probed_parts(objective)),
            objective=name,
            trained_on=f"{data.train.source if stated else data.name} {data.train.fingerprint[:16]}",
            # Weights that others trained may come with terms of their own.
            license=data.licence_of_weights if config.init is None else "other",
            tag=f"{name}_{data.name}".replace("-", "_"),
        )


def _as_numbers(parts: dict[str, slice]) -> dict[str, tuple[int, int]]:
    return {part: (columns.start, columns.stop) for part, columns in parts.items()}


def probed_parts(objective: Objective) -> dict[str, slice]:
    """Columns of the features by name: those that the objective makes.

    Of an objective that makes none, those of its encoder: what stays and what follows when the image is turned.
    """
    parts = dict(objective.parts)
    if set(parts) == {"all"}:
        encoders: dict[str, slice] = getattr(objective.encoder, "parts", {})
        parts |= {name: columns for name, columns in encoders.items() if columns != parts["all"]}
    return parts
