import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import nn

from ssl_equi.evaluation.heads import (
    HeadPlan,
    HeadRequest,
    Samples,
    build_head,
    column_statistics,
    fit_ridge,
    predict,
    train_heads,
)
from ssl_equi.evaluation.protocol import ProbeProtocol, embedded, sie

SHORT = ProbeProtocol(name="short", batch_size=64, learning_rate=3e-2)


def trained(
    features: torch.Tensor, samples: Samples, plan: HeadPlan, protocol: ProbeProtocol = SHORT, seed: int = 0
) -> nn.Sequential:
    return train_heads([HeadRequest(features, lambda epoch: samples, plan, seed)], protocol)[0]


def linear_regression_case(n: int = 400, views_per_sample: int = 2) -> tuple[torch.Tensor, Samples]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, 6, generator=generator) * torch.logspace(-1, 1, 6) + 5
    rows = torch.randint(0, n, (n, views_per_sample), generator=generator)
    weight = torch.randn(6 * views_per_sample, 3, generator=generator)
    targets = features[rows].flatten(1) @ weight + 1 + 0.3 * torch.randn(n, 3, generator=generator)
    return features, Samples(rows, targets)


def test_a_linear_head_learns_separable_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = torch.randn(300, 5, generator=generator) + 8 * F.one_hot(labels, 5)
    samples = Samples(torch.arange(300)[:, None], labels)
    head = trained(features, samples, HeadPlan((), epochs=20, classes=3))
    assert (predict(head, features, samples.rows).argmax(1) == labels).float().mean() > 0.99


def test_an_mlp_learns_what_a_linear_head_cannot():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1000, 2, generator=generator) * 2 - 1
    samples = Samples(torch.arange(1000)[:, None], (features[:, :1] * features[:, 1:]))
    errors = {}
    for hidden in [(), (64, 64)]:
        head = trained(features, samples, HeadPlan(hidden, epochs=40))
        errors[hidden] = float(F.mse_loss(predict(head, features, samples.rows), samples.targets))
    assert errors[(64, 64)] < 0.1 * errors[()]


@pytest.mark.parametrize("standardise", [True, False])
def test_the_finished_head_takes_raw_features(standardise):
    features, samples = linear_regression_case()
    protocol = replace(SHORT, standardise=standardise)
    head = trained(features, samples, HeadPlan((), epochs=0), protocol)
    untrained = build_head(12, (), 3, torch.Generator().manual_seed(0))
    inputs = features[samples.rows]
    if standardise:
        inputs = (inputs - features.mean(0)) / features.std(0)
    torch.testing.assert_close(
        head(features[samples.rows].flatten(1)), untrained(inputs.flatten(1)), atol=1e-4, rtol=1e-4
    )


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    features, samples = linear_regression_case()
    state = torch.random.get_rng_state()

    def train(seed: int) -> torch.Tensor:
        return trained(features, samples, HeadPlan((8,), epochs=2), seed=seed)[0].weight.detach()

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_cosine_ends_at_zero_and_constant_stays(monkeypatch):
    features, samples = linear_regression_case()
    rates: dict[str, list[float]] = {"constant": [], "cosine": []}
    original_step = torch.optim.Adam.step

    def step_and_note_the_rate(optimizer: torch.optim.Adam) -> None:
        rates[schedule].append(optimizer.param_groups[0]["lr"])
        original_step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", step_and_note_the_rate)
    for schedule in rates:
        protocol = replace(SHORT, learning_rate_schedule=schedule)
        trained(features, samples, HeadPlan((), epochs=4), protocol)
    steps = 4 * 7
    assert rates["constant"] == [3e-2] * steps
    expected = 3e-2 * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    np.testing.assert_allclose(rates["cosine"], expected, rtol=1e-9)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_ridge_equals_scikit_learn_on_standardised_features(strength):
    features, samples = linear_regression_case()
    held_out = torch.arange(400) < 80
    head, chosen = fit_ridge(features, samples, held_out, replace(embedded(), ridge_strengths=(strength,)))
    assert chosen == strength
    standardised = ((features - features.mean(0)) / features.std(0))[samples.rows].flatten(1).double()
    reference = Ridge(alpha=strength * 400).fit(standardised, samples.targets.double())
    np.testing.assert_allclose(
        predict(head, features, samples.rows), reference.predict(standardised), rtol=1e-3, atol=1e-3
    )


