import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score

from ssl_equi.checkpoint import read_state, write_checkpoint
from ssl_equi.evaluation.online import OnlineProbes, followed_of
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.rotations import quat_positive, random_quat
from ssl_equi.latents.category import Category
from ssl_equi.latents.number import Number
from ssl_equi.latents.schema import THREEDIEBENCH, Latent, LatentSchema
from tests.fakes import random_batch
from tests.turntables import TURNTABLE

PARTS = {"all": slice(None), "inv": slice(0, 8), "equi": slice(8, 16)}


def batch(seed: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class in the first columns, each view's rotation itself in the last ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (size,), generator=generator)
    quats = quat_positive(random_quat(2 * size, generator)).float().unflatten(0, (size, 2))
    features = 0.2 * torch.randn(size, 2, 16, generator=generator)
    features[:, :, :4] += F.one_hot(labels, 4)[:, None]
    features[:, :, 8:12] += 3 * quats
    return 10 * features, labels, quats


def test_each_part_shows_what_it_holds():
    probes = OnlineProbes(16, PARTS, 4, every=1, learning_rate=1e-2)
    for step in range(150):
        probes.update(*batch(step))
        if step == 100:
            probes.metrics()
    metrics = probes.metrics()
    assert metrics.keys() == {f"{part}/{name}" for part in PARTS for name in ("top1", "absolute_rotation_r2_uniform")}
    assert metrics["inv/top1"] > 0.95
    assert metrics["equi/top1"] < 0.4
    assert metrics["equi/absolute_rotation_r2_uniform"] > 0.7
    assert metrics["inv/absolute_rotation_r2_uniform"] < 0.05
    assert metrics["all/top1"] > 0.95
    assert metrics["all/absolute_rotation_r2_uniform"] > 0.7


def line_by_line(features_of, width: int, size: int, steps: int = 60) -> list[float]:
    """R2 of every update, of features made from a generator and the rotations."""
    generator = torch.Generator().manual_seed(0)
    probes = OnlineProbes(width, {"all": slice(None)}, 4, every=1)
    lines = []
    for _ in range(steps):
        angles = torch.rand(size, 2, 7, generator=generator).sub(0.5) * torch.pi
        quats = quat_xyzw_from_latents(angles)
        probes.update(features_of(generator, quats), torch.zeros(size, dtype=torch.int64), quats)
        lines.append(probes.metrics()["all/absolute_rotation_r2_uniform"])
    return lines


@pytest.mark.parametrize(("width", "size"), [(64, 64), (512, 32), (1024, 32)])
def test_noise_scores_about_0_from_the_first_line(width: int, size: int):
    lines = line_by_line(lambda generator, quats: torch.randn(size, 2, width, generator=generator), width, size)
    assert abs(lines[0]) < 0.01
    assert -0.15 < min(lines) <= max(lines) < 0.1


def test_features_that_know_the_rotation_rise_from_there():
    mixing = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    lines = line_by_line(
        lambda generator, quats: quats @ mixing + 0.3 * torch.randn(64, 2, 128, generator=generator), 128, 64
    )
    assert abs(lines[0]) < 0.01 and min(lines) > -0.3
    assert lines[10] > 0.4 and min(lines[30:]) > 0.8


def test_components_that_do_not_vary_are_left_out():
    """A turntable: x is rounding and y is 0."""
    generator = torch.Generator().manual_seed(0)
    probes = OnlineProbes(2, {"all": slice(None)}, 4, every=1, learning_rate=1e-2)
    for step in range(200):
        angle = torch.rand(32, 2, generator=generator) - 0.5
        quats = torch.stack([1e-25 * angle, torch.zeros(32, 2), angle.sin(), angle.cos()], dim=-1)
        features = torch.stack([angle, angle.square()], dim=-1)
        if step == 150:
            probes.metrics()
        probes.update(features, torch.zeros(32, dtype=torch.int64), quats)
    assert probes.metrics()["all/absolute_rotation_r2_uniform"] > 0.9
    probes.update(features, torch.zeros(32, dtype=torch.int64), torch.tensor([0.0, 0, 0, 1]).expand(32, 2, 4))
    assert set(probes.metrics()) == {"all/top1"}


def test_metrics_are_those_of_the_heads_before_they_saw_the_batch_and_start_anew():
    probes = OnlineProbes(16, {"all": slice(None)}, 4, every=1, learning_rate=3e-2)
    expected_hits, all_predictions, all_targets = [], [], []
    past: list[tuple[torch.Tensor, torch.Tensor]] = []  # answers and targets, as deviations from the mean
    for step in range(12):
        features, labels, quats = batch(step)
        flat = (features - features.mean((0, 1))) / (features.var((0, 1), correction=0) + 1e-5).sqrt()
        with torch.no_grad():
            logits = probes.classifiers["all"](flat)
            answers, targets = probes.regressors["all"](flat.flatten(0, 1)), quats.flatten(0, 1)
        weights = 0.95 ** torch.arange(step - 1, -1, -1)
        means = torch.stack([*(earlier.mean(0) for earlier in all_targets), targets.mean(0)])
        mean = (weights[:, None] * means[:-1]).sum(0) / weights.sum() if step else means[0]
        slope = torch.zeros(4)
        if step:
            weighted = [(w, *pair) for w, pair in zip(weights, past, strict=True)]
            agreement = sum(w * (found * true).sum(0) for w, found, true in weighted)
            error = sum(w * (found * true).square().sum(0) for w, found, true in weighted).sqrt()
            slope = ((agreement - 2 * error) / sum(w * found.square().sum(0) for w, found, _ in weighted)).clamp(0, 1)
        past.append((answers, targets - mean))
        all_predictions.append(mean + slope * answers)
        expected_hits.append((logits.argmax(-1) == labels[:, None]).float().mean())
        all_targets.append(targets)
        probes.update(features, labels, quats)
    assert slope.max() > 0
    metrics = probes.metrics()
    assert metrics["all/top1"] == pytest.approx(float(torch.stack(expected_hits).mean()))
    assert metrics["all/absolute_rotation_r2_uniform"] == pytest.approx(
        r2_score(torch.cat(all_targets), torch.cat(all_predictions)), abs=1e-5
    )
    assert probes.metrics() == {}


def test_gradients_of_the_encoder_are_untouched():
    encoder = torch.nn.Linear(6, 16)
    inputs = torch.randn(64, 2, 6)
    features = encoder(inputs)
    features.square().mean().backward()
    gradient = encoder.weight.grad.clone()
    weight = encoder.weight.detach().clone()
    _, labels, quats = batch(0)
    OnlineProbes(16, PARTS, 4, every=1).update(encoder(inputs), labels, quats)
    assert torch.equal(encoder.weight.grad, gradient)
    assert torch.equal(encoder.weight, weight)


def test_the_global_generator_is_untouched_and_the_seed_decides():
    before = torch.random.get_rng_state()
    probes = OnlineProbes(16, PARTS, 4, seed=3, every=1)
    probes.update(*batch(0))
    probes.metrics()
    assert torch.equal(before, torch.random.get_rng_state())
    again = OnlineProbes(16, PARTS, 4, seed=3, every=1)
    again.update(*batch(0))
    for name, tensor in probes.heads.state_dict().items():
        assert torch.equal(tensor, again.heads.state_dict()[name])


def test_only_one_of_every_calls_trains():
    probes = OnlineProbes(16, PARTS, 4, every=3)
    weights = []
    for step in range(7):
        probes.update(*batch(step))
        weights.append(probes.classifiers["all"].weight.detach().clone())
    changed = [not torch.equal(earlier, later) for earlier, later in itertools.pairwise(weights)]
    assert changed == [False, False, True, False, False, True]


@pytest.mark.parametrize("saved_after", [0, 1, 5])
def test_a_continuation_through_a_checkpoint_is_equal_to_the_bit(tmp_path, saved_after):
    unbroken, first = (OnlineProbes(16, PARTS, 4, every=2) for _ in range(2))
    for step in range(9):
        unbroken.update(*batch(step))
    for step in range(saved_after):
        first.update(*batch(step))
    write_checkpoint(tmp_path / "step-00000001", {"probes": first.state_dict()})
    second = OnlineProbes(16, PARTS, 4, every=2, seed=99)
    second.load_state_dict(read_state(tmp_path / "step-00000001", "probes"))
    for step in range(saved_after, 9):
        second.update(*batch(step))
    for name, tensor in unbroken.heads.state_dict().items():
        assert torch.equal(tensor, second.heads.state_dict()[name])
    assert unbroken.metrics() == second.metrics()


def test_a_state_of_earlier_versions_goes_on_about_the_mean():
    """Their heads answered with whole quaternions, so that the bias was the mean."""
    learnt = OnlineProbes(16, PARTS, 4, every=1, learning_rate=1e-2)
    for step in range(150):
        learnt.update(*batch(step))
    state = learnt.state_dict()
    del state["past"]
    state["heads"] = {name: value.clone() for name, value in state["heads"].items()}
    for part in PARTS:
        state["heads"][f"regressor.{part}.bias"] += torch.tensor([0, 0, 0, 0.4])
    resumed = OnlineProbes(16, PARTS, 4, every=1, learning_rate=1e-2)
    resumed.load_state_dict(state)
    resumed.metrics()
    for step in range(150, 160):
        resumed.update(*batch(step))
    assert resumed.metrics()["equi/absolute_rotation_r2_uniform"] > 0.5


def test_a_saved_state_does_not_change_when_training_goes_on():
    probes = OnlineProbes(16, PARTS, 4, every=1)
    other = OnlineProbes(16, PARTS, 4, every=1)
    probes.update(*batch(0))
    other.load_state_dict(probes.state_dict())
    expected = other.classifiers["all"].weight.detach().clone()
    probes.update(*batch(1))
    assert torch.equal(other.classifiers["all"].weight, expected)
    assert other.metrics() != probes.metrics()


def test_no_grad_is_no_hindrance():
    outside, inside = (OnlineProbes(16, PARTS, 4, every=1) for _ in range(2))
    outside.update(*batch(0))
    with torch.no_grad():
        inside.update(*batch(0))
    assert torch.equal(outside.regressors["equi"].weight, inside.regressors["equi"].weight)


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every is 0"):
        OnlineProbes(16, PARTS, 4, every=0)


def test_without_a_pose_the_first_latent_is_followed():
    """Sine and cosine of an azimuth, under its own name; of data with a pose, or without latents, the quaternion."""
    followed = followed_of(TURNTABLE)
    probes = OnlineProbes(2, {"all": slice(None)}, 4, followed=followed, every=1, learning_rate=3e-2)
    for step in range(60):
        views = TURNTABLE.sample(np.random.default_rng(step), 64).float().unflatten(0, (32, 2))
        batch_of_views = replace(random_batch(32, side=2), latents=views, quat_xyzw=None)
        angles_rad = torch.deg2rad(views[..., 0])
        features = torch.stack([angles_rad.sin() + angles_rad.cos(), angles_rad.cos()], dim=-1)
        if step == 40:
            probes.metrics()
        probes.update(features, torch.zeros(32, dtype=torch.int64), followed.targets(batch_of_views))
    metrics = probes.metrics()
    assert metrics.keys() == {"all/top1", "all/absolute_azimuth_r2_uniform"}
    assert metrics["all/absolute_azimuth_r2_uniform"] > 0.9
    for schema in (None, THREEDIEBENCH):
        assert followed_of(schema).name == "absolute_rotation"
        assert followed_of(schema).targets(random_batch()).shape == (8, 2, 4)
    tools = LatentSchema((Latent("tool", Category(("none", "grip")), 0), Latent("size", Number((0, 1)), 1)))
    assert followed_of(tools).name == "absolute_size"
