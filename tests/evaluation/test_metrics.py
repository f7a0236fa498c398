import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from sklearn.metrics import balanced_accuracy_score, r2_score

from ssl_equi.evaluation.baselines import (
    classification_baselines,
    constant_baselines,
    constant_rotation_baselines,
)
from ssl_equi.evaluation.metrics import (
    METRICS,
    Metric,
    angle_errors_deg,
    balanced_top1,
    class_of_metric,
    effective_rank,
    format_value,
    lower_is_better,
    meaning_of,
    metric_of,
    per_class_recall,
    r2_pooled,
    r2_uniform,
    summarise_angles,
    top1,
    why_no_merit,
)
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.rotations import mean_quaternion, random_quat, relative_quat
from ssl_equi.latents.schema import KINDS


def euler_box_relative_quats(num_pairs: int, seed: int = 0) -> torch.Tensor:
    angles = np.random.default_rng(seed).uniform(-np.pi / 2, np.pi / 2, size=(num_pairs, 2, 3))
    latents = np.concatenate([angles, np.zeros((num_pairs, 2, 4))], axis=-1)
    quats = quat_xyzw_from_latents(torch.from_numpy(latents))
    return relative_quat(quats[:, 0], quats[:, 1])


def regression_case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randn(500, 4, generator=generator) * torch.tensor([0.1, 1.0, 3.0, 0.5]) + torch.arange(4)
    return targets + 0.7 * torch.randn(500, 4, generator=generator), targets


def test_top1_counts_hits():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
    assert top1(logits, torch.tensor([0, 2, 0, 1])) == 0.5


def test_balanced_top1_equals_scikit_learn_on_imbalanced_labels_with_absent_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (400,), generator=generator).square() % 7  # classes 0, 1, 2 and 4
    predictions = torch.where(torch.rand(400, generator=generator) < 0.6, labels, labels.flip(0))
    logits = torch.eye(7)[predictions]
    assert balanced_top1(logits, labels) == pytest.approx(balanced_accuracy_score(labels, predictions), abs=1e-12)


def test_recall_of_an_absent_class_is_nan():
    recall = per_class_recall(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]))
    assert recall[:2].tolist() == [1.0, 0.5]
    assert torch.isnan(recall[2])


def test_r2_uniform_equals_scikit_learn():
    predictions, targets = regression_case()
    assert r2_uniform(predictions, targets) == pytest.approx(
        r2_score(targets.double(), predictions.double(), multioutput="uniform_average"), abs=1e-12
    )


def test_r2_pooled_equals_a_loop_around_one_scalar_mean():
    predictions, targets = (tensor.double().numpy() for tensor in regression_case())
    mean = sum(targets.ravel()) / targets.size
    residual = total = 0.0
    for predicted_row, target_row in zip(predictions, targets, strict=True):
        for predicted, target in zip(predicted_row, target_row, strict=True):
            residual += (target - predicted) ** 2
            total += (target - mean) ** 2
    assert r2_pooled(*map(torch.from_numpy, (predictions, targets))) == pytest.approx(1 - residual / total, abs=1e-12)


def test_constant_predictor_scores_above_zero_by_the_pooled_r2_of_the_papers():
    baselines = constant_baselines(euler_box_relative_quats(400_000))
    assert baselines["r2_pooled"].value == pytest.approx(0.229, abs=3e-3)
    assert baselines["r2_uniform"].value == pytest.approx(0, abs=1e-12)
    assert baselines["r2_pooled"].name == "constant"


def test_perfect_predictions_score_one():
    _, targets = regression_case()
    assert r2_uniform(targets, targets) == r2_pooled(targets, targets) == 1