def test_the_ridge_strength_is_the_best_on_the_held_out_samples():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 50, generator=generator)
    targets = features[:, :1] + 2 * torch.randn(60, 1, generator=generator)
    samples = Samples(torch.arange(60)[:, None], targets)
    held_out = torch.arange(60) >= 40
    strengths = (1e-3, 1e-1, 1.0, 10.0, 100.0)
    _, chosen = fit_ridge(features, samples, held_out, replace(embedded(), ridge_strengths=strengths))
    standardised = ((features - features.mean(0)) / features.std(0)).double()
    errors = []
    for strength in strengths:
        reference = Ridge(alpha=strength * 40).fit(standardised[:40], targets[:40].double())
        errors.append(np.square(reference.predict(standardised[40:]) - targets[40:].numpy().ravel()).mean())
    assert chosen == strengths[int(np.argmin(errors))]
    assert chosen not in (strengths[0], strengths[-1])


def test_a_constant_column_does_no_harm():
    mean, std = column_statistics(torch.tensor([[1.0, 3.0], [3.0, 3.0]]))
    assert mean.tolist() == [2.0, 3.0]
    assert std[1] == pytest.approx(0.01 * 2**0.5 / 2)  # 1 % of the average of sqrt(2) and 0
    features, samples = linear_regression_case()
    features[:, 2] = 0.1
    head, _ = fit_ridge(features, samples, torch.arange(400) < 80, embedded())
    assert torch.isfinite(predict(head, features, samples.rows)).all()


def test_a_column_that_is_nearly_dead_in_training_cannot_swamp_the_others():
    """One unit fires once in 400 training views and often on new ones: the fit must not care."""
    features, samples = linear_regression_case()
    features[:, 2] = 0.0
    features[7, 2] = 1e-4
    protocol = replace(embedded(), ridge_strengths=(1e-4,))
    head, _ = fit_ridge(features, samples, torch.arange(400) < 80, protocol)
    awake = features.clone()
    awake[:, 2] = 0.01
    shift = (predict(head, awake, samples.rows) - predict(head, features, samples.rows)).abs().max()
    assert shift < predict(head, features, samples.rows).std()


def test_the_head_of_sie_has_its_sizes():
    head = build_head(1024, sie().rotation_hidden, 4, torch.Generator().manual_seed(0))
    assert [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)] == [
        (1024, 1024),
        (1024, 1024),
        (4, 1024),
    ]
    assert [type(layer) for layer in head[1::2]] == [nn.ReLU, nn.ReLU]


@pytest.mark.parametrize(
    ("changes", "expected_rates"),
    [
        ({"learning_rate_schedule": "constant"}, [0.5] * 6),
        ({"learning_rate_schedule": "steps", "learning_rate_steps": (1, 2)}, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]),
        ({"learning_rate_schedule": "cosine"}, [0.25 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]),
    ],
)
def test_sgd_with_momentum_and_weight_decay_follows_its_formula(changes: dict, expected_rates: list[float]) -> None:
    """v <- .9 v + gradient + decay w; w <- w - rate v, on a linear head and mean squared error, written out."""
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
    initial = build_head(3, (), 2, torch.Generator().manual_seed(5))[0]
    weight, bias = initial.weight.detach().double(), initial.bias.detach().double()
    protocol = ProbeProtocol(
        optimizer="sgd", momentum=0.9, weight_decay=0.01, learning_rate=0.5, batch_size=4, standardise=False, **changes
    )
    samples = Samples(torch.arange(8)[:, None], targets)
    ends = []
    request = HeadRequest(
        features, lambda epoch: samples, HeadPlan((), epochs=3), seed=5,
        after_epoch=lambda finished: ends.append(finished[0].weight.detach().clone()),
    )  # fmt: skip
    (head,) = train_heads([request], protocol)

    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    for epoch in range(3):
        order = torch.from_numpy(np.random.default_rng([5, epoch]).permutation(8))
        for index, batch in enumerate(order.split(4)):
            inputs = features[batch].double()
            residual = (inputs @ weight.T + bias - targets[batch].double()) * 2 / 8  # a mean over 4 rows of 2
            weight_speed = 0.9 * weight_speed + residual.T @ inputs + 0.01 * weight
            bias_speed = 0.9 * bias_speed + residual.sum(dim=0) + 0.01 * bias
            weight = weight - expected_rates[2 * epoch + index] * weight_speed
            bias = bias - expected_rates[2 * epoch + index] * bias_speed
        torch.testing.assert_close(ends[epoch].double(), weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head[0].bias.detach().double(), bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate_schedule": "steps"}, r"learning_rate_steps is \(\): give epochs with 'steps'"),
        ({"learning_rate_steps": (3,)}, r"learning_rate_steps is \(3,\): give epochs with 'steps'"),
        ({"momentum": 0.9}, "only sgd has momentum"),
        ({"colour_hidden": (8,)}, "ridge regression is linear, choose adam"),
    ],
)
def test_protocols_that_contradict_themselves_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeProtocol(**changes)


