"""What experiment trackers are told of a run, by Accelerate: TensorBoard, Weights & Biases, Trackio and MLflow.

All get the same under the same names: the run, its group and its options at the start; numbers as they come; and at the
end the final numbers, their table, the pictures and the report. `TRACKERS` says how each is given them.
"""

import csv
import importlib
import io
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ssl_equi.errors import CheckpointError, RunError
from ssl_equi.evaluation.report.drawings import Picture, pictures_of_run
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.tables import COLUMNS, markdown_table, markdown_text, rounded_row
from ssl_equi.files import read_json_object, write_atomically
from ssl_equi.training.config import TrackerName, flattened

PROJECT = "ssl-equi"
IDS_FILE = "tracker_runs.json"
"""In the run's folder: by tracker, what it calls the run, so that a resumed one goes on there."""
LONGEST_TAG = 64  # of W&B, in characters


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it starts.

    Attributes:
        method: name of the recipe.
        tags: by what they say: configuration, dataset, encoder.
        options: nested as the dataclasses are.
        steps_done: where it starts.
        earlier_id: what the tracker called it before it was resumed; None of a new run.
    """

    folder: Path
    method: str
    tags: Mapping[str, str]
    options: Mapping[str, Any]
    steps_done: int
    earlier_id: str | None = None

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.resolve().name

    @property
    def group(self) -> str:
        """Runs of one method and configuration, such as those of all seeds."""
        return " ".join((self.method, self.tags.get("configuration", ""))).strip()

    @property
    def labels(self) -> dict[str, str]:
        """Method and tags."""
        return {"method": self.method, **self.tags}


@dataclass(frozen=True)
class FinalResults:
    """What a tracker shows of a finished run: a table of its numbers, pictures by name, the page with all of it."""

    records: Sequence[ProbeRecord]
    pictures: Mapping[str, Picture]
    report: Path

    @property
    def markdown(self) -> str:
        """The table with rounded numbers."""
        rows = [[markdown_text(cell) for cell in rounded_row(record)] for record in self.records]
        return markdown_table(COLUMNS, rows, text_columns=3)

    @property
    def rows(self) -> list[list[Any]]:
        """The same with the numbers as they are, under `COLUMNS`."""
        return [
            [each.task, each.part, each.metric, each.value, each.baseline, each.random_encoder, each.n]
            for each in self.records
        ]


def final_results(folder: Path, records: Sequence[ProbeRecord]) -> FinalResults:
    """What there is in the folder of a run that has ended, beside its records."""
    return FinalResults(records, pictures_of_run(folder), folder / "report.html")


# ---------------------------------------------------------------- how each tracker is told


@dataclass(frozen=True)
class Tracker:
    """How one tracker is told.

    Attributes:
        packages: it comes with any of these.
        cure: what to do if it doesn't start.
        start: how it is started: options of Accelerate's tracker.
        show: gives Accelerate's tracker the final results, after so many steps.
        log: gives it numbers by name, after so many steps.
        describe: gives it the options of a run that has started; None if `start` does.
        id_of: what it calls the run it has started, as `start` takes it; None if it has no need of that.
    """

    packages: tuple[str, ...]
    cure: str
    start: Callable[[TrackedRun], dict[str, Any]]
    show: Callable[[Any, FinalResults, int], None]
    log: Callable[[Any, Mapping[str, float], int], None] = lambda tracker, numbers, step: tracker.log(
        numbers, step=step
    )
    describe: Callable[[Any, TrackedRun], None] | None = None
    id_of: Callable[[Any], str] | None = None


def _start_tensorboard(run: TrackedRun) -> dict[str, Any]:
    return {"purge_step": run.steps_done + 1}  # hides what a killed run has logged of steps that are done again


def _start_wandb(run: TrackedRun) -> dict[str, Any]:
    tags = dict.fromkeys(label[:LONGEST_TAG] for label in run.labels.values())
    return {
        "name": run.name, "group": run.group, "tags": list(tags),
        "dir": str(run.folder), "id": run.earlier_id or uuid.uuid4().hex[:8], "resume": "allow",
        "config": {**run.labels, **run.options},
    }  # fmt: skip


def _start_trackio(run: TrackedRun) -> dict[str, Any]:
    resume = "never" if run.earlier_id is None else "allow"
    config = run.labels | flattened(dict(run.options))
    return {"name": run.earlier_id or run.name, "group": run.group, "resume": resume, "config": config}


def _start_mlflow(run: TrackedRun) -> dict[str, Any]:
    options = {"run_name": run.name, "run_id": run.earlier_id}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        folder = run.folder.resolve()
        importlib.import_module("mlflow").set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        # It is left to child processes there, where the next run of this process would take it for the user's.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        options["logging_dir"] = (folder / "mlflow-artifacts").as_uri()
    return options


def _describe_to_tensorboard(tracker: Any, run: TrackedRun) -> None:
    """Not by Accelerate, whose hyperparameters would be two runs beside this one."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    summary = hparams_pb(run.labels | _as_text(run.options), trial_id=str(run.folder))
    tracker.tracker.file_writer.add_summary(summary)


def _describe_to_mlflow(tracker: Any, run: TrackedRun) -> None:
    """The options of a run that is resumed stay those of its first start: MLflow has no others in their place."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_tags({"group": run.group, **run.labels})
    known = mlflow.get_run(tracker.tracker.info.run_id).data.params
    options = run.labels | _as_text(run.options)
    tracker.store_init_configuration({name: value for name, value in options.items() if name not in known})


def _as_text(options: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Options by their dotted names; lists and None, which not every tracker knows, as text."""
    texts = {
        name: " ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in flattened(dict(options)).items()
    }
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in texts.items()}


