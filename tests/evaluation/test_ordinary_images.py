"""Images without poses: probed for their class alone, from encoding to the report."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.evaluation.features import encode_split
from ssl_equi.evaluation.online import OnlineProbes
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, CORE_TASKS, ProbeProtocol, sie
from ssl_equi.evaluation.publish import publish_results
from ssl_equi.evaluation.suite import Evaluation, tasks_for
from tests.evaluation.probed_by_hand import probed
from tests.fakes import NEEDS_TRANSLATIONS

PARTS = {"all": slice(None), "inv": slice(0, 4)}


@pytest.fixture
def data(mixed_folder: Path) -> DataSource:
    return open_data("folder", mixed_folder, "val", 16)


def encoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8))


def probe(data: DataSource, protocol: ProbeProtocol) -> Evaluation:
    return probed(
        encoder(), PARTS, data.probe_train, data.evaluation, random_encoder=encoder(1), protocol=protocol,
        mean_rgb=data.mean_rgb, std_rgb=data.std_rgb,
    )  # fmt: skip


def test_each_image_is_encoded_once(data: DataSource) -> None:
    cache = encode_split(encoder(), data.evaluation, data.mean_rgb, data.std_rgb, batch_size=3)
    assert cache.features.shape == (4, 1, 8) and cache.latents.shape == (4, 1, 0) and cache.quats_xyzw is None
    assert cache.to("cpu").part(slice(0, 4)).quats_xyzw is None
    assert tasks_for(cache) == ("classification",)


def test_rendered_objects_are_still_asked_everything(fake_dataset: SimpleNamespace) -> None:
    cache = encode_split(encoder(), fake_dataset, (0.5,) * 3, (0.5,) * 3)
    assert set(CORE_TASKS) - set(tasks_for(cache)) == set(NEEDS_TRANSLATIONS)


@pytest.mark.parametrize(
    ("protocol", "further"), [(ProbeProtocol(), [(AUGMENTATION_EQUIVARIANCE, "gamma_f")]), (sie(), [])],
    ids=["embedded", "sie"],
)  # fmt: skip
def test_what_needs_no_poses_is_all_that_is_asked(
    data: DataSource, protocol: ProbeProtocol, further: list[tuple[str, str]]
) -> None:
    results = probe(data, dataclasses.replace(protocol, classification_epochs=5))
    assert [(record.task, record.part, record.metric) for record in results.records] == [
        ("classification", part, metric) for part in PARTS for metric in ("top1", "balanced_top1")
    ] + [(task, part, metric) for task, metric in further for part in PARTS]
    assert all(record.n == record.num_objects == 4 for record in results.records)
    assert all(record.random_encoder is not None for record in results.records)
    assert not any("relative_rotation" in tasks for tasks in results.results.values())
    assert all(results.results[part]["classification"].per_class_recall is not None for part in PARTS)


def test_objects_without_a_label_are_refused(data: DataSource) -> None:
    data.probe_train.labels[3] = -1
    with pytest.raises(ValueError, match="1 objects have no label: probe labelled images only"):
        probe(data, ProbeProtocol())


def test_table_records_and_report_do_not_speak_of_poses(
    data: DataSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = probe(data, ProbeProtocol(classification_epochs=2))
    path = publish_results(tmp_path, results, data.evaluation, title="images", command="command")
    printed = capsys.readouterr().out
    assert "classification" in printed and "rotation" not in printed and "colour" not in printed
    records = json.loads((tmp_path / "results.json").read_text())["records"]
    assert {record["task"] for record in records} == {"classification", AUGMENTATION_EQUIVARIANCE}
    page = path.read_text()
    shown = re.sub(r'<details id="probe-protocol">.*?</details>', "", page, flags=re.DOTALL)
    for word in ("rotation", "degrees", "angle", "colour (", "views of each"):
        assert word not in re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", shown, flags=re.DOTALL), word
    assert "<h2>Images</h2>" in page and "4 unseen images, as the encoder is given them" in page
    assert "the name is its class" in page and "recall of each class" in page
    assert re.search(r"<figcaption[^>]*>(✓ )?(cat|dog)</figcaption>", page)


def test_recall_of_very_many_classes_is_drawn_for_some(tmp_path: Path, data: DataSource) -> None:
    results = probe(data, ProbeProtocol(classification_epochs=1))
    recall = np.linspace(0, 1, 1000)
    for tasks in results.results.values():
        tasks["classification"] = dataclasses.replace(tasks["classification"], per_class_recall=recall)
    names = tuple(f"class-{index:04d}" for index in range(1000))
    many = dataclasses.replace(results, class_names=names)
    page = publish_results(tmp_path, many, data.evaluation, title="images", command="command").read_text()
    assert "recall of 60 of 1000 classes, best to worst," in page
    bars = re.search(r'aria-label="[^"]*recall of 60.*?</svg>', page, flags=re.DOTALL)
    assert bars is not None and len(set(re.findall(r"class-\d{4}", bars[0]))) == 60


def test_online_probes_ignore_absent_labels_and_poses() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 2, 6, generator=generator)
    labels = torch.tensor([0, 1, -1, 2, -1, 0, 1, 2])
    probes, of_labelled = (OnlineProbes(6, {"all": slice(None)}, 3, every=1) for _ in range(2))
    regressor = probes.regressors["all"].weight.clone()
    probes.update(features, labels, None)
    # The same step by hand: cross-entropy over the labelled objects, whose features keep the batch's statistics.
    kept = labels >= 0
    standardised = (features - features.mean((0, 1))) / (features.var((0, 1), correction=0) + 1e-5).sqrt()
    logits = of_labelled.classifiers["all"](standardised[kept].flatten(0, 1))
    hits = (logits.argmax(dim=1) == labels[kept].repeat_interleave(2)).float().mean()
    nn.functional.cross_entropy(logits, labels[kept].repeat_interleave(2)).backward()
    of_labelled.optimizer.step()
    torch.testing.assert_close(probes.classifiers["all"].weight, of_labelled.classifiers["all"].weight)
    assert torch.equal(probes.regressors["all"].weight, regressor)
    assert probes.metrics() == {"all/top1": pytest.approx(float(hits))}


def test_online_probes_survive_a_batch_without_any_label() -> None:
    probes = OnlineProbes(6, {"all": slice(None)}, 3, every=1)
    probes.update(torch.randn(4, 2, 6), torch.full((4,), -1), None)
    assert probes.metrics() == {}
    assert bool(torch.isfinite(probes.classifiers["all"].weight).all())
    OnlineProbes(6, {"all": slice(None)}, 3, every=1).load_state_dict(probes.state_dict())