def test_angles_equal_scipy_and_ignore_sign_and_length():
    generator = torch.Generator().manual_seed(1)
    predicted, true = random_quat(200, generator), random_quat(200, generator)
    expected = np.rad2deg((Rotation.from_quat(predicted).inv() * Rotation.from_quat(true)).magnitude())
    np.testing.assert_allclose(angle_errors_deg(predicted, true), expected, atol=1e-6)
    scales = torch.linspace(-3, 3, 200, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(angle_errors_deg(predicted * scales, true), expected, atol=1e-6)


def test_small_angles_are_not_lost_to_rounding():
    true = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    half = np.deg2rad(1e-4) / 2
    predicted = torch.tensor([[np.sin(half), 0.0, 0.0, np.cos(half)]], dtype=torch.float64)
    assert float(angle_errors_deg(predicted, true)) == pytest.approx(1e-4, rel=1e-6)


def test_angle_summary_equals_numpy():
    errors_deg = torch.rand(1001, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 180
    summary = summarise_angles(errors_deg)
    errors = errors_deg.numpy()
    assert summary["angle_deg_median"] == pytest.approx(np.median(errors))
    assert summary["angle_deg_mean"] == pytest.approx(np.mean(errors))
    assert summary["angle_deg_p90"] == pytest.approx(np.percentile(errors, 90))


def test_angle_summary_takes_as_many_errors_as_there_may_be():
    errors = torch.linspace(0, 180, 20_000_001, dtype=torch.float64)
    assert summarise_angles(errors)["angle_deg_median"] == pytest.approx(90)


def test_mean_quaternion_ignores_signs_and_equals_scipy():
    generator = torch.Generator().manual_seed(2)
    quats = torch.tensor([0.2, -0.4, 0.1, 0.9]) + 0.2 * torch.randn(300, 4, generator=generator)
    quats *= torch.where(torch.rand(300, 1, generator=generator) < 0.5, -1, 1)
    expected = Rotation.from_quat(quats.numpy()).mean()
    angle = (Rotation.from_quat(mean_quaternion(quats)).inv() * expected).magnitude()
    assert angle < 1e-6


def test_constant_rotation_is_about_the_identity_in_the_euler_box():
    targets = euler_box_relative_quats(100_000)
    baselines, errors_deg = constant_rotation_baselines(targets)
    assert baselines["angle_deg_mean"].value == pytest.approx(108, abs=1)
    assert errors_deg.shape == (100_000,)


def test_majority_class_comes_from_the_training_labels():
    train, test = torch.tensor([0, 1, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 3])
    baselines = classification_baselines(train, test)
    assert baselines["top1"].value == pytest.approx(1 / 5)
    assert baselines["balanced_top1"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", [r2_uniform, r2_pooled])
def test_r2_refuses_constant_targets_and_other_shapes(metric):
    with pytest.raises(ValueError, match="constant"):
        metric(torch.randn(5, 2), torch.ones(5, 2))
    with pytest.raises(AssertionError, match="shapes that broadcast"):
        metric(torch.randn(5, 2), torch.randn(5, 1))


def test_effective_rank_counts_equal_values():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([1.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.zeros(4)) == 0


# ---------------------------------------------------------------- what the names mean

ERRORS = [
    "angle_deg_median",
    "angle_deg_mean",
    "angle_deg_p90",
    "angle_deg_median_floor_hue",
    "angle_deg_median_of_a_mug",
    "angle_deg_median_in_distribution",
    "distance_mean",
    "distance_median",
    "distance_median_of_car",
    "composition_error",
    "least_squares_error",
    "wahba_error",
    "gamma_f",
    "pose_error",
    "retrieval_error",
    "retrieval_error_without_source",
    "invariance_error",
    "equivariance_error",
    "spatial_error",
    "identity_error",
    "inverse_error",
    "sign_flip_error",
    "within_between_ratio",
    "dead_dimensions",
    "drop_of_top1",
    "drop_of_r2_uniform",
]
MERITS = [
    "top1",
    "top1_clean",
    "top1_fog",
    "top1_mean_corruption",
    "top1_of_apple",
    "balanced_top1",
    "balanced_top1_in_distribution",
    "r2_uniform",
    "r2_uniform_crop",
    "r2_pooled",
    "r2_of_hue",
    "rankme",
    "effective_rank",
    "column_std_mean",
    "column_std_min",
    "cosine_same_object",
    "hit_at_1_same_object",
    "r2_action",
    "skill_over_first_view",
    "skill_over_object_mean",
    "mrr",
    "mrr_without_identity",
    "hit_at_1",
    "hit_at_5",
    "hit_at_1_without_identity",
    "consistency",
]


def test_every_metric_is_described_and_has_its_direction() -> None:
    for metric in (*ERRORS, *MERITS):
        assert meaning_of(metric) != metric, metric
        assert lower_is_better(metric) == (metric in ERRORS) == meaning_of(metric).endswith("lower is better"), metric
        assert format_value(metric, 0.25) == ("0.2°" if metric.startswith("angle_deg") else "0.250")
    assert all(name == metric.name and metric.meaning for name, metric in METRICS.items())
    for kind in KINDS.values():
        assert METRICS[kind.metric].by_class
        assert METRICS[kind.metric].lower_is_better == kind.metric.endswith("_median")


def test_metrics_of_the_documented_results_are_described() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    shown = {name for row in rows for cell in row for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    of_tables = {name for name in shown if name in (*ERRORS, *MERITS)}
    assert {"top1", "r2_uniform", "angle_deg_median", "gamma_f", "rankme"} <= of_tables
    unknown = {name for name in shown if meaning_of(name) == name}
    assert not unknown & {name for name in shown if re.search(r"_error|^r2|^top1|^angle|^distance|^hit_|_deg", name)}


def test_an_unknown_metric_is_a_plain_number_of_which_more_is_better() -> None:
    assert metric_of("entropy_bits") == Metric("entropy_bits")
    assert meaning_of("entropy_bits") == "entropy_bits" and not lower_is_better("entropy_bits")
    assert format_value("entropy_bits", 1.5) == "1.500" and class_of_metric("entropy_bits_of_dog") is None
    assert metric_of("angle_degrees") == Metric("angle_degrees")  # words, not letters, begin a longer name


@pytest.mark.parametrize(
    ("task", "part", "why"),
    [
        ("classification", "equi", "not meant to know"),
        ("classification", "inv", ""),
        ("relative_azimuth", "inv", "part inv is not meant to know this"),
        ("colour", "inv", "not meant to know"),
        ("light", "inv", ""),
        ("relative_rotation", "all", ""),
        ("leakage_rotation", "agg@3", "what an aggregate leaks"),
        ("collapse", "all", "no merit"),
    ],
)
def test_a_part_has_no_merit_in_what_it_is_not_meant_to_know(task: str, part: str, why: str) -> None:
    assert (why in why_no_merit(task, part)) if why else why_no_merit(task, part) == ""


def test_values_are_shown_by_their_unit():
    assert format_value("angle_deg_mean", 12.34) == "12.3°"
    assert format_value("top1", 0.5) == "0.500"
    assert format_value("top1", None) == "-"


def test_what_rounds_to_zero_has_no_sign():
    assert format_value("r2_uniform", -0.0004) == format_value("r2_uniform", -0.0) == "0.000"
    assert format_value("r2_uniform", -0.0006) == "-0.001"
    assert format_value("angle_deg_median", -0.01) == "0.0°"
