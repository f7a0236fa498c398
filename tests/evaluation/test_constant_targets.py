"""Targets of which components do not vary: turntables, fixed lights, rounding that looks like variance."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.metrics import r2_metrics, r2_notes, r2_pooled, r2_uniform, varying_components
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.publish import publish_results
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.sequences.heads import judge, latent_targets
from ssl_equi.evaluation.suite import ask_features
from ssl_equi.evaluation.task import TASKS, Ask
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.latents.actions import actions_of
from ssl_equi.latents.schema import THREEDIEBENCH
from tests.evaluation.probed_by_hand import probed
from tests.fakes import OF_FEATURES

QUICK = ProbeProtocol(
    batch_size=64, learning_rate=5e-3, rotation_hidden=(64,), rotation_epochs=15, absolute_rotation_hidden=(64,),
    absolute_rotation_epochs=15, translation_epochs=1, translation_hidden=(8,), light_epochs=1, light_hidden=(8,),
    colour_circular_epochs=1, colour_circular_hidden=(8,),
)  # fmt: skip
ROTATIONS = [name for name in OF_FEATURES if "rotation" in name]
CONSTANT = {  # target components that do not vary on an upright turntable, and on a tilted one
    "relative_rotation": ("2 of 4", "1 of 4"), "relative_rotation_6d": ("2 of 6", None),
    "relative_rotation_matrix": ("5 of 9", None), "absolute_rotation": ("2 of 4", None),
    "absolute_rotation_6d": ("2 of 6", "2 of 6"), "absolute_rotation_matrix": ("5 of 9", "3 of 9"),
}  # fmt: skip


def columns(*scales: tuple[float, float]) -> torch.Tensor:
    """Float32 targets `[400, K]`, each column a constant and Gaussian noise of some size."""
    noise = torch.randn(400, len(scales), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constants, sizes = torch.tensor(scales, dtype=torch.float64).unbind(dim=1)
    return (constants + noise * sizes).float()


@pytest.mark.parametrize(
    ("scales", "varying"),
    [
        ([(0, 1), (0, 2.5e-25)], [True, False]),  # a variance of 6.5e-50 beside numbers of order 1
        ([(0, 1), (1e3, 0)], [True, False]),
        ([(0, 1e3), (1e3, 3e-5)], [True, False]),  # the rounding of 1e3 in float32
        ([(1e3, 1e-2), (0.5, 1e-2)], [True, True]),
        ([(0, 1e-25), (1e-25, 1e-25)], [True, True]),  # small numbers among themselves
        ([(1e-25, 0), (1e-25, 1e-33)], [False, False]),
        ([(0, 0), (0, 0)], [False, False]),
        ([(0.3, 0.1), (0.5, 1e-4), (0, 1e-9)], [True, True, False]),
    ],
)
def test_a_component_varies_if_it_does_so_by_more_than_rounding(scales, varying):
    assert varying_components(columns(*scales)).tolist() == varying


def test_r2_is_that_of_the_components_that_vary():
    targets = columns((0.2, 1), (0, 2.5e-25), (0.5, 0.3))
    predictions = targets + 0.05 * columns((0, 1), (1, 1), (0, 1)).flip(0)
    kept = [0, 2]
    assert r2_uniform(predictions, targets) == r2_uniform(predictions[:, kept], targets[:, kept]) > 0.8
    assert r2_pooled(predictions, targets) == r2_pooled(predictions[:, kept], targets[:, kept]) > 0.8
    assert r2_notes(targets) == (
        "1 of 3 target components do not vary over the 400 evaluated samples: R2 is that of the other 2",
    )
    assert r2_notes(targets[:, kept]) == ()
    assert r2_metrics(predictions[:, :1], torch.full((400, 1), 1e3)) == {}


def turntable(
    posed_cache: Callable[..., FeatureCache], num_objects: int, seed: int, turns: float, tilt: float = 0.3
) -> FeatureCache:
    """Views from all around: of three angles one varies; features show it under noise."""
    cache = posed_cache(num_objects, seed)
    latents = cache.latents.clone()
    latents[..., :7] = torch.tensor([tilt, 0.0, 0.0, 0.5, 0.4, 1.0, 0.5])
    latents[..., 7:] = 0
    latents[..., 2] = turns * torch.linspace(-1.5, 1.5, cache.num_views)
    angles = torch.stack([latents[..., 2].sin(), latents[..., 2].cos()], dim=-1)
    noise = 0.05 * torch.randn(angles.shape, generator=torch.Generator().manual_seed(seed))
    return replace(cache, latents=latents, quats_xyzw=quat_xyzw_from_latents(latents), features=angles + noise)


@pytest.mark.parametrize("tilt", [0.0, 0.3], ids=["upright", "tilted"])
@pytest.mark.parametrize("name", ROTATIONS)
def test_a_turntable_is_asked_for_its_one_angle(posed_cache, name, tilt):
    train, test = turntable(posed_cache, 60, 0, 1, tilt), turntable(posed_cache, 20, 1, 1, tilt)
    results, notes = ask_features(train, test, {"all": slice(0, 2)}, [name], 4, QUICK)
    result = results["all"][name]
    assert 0.6 < result.metrics["r2_uniform"] <= 1 and 0.6 < result.metrics["r2_pooled"] <= 1
    assert result.metrics["angle_deg_median"] < 0.5 * result.baselines["angle_deg_median"].value
    assert result.baselines["r2_uniform"].value == pytest.approx(0, abs=1e-9)
    assert result.metrics.keys() == result.baselines.keys()
    constant = CONSTANT[name][tilt > 0]
    expected = [] if constant is None else [f"{name}, part all: {constant} target components do not vary over"]
    assert [note[: len(start)] for note, start in zip(notes, expected, strict=True)] == expected


@pytest.mark.parametrize("name", ROTATIONS)
def test_angles_are_asked_even_if_nothing_turns(posed_cache, name):
    still = turntable(posed_cache, 20, 0, turns=0)
    results, notes = ask_features(still, still, {"all": slice(0, 2)}, [name], 4, QUICK)
    result = results["all"][name]
    assert set(result.metrics) == set(result.baselines) == {"angle_deg_median", "angle_deg_mean", "angle_deg_p90"}
    assert result.metrics["angle_deg_median"] < 10
    assert "none of the" in notes[0] and "no R2" in notes[0]


def test_what_has_no_other_metric_than_r2_is_skipped(posed_cache):
    still = turntable(posed_cache, 20, 0, turns=1)
    for protocol in (QUICK, replace(QUICK, colour_solver="adam")):
        with pytest.raises(TaskSkipped, match="none of the 2 target components varies over"):
            TASKS["colour"](Ask(still, still, 4, protocol, 0))
    for name in ("colour_circular", "light", "relative_light", "translation_object", "translation_base"):
        result = TASKS[name](Ask(still, still, 4, QUICK, 0))
        assert result.metrics.keys() == result.baselines.keys() and "r2_uniform" not in result.metrics
        assert result.metrics and result.notes


def test_what_is_left_out_is_said_in_table_results_and_report(
    fake_dataset, fake_test_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in (fake_dataset, fake_test_dataset):
        split.latents[..., :2] = 0
        split.quats_xyzw = quat_xyzw_from_latents(torch.from_numpy(split.latents)).numpy()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(240, 6))
    protocol = replace(QUICK, tasks=("relative_rotation",), rotation_epochs=1)
    results = probed(encoder, {"all": slice(0, 6)}, fake_dataset, fake_test_dataset, protocol=protocol)
    assert all(abs(record.value) < 200 for record in results.records)
    page = publish_results(tmp_path, results, fake_test_dataset, title="turntable", command="c").read_text()
    expected = "relative_rotation, part all: 2 of 4 target components do not vary over the 270 evaluated samples"
    stored = json.loads((tmp_path / "results.json").read_text())["run"]["notes"]
    assert any(note.startswith(expected) for note in stored)
    assert expected in " ".join(capsys.readouterr().out.split()) and expected in page


def test_features_that_only_round_have_no_action(posed_cache):
    moving = turntable(posed_cache, 20, 0, turns=1)
    rounding = 1e-7 * torch.randn(moving.features.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TaskSkipped, match="have the same features"):
        TASKS["feature_action"](Ask(moving, replace(moving, features=5 + rounding), 4, QUICK, 0))


def test_actions_of_sequences_are_judged_by_the_same_rule():
    rotation = latent_targets(actions_of(THREEDIEBENCH, ["rotation"]))[0]
    angle = columns((0, 0.5)).squeeze(1)
    truth = torch.stack([1e-25 * angle.cos(), torch.zeros(400), angle.sin(), angle.cos()], dim=1)
    result = judge(rotation, truth + 0.01, truth)
    assert 0.9 < result.metrics["r2_uniform"] < 1 and result.notes
    assert set(judge(rotation, truth[:5], truth[:1].expand(5, 4)).metrics) == {"angle_deg_median"}
