"""Whether trained predictors use their actions: closed forms, controls, intervals, and the sentence of the report."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.evaluation.bootstrap import RatioStatistic, bootstrap_interval, paired_interval, statistic_of_array
from ssl_equi.evaluation.predictors.action_gain import action_gain, gain_in_words, predictor_gain
from ssl_equi.evaluation.report.compared_runs import read_compared_runs
from ssl_equi.evaluation.report.runs import actions_section
from ssl_equi.evaluation.results import records_of
from ssl_equi.evaluation.samples import TaskSkipped, training_views
from ssl_equi.evaluation.task import TaskResult
from ssl_equi.geometry.rotations import quat_multiply
from ssl_equi.latents.actions import actions_of
from tests.fakes import TurningPredictor, posed_features

OBJECTS, VIEWS = 40, 6


class Ignoring(nn.Module):
    """Predicts what it observed, whatever the action is."""

    aggregator_takes_actions = predictor_takes_actions = True

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        return features.mean(dim=1)

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        return aggregates


class Turning(Ignoring):
    """Turns the last of the observed views, whose features are its quaternion, as the action says."""

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        return features[:, -1]

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        assert actions is not None
        return quat_multiply(aggregates, actions)


@pytest.mark.parametrize("context_views", [1, 3])
def test_a_model_that_turns_with_its_actions_has_the_closed_form(context_views: int) -> None:
    """Its error is that of the noise in its features; with other actions, that of other rotations."""
    cache = posed_features(OBJECTS, VIEWS)
    noise = 0.1 * torch.randn(cache.features.shape, generator=torch.Generator().manual_seed(0))
    cache = replace(cache, features=cache.features + noise)
    known = actions_of(cache.schema, ("rotation",))
    found = action_gain(Turning(), cache, cache.features, known, context_views=context_views)
    own, others = np.zeros(OBJECTS), np.zeros(OBJECTS)
    every_action = known.between_all(cache.latents, cache.quats_xyzw)
    for context in range(10):
        drawn = training_views(OBJECTS, VIEWS, context_views + 1, 0, context)
        for number in range(OBJECTS):
            *_, last, target = drawn[number]
            for errors, other in ((own, number), (others, number - 1)):
                action = every_action[other, drawn[other, -2], drawn[other, -1]]
                turned = quat_multiply(cache.features[number, last], action)
                errors[number] += 1 - float(torch.cosine_similarity(turned, cache.features[number, target], dim=0))
    assert found.metrics["action_gain"] == pytest.approx(others.mean() / own.mean() - 1, rel=1e-4)
    assert found.metrics["action_gain"] > 5
    assert found.notes == () and found.num_samples == OBJECTS * 10


def test_objects_on_a_turntable_have_other_actions_all_the_same() -> None:
    """All are seen from the same places, in the same order."""
    cache = posed_features(OBJECTS, VIEWS)
    same = {name: getattr(cache, name)[:1].expand(OBJECTS, -1, -1) for name in ("features", "latents", "quats_xyzw")}
    cache = replace(cache, **same)
    known = actions_of(cache.schema, ("rotation",))
    assert action_gain(Turning(), cache, cache.features, known).metrics["action_gain"] > 100
    still = replace(cache, latents=cache.latents[:, :1].expand(-1, VIEWS, -1))
    still = replace(still, quats_xyzw=cache.quats_xyzw[:, :1].expand(-1, VIEWS, -1))
    with pytest.raises(TaskSkipped, match="the same actions"):
        action_gain(Turning(), still, still.features, known)


def test_a_model_that_ignores_its_actions_gains_nothing_and_a_note_says_so() -> None:
    cache = posed_features(OBJECTS, VIEWS)
    found = action_gain(Ignoring(), cache, cache.features, actions_of(cache.schema, ("rotation",)))
    assert found.metrics == {"action_gain": 0} and found.baselines["action_gain"].value == 0
    (note,) = found.notes
    assert note.startswith("the predictor does not use its actions: its error is 0.0 % larger")


def test_a_predictor_of_a_run_is_asked_towards_its_own_embeddings() -> None:
    cache = posed_features(OBJECTS, VIEWS)
    assert predictor_gain(TurningPredictor(), cache).metrics["action_gain"] > 100


def test_too_few_views_or_objects_are_skipped() -> None:
    cache = posed_features(OBJECTS, 3)
    known = actions_of(cache.schema, ("rotation",))
    with pytest.raises(TaskSkipped, match="40 objects have 3 views"):
        action_gain(Ignoring(), cache, cache.features, known, context_views=3)
    with pytest.raises(TaskSkipped, match="1 objects"):
        action_gain(Ignoring(), cache.objects(torch.arange(1)), cache.features[:1], known)


def test_the_interval_is_that_of_a_ratio_of_means_over_drawn_objects() -> None:
    generator = np.random.default_rng(0)
    plain = generator.uniform(1, 2, 200)
    statistic = RatioStatistic(1.5 * plain + generator.normal(0, 0.01, 200), plain)
    assert statistic.value() == pytest.approx(0.5, abs=0.01)
    low, high = bootstrap_interval(statistic, 500)
    assert low < statistic.value() < high and high - low < 0.01, "both means move together"
    kept = statistic_of_array("object_ratios", statistic.as_array())
    assert kept is not None and kept.value() == pytest.approx(statistic.value(), rel=1e-12)
    assert paired_interval(statistic, RatioStatistic(plain, plain)) == pytest.approx((0.5, 0.5), abs=0.01)


@pytest.mark.parametrize(
    ("gain", "interval", "sentence"),
    [
        (
            0.43,
            (0.4, 0.46),
            "the predictor uses its actions: its error is 43.0 % larger (95 % interval 40.0 to 46.0 %)",
        ),
        (0.004, (-0.002, 0.01), "does not use its actions: its error is 0.4 % larger (95 % interval -0.2 to 1.0 %)"),
        (-0.01, None, "does not use its actions: its error is 1.0 % smaller with the actions of other objects"),
    ],
)
def test_words_follow_the_interval(gain: float, interval: tuple[float, float] | None, sentence: str) -> None:
    assert sentence in gain_in_words(gain, interval)


@pytest.mark.parametrize("judged", [True, False])
def test_the_report_says_in_words_whether_actions_are_used(tmp_path: Path, judged: bool) -> None:
    """From the judged split, or from the end of the training where nothing else is known."""
    cache = posed_features(OBJECTS, VIEWS)
    answers: dict[str, dict[str, TaskResult]] = {"all": {}}
    if judged:
        known = actions_of(cache.schema, ("rotation",))
        answers["all"]["action_gain"] = action_gain(Ignoring(), cache, cache.features, known)
    records = records_of(answers, None, split="test", protocol="ours", seed=0, num_objects=OBJECTS)
    (tmp_path / "results.json").write_text(json.dumps({"records": [asdict(record) for record in records], "run": {}}))
    lines = [{"event": "loss", "step": step, "loss": 1.0, "action_gain": 0.001 * step} for step in range(10, 90, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = actions_section(read_compared_runs([tmp_path]))
    if judged:
        assert "<p>The predictor does not use its actions: its error is 0.0 % larger" in html
        assert "split test (40 objects, part all)" in html
    else:
        assert "<p>The predictor uses its actions: its error is 7.5 % larger" in html
        assert "mean of the last 2 logged steps" in html
