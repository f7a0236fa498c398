"""Intervals over objects against resampling in a loop; pairs of small sets; angles of single classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from ssl_equi.evaluation.bootstrap import (
    MeanStatistic,
    ObjectStatistic,
    bootstrap_interval,
    median_statistic,
    paired_interval,
    r2_uniform_statistic,
    statistic_of_array,
)
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, ProbeProtocol
from ssl_equi.evaluation.results import records_of
from ssl_equi.evaluation.samples import evaluated_pairs, evaluation_pairs
from ssl_equi.evaluation.tables import describe_columns, print_records, print_seeds
from ssl_equi.evaluation.task import TASKS, Ask
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
        MeanStatistic(scores).of_counts(counts), [np.nanmean(scores[row]) for row in drawn], atol=1e-12
    )


def test_the_interval_is_that_of_the_normal_distribution_for_a_mean_and_the_same_twice():
    scores = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(MeanStatistic(scores), 1000)
    error = scores.std() / 20
    assert (low, high) == pytest.approx((scores.mean() - 1.96 * error, scores.mean() + 1.96 * error), abs=0.25 * error)
    assert bootstrap_interval(MeanStatistic(scores), 1000) == (low, high)


@pytest.mark.parametrize(
    ("statistic", "resamples"),
    [
        (MeanStatistic(np.array([1.0])), 100),
        (MeanStatistic(np.array([1.0, 2.0])), 0),
        (MeanStatistic(np.full(5, np.nan)), 100),
    ],
    ids=["one object", "no resamples", "undefined"],
)
def test_there_may_be_no_interval(statistic, resamples):
    assert bootstrap_interval(statistic, resamples) is None


# ---------------------------------------------------------------- two encoders


def statistics_of(predictions: torch.Tensor, targets: torch.Tensor, objects: np.ndarray) -> list[ObjectStatistic]:
    errors = np.abs(predictions[:, 0] - targets[:, 0]).double().numpy()
    means = np.array([errors[objects == item].mean() for item in range(OBJECTS)])
    return [
        MeanStatistic(means), median_statistic(errors, objects, OBJECTS),
        r2_uniform_statistic(predictions, targets, objects, OBJECTS),
    ]  # fmt: skip


def test_statistics_come_back_from_their_arrays(samples):
    counts = np.random.default_rng(2).multinomial(OBJECTS, np.full(OBJECTS, 1 / OBJECTS), 20)
    for statistic in statistics_of(*samples):
        found = statistic_of_array(statistic.kind, statistic.as_array())
        np.testing.assert_allclose(found.of_counts(counts), statistic.of_counts(counts), rtol=1e-6)
        np.testing.assert_allclose(found.asked(), statistic.asked())
        assert found.value() == pytest.approx(statistic.of_counts(np.ones((1, OBJECTS), int))[0])


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        ("object_scores", np.zeros(0)),
        ("object_values", np.zeros((0, 3))),
        ("object_values", np.full((2, 2), np.nan)),
        ("object_moments", np.zeros((3, 3))),
        ("object_moments", np.zeros((0, 4))),
        ("angle_errors_deg", np.zeros(3)),
    ],
)
def test_arrays_that_are_no_statistics_make_none(kind, array):
    assert statistic_of_array(kind, array) is None


def test_the_median_of_many_values_is_that_of_all_of_them():
    generator = np.random.default_rng(3)
    objects = np.repeat(np.arange(40), 50)
    values = generator.normal(objects / 10, 1)  # one that is drawn often moves the median far
    counts = np.concatenate([generator.multinomial(40, np.full(40, 1 / 40), 30), 40 * np.eye(40, dtype=np.int64)])
    expected = [np.median(np.repeat(values, row[objects])) for row in counts]
    statistic = median_statistic(values, objects, 40)
    np.testing.assert_array_equal(statistic.of_counts(counts), expected)
    np.testing.assert_array_equal(statistic.of_counts(counts[:30]), expected[:30])


def test_the_interval_of_a_difference(samples):
    predictions, targets, objects = samples
    first = statistics_of(predictions, targets, objects)
    second = statistics_of(predictions + 0.1 * torch.randn(SAMPLES, 3), targets, objects)
    for one, other in zip(first, second, strict=True):
        assert paired_interval(one, one) == (0, 0)
        low, high = paired_interval(one, other)
        assert low < high and paired_interval(other, one) == pytest.approx((-high, -low))
    scores, others = np.random.default_rng(0).normal([[3.0], [2.9]], [[2.0], [0.1]], (2, 400)).cumsum(axis=0)
    found = paired_interval(MeanStatistic(others), MeanStatistic(scores))
    # The mean of the objects' own differences, whose spread is small, however far objects lie apart.
    differences = others - scores
    error = differences.std() / 20
    expected = (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error)
    assert found == pytest.approx(expected, abs=0.25 * error) and error < 0.01 < scores.std() / 20


def test_other_objects_have_no_paired_interval(samples):
    predictions, targets, objects = samples
    one = statistics_of(predictions, targets, objects)
    moved = statistics_of(predictions, targets, (objects + 1) % OBJECTS)
    assert paired_interval(one[1], moved[1]) is None and paired_interval(one[2], moved[2]) is None
    assert paired_interval(one[0], one[1]) is None
    scores = np.arange(4.0)
    for others in (np.arange(5.0), np.array([0, 1, np.nan, 3])):
        assert paired_interval(MeanStatistic(scores), MeanStatistic(others)) is None


def test_intervals_of_differences_cover_the_true_one_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        hardness = generator.normal(0, 1, 60)
        scores = [hardness + generator.normal(shift, 0.3, 60) for shift in (0.0, 0.2)]
        low, high = paired_interval(*(MeanStatistic(each) for each in scores), resamples=300)
        covered += low <= -0.2 <= high
    assert 0.90 <= covered / 300 <= 0.98


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
