"""A task that is one registered function: asked by protocols, and seen in records, table, report and list of tasks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_equi.data.sources import DataSource
from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.protocol import ProbeProtocol, ssl_equi
from ssl_equi.evaluation.publish import publish_results
from ssl_equi.evaluation.samples import feature_matrix
from ssl_equi.evaluation.suite import asked_tasks, evaluate
from ssl_equi.evaluation.task import TASKS, Ask, TaskResult, object_means, task
from ssl_equi.runtime.frozen import state_sha256
from tests.evaluation.conftest import make_fake_dataset


@pytest.fixture
def norms() -> Iterator[None]:
    """What a user would write into a file of its own."""

    @task("feature_norm")
    def feature_norm(ask: Ask) -> TaskResult:
        """Mean length of a view's features."""
        lengths = feature_matrix(ask.test).norm(dim=1)
        objects = torch.arange(ask.test.num_objects).repeat_interleave(ask.test.num_views)
        return TaskResult(
            metrics={"length_mean": float(lengths.mean())},
            baselines={"length_mean": Baseline(0.0, "no features")},
            num_samples=len(lengths),
            object_scores={"length_mean": object_means(lengths, objects, ask.test.num_objects)},
        )

    yield
    del TASKS["feature_norm"]


class Pixels(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., :2, :2].flatten(1)


@pytest.mark.usefixtures("norms")
def test_it_is_asked_and_shown_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = make_fake_dataset(), make_fake_dataset(seed=1)
    data = DataSource("by hand", train, train, test, (0.5,) * 3, (0.2,) * 3)
    module, parts = Pixels(), {"all": slice(0, 12), "inv": slice(0, 6)}
    source = EncoderSource("pixels", module, parts, 8, None, None, state_sha256(module), "pixels", Pixels)
    assert "feature_norm" in [each.name for each in asked_tasks(source.name, source.predictor, test.schema, ssl_equi())]
    results = evaluate(source, data, ProbeProtocol(bootstrap_resamples=50), tasks=("feature_norm",))
    whole, half = results.records
    assert {(record.task, record.metric) for record in results.records} == {("feature_norm", "length_mean")}
    assert whole.value > half.value > 0 and whole.random_encoder == whole.value
    assert whole.interval_low < whole.value < whole.interval_high
    assert np.isfinite(whole.object_standard_error)
    page = publish_results(tmp_path, results, test, title="t", command="c").read_text()
    printed = capsys.readouterr().out
    for shown in (page, printed):
        assert "feature_norm" in shown and "length_mean" in shown and f"{whole.value:.3f}" in shown