def _show_summaries(tracker: Any, results: FinalResults, step: int) -> None:
    writer = tracker.tracker
    writer.add_text("results/table", results.markdown, step)
    writer.add_text("results/report", f"`{results.report.resolve()}`", step)
    for name, picture in results.pictures.items():
        writer.add_image(f"results/{name}", picture.pixels, step, dataformats="HWC")
    writer.flush()


def _show_panels(tracker: Any, results: FinalResults, step: int) -> None:
    """W&B and Trackio call them the same."""
    library = importlib.import_module(tracker.name)
    panels = {"results/table": library.Table(columns=list(COLUMNS), data=results.rows)}
    for name, picture in results.pictures.items():
        panels[f"results/{name}"] = library.Image(picture.pixels, caption=picture.caption)
    if results.report.exists():
        panels["results/report"] = library.Html(str(results.report))
    tracker.tracker.log(panels, step=step)


def _show_artifacts(tracker: Any, results: FinalResults, step: int) -> None:
    mlflow = importlib.import_module("mlflow")
    table = io.StringIO()
    csv.writer(table).writerows([COLUMNS, *results.rows])
    mlflow.log_text(table.getvalue(), "results/table.csv")
    for name, picture in results.pictures.items():
        mlflow.log_image(picture.pixels, f"results/{name}.png")
    if results.report.exists():
        tracker.log_artifact(str(results.report), "results")


TRACKERS: Mapping[TrackerName, Tracker] = {
    "tensorboard": Tracker(
        ("tensorboard",), "check its installation", _start_tensorboard, _show_summaries,
        describe=_describe_to_tensorboard,
    ),
    "wandb": Tracker(
        ("wandb",), "run `wandb login` (or set WANDB_MODE=offline)", _start_wandb, _show_panels,
        id_of=lambda run: run.id,
    ),
    "trackio": Tracker(
        ("trackio",), "check its settings", _start_trackio, _show_panels,
        log=lambda tracker, numbers, step: tracker.tracker.log(numbers, step=step),  # Accelerate 1.13 drops the step
        id_of=lambda run: run.name,
    ),
    "mlflow": Tracker(
        ("mlflow", "mlflow-skinny"), "check MLFLOW_TRACKING_URI, or unset it and install the extra `trackers`",
        _start_mlflow, _show_artifacts,
        describe=_describe_to_mlflow,
        id_of=lambda run: run.info.run_id,
    ),
}  # fmt: skip


# ---------------------------------------------------------------- a run and its tracker


class Tracking:
    """What one process tells its tracker, by an `accelerate.Accelerator`; nothing where there is none.

    After its first failure it is told no more, and a warning says so: trackers are helpers, and none ends a run.

    Raises RunError if the tracker isn't installed.
    """

    def __init__(self, accelerator: Any, name: TrackerName | None) -> None:
        self._accelerator, self._name = accelerator, name
        self._active = False
        if name is not None and not any(map(_is_installed, TRACKERS[name].packages)):
            raise RunError(
                f"--tracker {name} needs a package that is not installed: "
                "run `uv sync --extra trackers`, or leave the option out"
            )

    def start(
        self, folder: Path, method: str, tags: Mapping[str, str], options: Mapping[str, Any], steps_done: int,
        resume: bool,
    ) -> None:  # fmt: skip
        """Starts a run of the project, or goes on with the one that the folder's run has been.

        Raises:
            RunError: the tracker doesn't start.
        """
        if self._name is None:
            return
        ids = read_json_object(folder / IDS_FILE, RunError) if resume and (folder / IDS_FILE).exists() else {}
        run = TrackedRun(folder, method, tags, options, steps_done, ids.get(self._name))
        how = TRACKERS[self._name]
        # TensorBoard calls a run by its folder; the others put it into a project.
        project = "." if self._name == "tensorboard" else PROJECT
        self._accelerator.project_configuration.logging_dir = str(folder)
        try:
            self._accelerator.init_trackers(project, init_kwargs={self._name: how.start(run)})
            tracker = self._accelerator.get_tracker(self._name)
            if how.describe is not None:
                how.describe(tracker, run)
            if how.id_of is not None:
                ids[self._name] = how.id_of(tracker.tracker)
        except Exception as error:  # trackers raise errors of many types
            raise RunError(
                f"--tracker {self._name} does not start ({_described(error)}): {how.cure}, or leave the option out"
            ) from error
        self._active = True
        if ids:
            write_atomically(folder / IDS_FILE, json.dumps(ids), CheckpointError)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers by names such as `speed/images_per_second`, in characters that all trackers take."""
        named = {re.sub(r"[^\w./-]", "_", name): value for name, value in numbers.items()}
        self._try(lambda tracker, how: how.log(tracker, named, step))

    def show(self, results: Callable[[], FinalResults], step: int) -> None:
        """What is known at the end, which is made for a tracker alone."""
        self._try(lambda tracker, how: how.show(tracker, results(), step))

    def end(self) -> None:
        """Lets the tracker finish; safe to call twice."""
        self._try(lambda tracker, how: self._accelerator.end_training())
        self._active = False

    def _try(self, action: Callable[[Any, Tracker], object]) -> None:
        if self._name is None or not self._active:
            return
        try:
            action(self._accelerator.get_tracker(self._name), TRACKERS[self._name])
        except Exception as error:  # a tracker that fails must not cost the run
            self._active = False
            print(
                f"warning: the tracker {self._name} failed ({_described(error)}) and is told no more: the run goes "
                "on, and metrics.jsonl is complete",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def _described(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
