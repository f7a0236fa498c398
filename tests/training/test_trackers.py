"""What trackers hold of a run that was killed and resumed, read back from what each of them has written."""

import dataclasses
import json
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_equi.cli import run_recipe
from ssl_equi.evaluation.report.drawings import Picture
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.run import Run
from ssl_equi.training.trackers import IDS_FILE, TRACKERS, FinalResults
from tests.evaluation.report_pages import record
from tests.fakes import process_of_its_own
from tests.toy_recipe import ToyConfig, train_toy

KILLED_AFTER, SAVED_AFTER, STEPS = 7, 5, 9
LABELS = {"method": "toy", "configuration": "small"}


@dataclasses.dataclass(frozen=True)
class TrackedConfig(ToyConfig):
    actions: tuple[str, ...] = ("rotation", "light")


@dataclasses.dataclass(frozen=True)
class Held:
    """What a tracker holds.

    Attributes:
        labels: method and tags, as far as they are apart from the options.
        losses: by step, each as often as it is shown.
        shown: table, pictures and report by name.
        table: text or JSON of it.
    """

    name: str
    group: str
    labels: list[str]
    options: dict[str, Any]
    losses: dict[int, list[float]]
    final: dict[str, float]
    shown: set[str]
    table: str


def in_tensorboard(folder: Path, elsewhere: Path) -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder))
    events.Reload()
    assert not list(folder.glob("*/*tfevents*")), "TensorBoard would show each folder as a run"
    losses: dict[int, list[float]] = {}
    for event in events.Scalars("train/loss"):
        losses.setdefault(event.step, []).append(event.value)
    final = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if tag.startswith("final/")}
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    options = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")}
    table = events.Tensors("results/table/text_summary")[-1].tensor_proto.string_val[0].decode()
    return Held(folder.name, "toy small", [], options, losses, final, texts | {*events.Tags()["images"]}, table)


