"""Intervals over objects against resampling in a loop; pairs of small sets; angles of single classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from ssl_equi.evaluation.bootstrap import (
    ObjectStatistic,
    bootstrap_interval,
    mean_statistic,
    median_statistic,
    r2_uniform_statistic,
)
from ssl_equi.evaluation.pairs import evaluation_pairs
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, ProbeProtocol
from ssl_equi.evaluation.records import describe_columns, print_records
from ssl_equi.evaluation.seed_table import print_seeds
from ssl_equi.evaluation.suite import records_of
from ssl_equi.evaluation.task import TASKS, Ask
from ssl_equi.evaluation.task_samples import evaluated_pairs
from tests.evaluation.report_pages import results_of

OBJECTS, SAMPLES = 7, 60


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Predictions and targets `[60, 3]` of which the last column is constant, and the objects that they are of."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(SAMPLES, 3, generator=generator) + 5
    targets[:, 2] = 1e3
    predictions = targets + 0.5 * torch.randn(SAMPLES, 3, generator=generator)
    objects = np.concatenate([np.arange(OBJECTS), np.random.default_rng(0).integers(0, OBJECTS, SAMPLES - OBJECTS)])
    return predictions, targets, objects


def test_statistics_are_the_metrics_of_the_drawn_objects(samples):
    predictions, targets, objects = samples
    errors = np.abs(predictions[:, 0] - targets[:, 0]).double().numpy()
    scores = np.array([np.nan if item == 2 else errors[objects == item].mean() for item in range(OBJECTS)])
    drawn = np.random.default_rng(1).integers(0, OBJECTS, (20, OBJECTS))
    counts = np.stack([np.bincount(row, minlength=OBJECTS) for row in drawn])
    rows = [np.concatenate([np.flatnonzero(objects == item) for item in row]) for row in drawn]
    medians = median_statistic(errors, objects, OBJECTS).of_counts(counts)
    np.testing.assert_allclose(medians, [np.median(errors[row]) for row in rows])
    found = r2_uniform_statistic(predictions, targets, objects, OBJECTS).of_counts(counts)
    expected = [r2_score(targets[row, :2].double(), predictions[row, :2].double()) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(
        mean_statistic(scores).of_counts(counts), [np.nanmean(scores[row]) for row in drawn], atol=1e-12
    )


def test_the_interval_is_that_of_the_normal_distribution_for_a_mean_and_the_same_twice():
    scores = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(mean_statistic(scores), 1000)
    error = scores.std() / 20
    assert (low, high) == pytest.approx((scores.mean() - 1.96 * error, scores.mean() + 1.96 * error), abs=0.25 * error)
    assert bootstrap_interval(mean_statistic(scores), 1000) == (low, high)


@pytest.mark.parametrize(
    ("statistic", "resamples"),
    [
        (mean_statistic(np.array([1.0])), 100),
        (mean_statistic(np.array([1.0, 2.0])), 0),
        (ObjectStatistic(5, lambda counts: np.full(len(counts), np.nan)), 100),
    ],
    ids=["one object", "no resamples", "undefined"],
)
def test_there_may_be_no_interval(statistic, resamples):
    assert bootstrap_interval(statistic, resamples) is None


def test_small_sets_are_judged_on_all_pairs():
    protocol = ProbeProtocol()
    pairs = evaluated_pairs(16, 41, protocol)
    rows = set(zip(pairs.object_indices.tolist(), pairs.first_view.tolist(), pairs.second_view.tolist(), strict=True))
    assert len(rows) == len(pairs) == 16 * 41 * 40
    assert len(evaluated_pairs(10, 72, protocol)) == 30_000  # of 51,120
    for count, views, asked in ((50, 41, protocol), (16, 41, PROBE_PROTOCOLS["sie"]())):
        expected = evaluation_pairs(count, views, asked.evaluation_pairs_per_object, asked.evaluation_seed)
        np.testing.assert_array_equal(evaluated_pairs(count, views, asked).second_view, expected.second_view)


def test_rotations_have_intervals_and_their_angles_by_class(posed_cache, capsys):
    quick = ProbeProtocol(rotation_hidden=(16,), rotation_epochs=2, bootstrap_resamples=200)
    names = ("a mug", "a/mug", "dog", "")
    train, test = (
        replace(cache, features=cache.quats_xyzw, class_names=names)
        for cache in (posed_cache(40, 0), posed_cache(12, 1))
    )
    result = TASKS["relative_rotation"](Ask(train, test, 4, quick, 0))
    records = records_of(
        {"all": {"relative_rotation": result}}, None, split="test", protocol=quick, seed=0, num_objects=12
    )
    by_name = {record.metric: record for record in records}
    for name in ("r2_uniform", "angle_deg_median", "angle_deg_mean", "angle_deg_median_of_dog"):
        assert by_name[name].interval_low < by_name[name].value < by_name[name].interval_high
    assert by_name["r2_pooled"].interval_low is None
    of_classes = [f"angle_deg_median_of_{name}" for name in ("a_mug_0", "a_mug_1", "dog", "_3")]
    assert [name for name in by_name if "_of_" in name] == of_classes
    errors = result.angle_errors_deg.reshape(12, -1)  # all 56 ordered pairs of 8 views of each object
    assert errors.shape[1] == 56
    for label, name in enumerate(of_classes):
        assert by_name[name].value == pytest.approx(np.median(errors[label::4]))
    for shown in (print_records, print_seeds):
        shown(records)
        printed = capsys.readouterr().out
        assert "angle_deg_median" in printed and "of_dog" not in printed
    assert "angle_deg_median_of_CLASS" in " ".join(describe_columns(records))
    page = results_of(records)
    assert "<code>angle_<wbr>deg_<wbr>median</code>" in page and "of_<wbr>dog" not in page
    assert page.count("relative_rotation: median angle by class") == 1
    of_dog = by_name["angle_deg_median_of_dog"]
    assert (
        f'<tr><td>dog</td><td class="number" data-value="{of_dog.value}">{of_dog.value:.1f}°<div class="below"><small'
        in page
    )


def test_many_classes_are_not_told_apart(posed_cache):
    quick = ProbeProtocol(absolute_rotation_hidden=(16,), absolute_rotation_epochs=1)
    names = tuple(f"class {label}" for label in range(25))
    cache = posed_cache(50, 0, num_classes=25)
    cache = replace(cache, features=cache.quats_xyzw, class_names=names)
    assert not any("_of_" in name for name in TASKS["absolute_rotation"](Ask(cache, cache, 25, quick, 0)).metrics)