def requests_of_nine_heads(plan: HeadPlan, device: str = "cpu") -> list[HeadRequest]:
    """Three parts of features, three seeds, of which two draw their samples alike; one part learns at a rate apart."""
    generator = torch.Generator().manual_seed(3)
    parts = [(torch.randn(150, 7, generator=generator) * 3 + 1).to(device) for _ in range(3)]

    def samples_of(stream: int, epoch: int) -> Samples:
        drawn = torch.Generator().manual_seed(10 * stream + epoch)
        rows = torch.randint(0, 150, (101, 2), generator=drawn).to(device)  # 101: the last batch is an odd one
        targets = parts[0][rows].mean(dim=1)[:, :3] * 5 + 2
        return Samples(rows, targets if plan.classes is None else targets.argmax(dim=1))

    drawing = [functools.partial(samples_of, stream) for stream in (0, 0, 1)]
    drawing[1] = drawing[0]
    return [
        HeadRequest(features, draw, plan, seed, learning_rate=rate, weight_decay=decay)
        for features, rate, decay in zip(parts, (None, None, 1e-3), (None, None, 0.1), strict=True)
        for seed, draw in enumerate(drawing)
    ]


PLANS = [
    HeadPlan((), epochs=3, classes=3),
    HeadPlan((9, 5), epochs=3),
    HeadPlan((16,), epochs=3, scaled=True),
    HeadPlan((16,), epochs=3, classes=3),
]
PLAN_NAMES = ["linear classes", "mlp", "scaled targets", "mlp of classes"]


@pytest.mark.parametrize("protocol", [SHORT, replace(SHORT, optimizer="sgd", momentum=0.9)], ids=["adam", "sgd"])
@pytest.mark.parametrize("plan", PLANS, ids=PLAN_NAMES)
def test_heads_trained_together_are_to_the_bit_those_trained_alone(plan: HeadPlan, protocol: ProbeProtocol) -> None:
    requests = requests_of_nine_heads(plan)
    for request, found in zip(requests, train_heads(requests, protocol), strict=True):
        (alone,) = train_heads([request], protocol)
        assert all(torch.equal(*both) for both in zip(found.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("plan", PLANS, ids=PLAN_NAMES)
def test_layers_multiplied_at_once_are_those_multiplied_apart(plan: HeadPlan) -> None:
    requests = requests_of_nine_heads(plan)
    apart, at_once = (train_heads(requests, SHORT, stacked=stacked) for stacked in (False, True))
    for first, second in zip(apart, at_once, strict=True):
        for both in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(*both, atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("plan", PLANS, ids=PLAN_NAMES)
def test_heads_trained_together_on_a_gpu_are_those_trained_alone(plan: HeadPlan) -> None:
    requests = requests_of_nine_heads(plan, "cuda")
    for request, found in zip(requests, train_heads(requests, SHORT), strict=True):
        (alone,) = train_heads([request], SHORT)
        for both in zip(found.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)


def test_unlike_heads_are_trained_apart_in_the_order_of_the_requests() -> None:
    requests = [request for plan in PLANS for request in requests_of_nine_heads(plan)[:2]]
    together = train_heads(requests[::-1], SHORT)[::-1]
    for request, found in zip(requests, together, strict=True):
        (alone,) = train_heads([request], SHORT)
        assert all(torch.equal(*both) for both in zip(found.parameters(), alone.parameters(), strict=True))


def test_samples_are_drawn_once_for_all_heads_of_an_epoch() -> None:
    features, samples = linear_regression_case()
    epochs = []

    def draw(epoch: int) -> Samples:
        epochs.append(epoch)
        return samples

    train_heads([HeadRequest(features, draw, HeadPlan((), epochs=3), seed) for seed in range(4)], SHORT)
    assert epochs == [0, 1, 2]