def in_wandb(folder: Path, elsewhere: Path) -> Held:
    """Of both folders that `wandb sync` puts into one run, as they have its id."""
    import wandb

    wandb.teardown()  # its process writes what it still holds
    runs, histories = [], []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for entry in wandb_records(file):
            if entry.WhichOneof("record_type") == "run":
                runs.append(entry.run)
            elif entry.WhichOneof("record_type") == "history":
                items = {[*item.nested_key, item.key][0]: item.value_json for item in entry.history.item}
                histories.append({name: json.loads(value) for name, value in items.items()})
    assert len(runs) == 2 and runs[0].run_id == runs[1].run_id and {run.project for run in runs} == {"ssl-equi"}
    nested = {item.key: json.loads(item.value_json) for item in runs[-1].config.update}
    losses: dict[int, list[float]] = {}
    for line in histories:  # on the server the first of two with the same step stays
        if "train/loss" in line:
            losses.setdefault(line["_step"], [line["train/loss"]])
    final = {name: value for line in histories for name, value in line.items() if name.startswith("final/")}
    shown = {name for line in histories for name in line if name.startswith("results/")}
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/results/*.json")
    run = runs[-1]
    return Held(run.display_name, run.run_group, list(run.tags), nested, losses, final, shown, table.read_text())


def wandb_records(file: Path) -> Iterator[Any]:
    """Messages in W&B's format: a header, then blocks of 32 KiB of fragments, as in LevelDB's logs."""
    from wandb.proto import wandb_internal_pb2

    content, offset, message = file.read_bytes(), 7, b""
    while offset + 7 <= len(content):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, offset)
        message += content[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # whole, or its last fragment
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


def in_trackio(folder: Path, elsewhere: Path) -> Held:
    with sqlite3.connect(elsewhere / "trackio" / "ssl-equi.db") as database:
        ((name, config),) = database.execute("select run_name, config from configs").fetchall()
        lines = database.execute("select step, metrics from metrics order by id").fetchall()
    options = json.loads(config)
    logged = [(step, json.loads(metrics)) for step, metrics in lines]
    losses: dict[int, list[float]] = {}
    for step, line in logged:
        if "train/loss" in line:
            losses.setdefault(step, []).append(line["train/loss"])
    losses = {step: [*dict.fromkeys(values)] for step, values in losses.items()}  # it keeps equal ones of a step
    final = {name: value for _, line in logged for name, value in line.items() if name.startswith("final/")}
    shown = {name: value for _, line in logged for name, value in line.items() if name.startswith("results/")}
    assert "allow_val_change" not in options
    return Held(name, options["_Group"], [], options, losses, final, {*shown}, json.dumps(shown["results/table"]))


def in_mlflow(folder: Path, elsewhere: Path) -> Held:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("ssl-equi")
    (run,) = client.search_runs([experiment.experiment_id])
    losses: dict[int, list[float]] = {}
    for metric in client.get_metric_history(run.info.run_id, "train/loss"):
        losses.setdefault(metric.step, []).append(metric.value)
    losses = {step: [*dict.fromkeys(values)] for step, values in losses.items()}  # it keeps equal ones of a step
    final = {name: value for name, value in run.data.metrics.items() if name.startswith("final/")}
    artifacts = folder / "mlflow-artifacts" / run.info.run_id / "artifacts"
    shown = {path.relative_to(artifacts).with_suffix("").as_posix() for path in artifacts.rglob("*.*")}
    tags = run.data.tags
    labels = [tags[name] for name in LABELS]
    table = (artifacts / "results" / "table.csv").read_text()
    return Held(run.info.run_name, tags["group"], labels, run.data.params, losses, final, shown, table)


HELD = {"tensorboard": in_tensorboard, "wandb": in_wandb, "trackio": in_trackio, "mlflow": in_mlflow}


def train(config: TrackedConfig) -> Run:
    run = Run(config, "toy")
    train_toy(run, STEPS, lambda step, objective: None)
    return run


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where trackers write what doesn't lie in the run's folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("TRACKIO_DIR", f"{folder}/trackio")):
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="module", params=TRACKERS)
def tracker(request: pytest.FixtureRequest) -> str:
    return installed(str(request.param))


def installed(tracker: str) -> str:
    pytest.importorskip(tracker, reason=f"{tracker} comes with the extra trackers: uv sync --extra trackers")
    return tracker


@pytest.fixture(scope="module")
def folder(tracker: str, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose last checkpoint is older than its last line, as after a kill, and which went on to its end."""
    folder = tmp_path_factory.mktemp(tracker) / "mine"
    config = TrackedConfig(
        out=folder, tracker=tracker, configuration="small", save_every=SAVED_AFTER, steps=KILLED_AFTER
    )
    (folder.parent / "report.html").write_text("<html><h1>Report</h1></html>")
    with process_of_its_own():
        train(config).close()
    shutil.rmtree(folder / "checkpoints" / f"step-{KILLED_AFTER:08d}")
    for path in folder.glob("wandb/offline-run-*"):  # named by the second, and a test is quicker than that
        path.rename(path.with_name("offline-run-0"))
    with process_of_its_own():
        run = train(dataclasses.replace(config, steps=None, resume=True))
        picture = Picture(np.full((8, 12, 3), 200, np.uint8), "grey")
        records = [record(value=0.75), record(part="agg@4", random_encoder=0.5)]
        run.track({f"final/{each.task}/{each.part}/{each.metric}": each.value for each in records})
        run.track_results(
            lambda: FinalResults(
                records, {"views": picture, "recall/classification": picture}, run.folder.parent / "report.html"
            )
        )
        run.close()
    return folder


@pytest.fixture(scope="module")
def held(tracker: str, folder: Path, elsewhere: Path) -> Held:
    return HELD[tracker](folder, elsewhere)


def test_a_run_has_its_name_its_group_and_what_it_is_found_by(held: Held) -> None:
    assert (held.name, held.group) == ("mine", "toy small")
    assert held.labels in ([], [*LABELS.values()])
    assert {name: held.options[name] for name in LABELS} == LABELS


def test_options_have_the_types_that_a_tracker_knows(tracker: str, held: Held) -> None:
    """MLflow knows text only, and TensorBoard neither lists nor None."""
    found = tuple(held.options[name] for name in ("width", "collective_timeout", "compile", "clip_norm", "actions"))
    as_text = (4, 5.0, False, "None", "rotation light")
    expected = {"tensorboard": as_text, "mlflow": tuple(map(str, as_text))}
    assert found == expected.get(tracker, (4, 5.0, False, None, ["rotation", "light"]))
    assert [type(value) for value in found[2:3]] == [str if tracker == "mlflow" else bool]


def test_a_resumed_run_goes_on_with_its_curve(held: Held, folder: Path) -> None:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: [pytest.approx(line["loss"])] for line in lines if line["event"] == "loss"}
    assert held.losses == losses and len(losses) == STEPS


def test_final_numbers_table_pictures_and_report_are_shown(held: Held) -> None:
    final = {"final/classification/inv/top1": 0.75, "final/classification/agg_4/top1": 0.8}
    assert held.final == pytest.approx(final)
    assert held.shown == {f"results/{name}" for name in ("table", "views", "recall/classification", "report")}
    assert "agg@4" in held.table and "0.75" in held.table


def test_tags_name_the_configuration_the_data_and_the_encoder() -> None:
    tags = PretrainingConfig(configuration="paper").tags
    assert tags == {"configuration": "paper", "dataset": "3diebench-p", "encoder": "strided_cnn_tiny"}


def test_a_configuration_knows_the_name_that_the_command_line_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ToyConfig] = []
    monkeypatch.setattr("sys.argv", ["toy.py", "small", "--steps", "3"])
    run_recipe(received.append, {"usual": ToyConfig, "small": ToyConfig}, "A toy.")
    assert [(config.configuration, config.steps) for config in received] == [("small", 3)]


def test_a_run_that_starts_afresh_is_another_one(elsewhere: Path, tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with process_of_its_own():
            train(TrackedConfig(out=tmp_path, tracker=installed("trackio"), steps=1)).close()
        ids.append((tmp_path / IDS_FILE).read_text())
        shutil.rmtree(tmp_path / "checkpoints")
    with sqlite3.connect(elsewhere / "trackio" / "ssl-equi.db") as database:
        found = database.execute("select count(*) from configs where run_name = ?", (tmp_path.name,)).fetchone()
    assert ids == [json.dumps({"trackio": tmp_path.name})] * 2 and found == (2,)
