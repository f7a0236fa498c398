"""Data with latents of their own through the doors of the evaluation, from shards to the page."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_equi.data.derived import ViewSubset
from ssl_equi.data.sources import DataSource, open_data, turned_source
from ssl_equi.errors import DataError, UserError
from ssl_equi.evaluation import suite
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.protocol import CORE_TASKS, ProbeProtocol, sie
from ssl_equi.evaluation.publish import publish_results
from ssl_equi.evaluation.report.write import write_report_or_warn
from ssl_equi.evaluation.suite import asked_tasks, tasks_for
from ssl_equi.latents.number import Number
from ssl_equi.latents.schema import LatentSchema
from ssl_equi.runtime.frozen import state_sha256
from tests.turntables import SIDE, TURNTABLE, write_turntables

OWN = ("relative_azimuth", "absolute_azimuth", "relative_elevation", "absolute_elevation", "absolute_tool")
QUICK = ProbeProtocol(
    classification_epochs=30, rotation_epochs=12, rotation_hidden=(32,), absolute_rotation_epochs=12,
    absolute_rotation_hidden=(32,), batch_size=32, learning_rate=1e-2, bootstrap_resamples=20, tasks=CORE_TASKS,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_turntables(tmp_path_factory.mktemp("turntables"))


@pytest.fixture
def data(folder: Path) -> DataSource:
    return open_data("posed", folder, "val", SIDE)


def source() -> EncoderSource:
    """The mean colour of each quarter, which shows all latents."""
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    parts = {"all": slice(0, 12), "inv": slice(0, 12)}
    return EncoderSource("quarters", module, parts, SIDE, None, None, state_sha256(module), "quarters", None)


def evaluate(data: DataSource, tasks: tuple[str, ...] = (), protocol: ProbeProtocol = QUICK) -> suite.Evaluation:
    return suite.evaluate(source(), data, protocol, tasks=tasks, parts=("all",))


def test_every_protocol_asks_the_latents_of_the_data_besides(data: DataSource) -> None:
    assert data.evaluation.schema == TURNTABLE and data.evaluation.quats_xyzw is None
    assert tasks_for(data.evaluation, sie().tasks) == ("classification", *OWN)
    for schema, names, asked in (
        (TURNTABLE, (), [*sie().tasks, *OWN]), (TURNTABLE, ("knn", "latents"), ["knn", *OWN]), (None, ("latents",), []),
    ):  # fmt: skip
        assert [task.name for task in asked_tasks("mine", None, schema, sie(), names)] == asked
    results = evaluate(data)
    assert {record.task for record in results.records} == {"classification", *OWN}
    assert [note.partition(",")[0] for note in results.notes] == [*CORE_TASKS[1:]]
    assert all("latents: azimuth, elevation, tool" in note for note in results.notes)
    skill = {record.task: record.value for record in results.records if record.metric in ("r2_uniform", "top1")}
    assert all(skill[task] > 0.6 for task in OWN), skill


def test_names_of_latents_are_tasks_and_others_are_answered_with_those_there_are(data: DataSource) -> None:
    results = evaluate(data, ("relative_elevation",))
    assert {record.task for record in results.records} == {"relative_elevation"}
    with pytest.raises(
        UserError, match=f"no task 'relative_tool': of these data's latents, choose from {', '.join(OWN)}"
    ):
        evaluate(data, ("relative_tool",))


def test_turned_pictures_of_unknown_frames_and_splits_of_two_schemas_are_refused(data: DataSource) -> None:
    with pytest.raises(DataError, match="have latents azimuth, elevation, tool, and what a turn of the picture does"):
        turned_source(data, "quarter")
    others = ViewSubset(data.probe_train, torch.arange(4).numpy(), torch.arange(2).expand(4, 2).numpy())
    wider = LatentSchema(
        (*TURNTABLE.latents[:1], replace(TURNTABLE.latents[1], kind=Number((0, 80))), *TURNTABLE.latents[2:])
    )
    others.schema = wider
    with pytest.raises(ValueError, match="the latents of the train split are not those of the val split"):
        evaluate(replace(data, probe_train=others))


def test_classes_of_objects_that_are_judged_on_other_views(data: DataSource) -> None:
    """As in COIL-20: every object is a class, and splits are of views."""
    objects = torch.arange(data.train.num_objects).numpy()
    names = tuple(f"object {number}" for number in objects)
    splits = [ViewSubset(data.train, objects, torch.tensor(views).expand(len(objects), -1).numpy())
              for views in ([0, 2, 4, 5], [1, 3])]  # fmt: skip
    for split in splits:
        split.labels, split.class_names = objects, names
    train, judged = splits
    by_views = replace(data, train=train, probe_train=train, evaluation=judged)
    results = evaluate(
        by_views, ("classification", "linear", "knn", "absolute_azimuth"), replace(QUICK, knn_neighbours=3)
    )
    assert {record.task for record in results.records} == {"classification", "linear", "knn", "absolute_azimuth"}
    assert all("were chosen on held-out views" in note for note in results.notes)
    assert {record.n for record in results.records} == {2 * len(objects)}


def test_the_pages_show_them(data: DataSource, tmp_path: Path) -> None:
    results = evaluate(data)
    runs = [tmp_path / "one", tmp_path / "other"]
    for run in runs:
        page = publish_results(
            run, results, data.evaluation, title="turntables", command="none", run={"evaluation_fingerprint": "1"}
        ).read_text()
    assert '<div class="label">Relative azimuth</div>' in page and "relative_azimuth: median angle by class" in page
    assert "Relative azimuth, part all: error over the evaluated samples" in page
    assert "how the latent elevation changes between two views" in page
    assert "6 views of each of 6 unseen objects" in page
    write_report_or_warn(runs, tmp_path / "both.html", title="two runs")
    compared = (tmp_path / "both.html").read_text()
    assert "What stays and what changes" in compared and "azimuth from all" in compared
    assert "how the latent elevation changes between two views" in compared
