"""seq-JEPA against an independent NumPy transformer; who gets a gradient; ablations; any number of views."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig

SMALL = SeqJEPAConfig(
    action_width=6, layers=2, heads=2, feedforward_width=20, dropout=0.0, predictor_hidden_width=12
)  # fmt: skip
FEATURES = 10
ABLATIONS = ["both", "aggregator", "predictor", "none"]


class LinearEncoder(nn.Module):
    """Counts its calls and the images in them."""

    num_features = FEATURES

    def __init__(self, num_features: int = FEATURES) -> None:
        super().__init__()
        self.num_features = num_features
        self.linear = nn.Linear(12, num_features)
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.linear(images.flatten(1))


def random_batch(size: int = 9, views: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, views, 3, 2, 2, generator=generator, dtype=torch.float64)
    return images, torch.randn(size, views - 1, 4, generator=generator, dtype=torch.float64)


def moved(config: SeqJEPAConfig = SMALL) -> SeqJEPA:
    """An objective whose every parameter differs from its initialisation, and the target's from the encoder's."""
    torch.manual_seed(0)
    objective = SeqJEPA(LinearEncoder(), config).double()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return objective


# ---------------------------------------------------------------- the formula


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def affine(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    y = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def batch_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def layer_norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normalised * array(layer.weight) + array(layer.bias)


def attention(x: np.ndarray, layer: nn.MultiheadAttention) -> np.ndarray:
    queries, keys, values = np.split(x @ array(layer.in_proj_weight).T + array(layer.in_proj_bias), 3, axis=-1)
    width = x.shape[-1] // layer.num_heads
    outputs = []
    for head in range(layer.num_heads):
        columns = slice(head * width, (head + 1) * width)
        scores = queries[..., columns] @ keys[..., columns].swapaxes(-1, -2) / np.sqrt(width)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ values[..., columns])
    return affine(np.concatenate(outputs, axis=-1), layer.out_proj)


def transformer(tokens: np.ndarray, aggregator: nn.Module) -> np.ndarray:
    first = np.broadcast_to(array(aggregator.token), (len(tokens), 1, tokens.shape[2]))
    x = np.concatenate([first, tokens], axis=1)
    for layer in aggregator.transformer.layers:
        x = layer_norm(x + attention(x, layer.self_attn), layer.norm1)
        x = layer_norm(x + affine(np.maximum(affine(x, layer.linear1), 0), layer.linear2), layer.norm2)
    return layer_norm(x, aggregator.transformer.norm)[:, 0]


def head(x: np.ndarray, module: nn.Module) -> np.ndarray:
    weight, gamma, beta, last_weight, last_bias = [array(parameter) for parameter in module.parameters()]
    return np.maximum(batch_norm(x @ weight.T) * gamma + beta, 0) @ last_weight.T + last_bias


def expected_cosine(objective: SeqJEPA, views: Tensor, actions: Tensor) -> float:
    """Training mode, no dropout."""
    size, length = views.shape[:2]
    features = affine(array(views).reshape(size, length, -1), objective.encoder.linear)
    target_encoder = objective.encoder if objective.target_encoder is None else objective.target_encoder
    target = affine(array(views[:, -1]).reshape(size, -1), target_encoder.linear)
    tokens, last_action = features[:, :-1], np.empty((size, 0))
    if objective.action_embedding is not None:
        rows = affine(array(actions).reshape(size * (length - 1), -1), objective.action_embedding.projection)
        embedded = batch_norm(rows).reshape(size, length - 1, -1)
        if objective.aggregator_takes_actions:
            beside = np.concatenate([embedded[:, :-1], np.zeros_like(embedded[:, :1])], axis=1)
            tokens = np.concatenate([tokens, beside], axis=2)
        if objective.predictor_takes_actions:
            last_action = embedded[:, -1]
    aggregate = transformer(tokens, objective.aggregator)
    prediction = head(np.concatenate([aggregate, last_action], axis=1), objective.predictor)
    lengths = np.linalg.norm(prediction, axis=1) * np.linalg.norm(target, axis=1)
    return float(np.mean((prediction * target).sum(1) / lengths))


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("conditioning", ABLATIONS)
@pytest.mark.parametrize("momentum_target", [True, False])
def test_loss_equals_numpy(conditioning: str, momentum_target: bool, views: int) -> None:
    objective = moved(replace(SMALL, conditioning=conditioning, momentum_target=momentum_target))
    batch = random_batch(views=views)
    expected = expected_cosine(objective, *batch)
    output = objective(*batch)
    assert output.loss.item() == pytest.approx(1 - expected, rel=1e-10)
    assert output.terms["cosine"].item() == pytest.approx(expected, rel=1e-5)
    assert output.terms.keys() == {"cosine", "std_all", "std_agg"}
    width = FEATURES + (6 if conditioning in ("both", "aggregator") else 0)
    assert output.features.shape == (9, views - 1, FEATURES) and output.aggregates.shape == (9, width)
    assert not output.features.requires_grad and not output.aggregates.requires_grad


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    objective = SeqJEPA(LinearEncoder(512), SeqJEPAConfig())
    assert sum(parameter.numel() for parameter in objective.aggregator.parameters()) == 14_772_480
    assert sum(parameter.numel() for parameter in objective.predictor.parameters()) == 1_313_280
    assert sum(parameter.numel() for parameter in objective.action_embedding.parameters()) == 4 * 128
    assert (objective.num_features, objective.aggregate_width) == (512, 640)
    assert [layer.dropout.p for layer in objective.aggregator.transformer.layers] == [0.1] * 3


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("momentum_target", [True, False])
def test_no_gradient_flows_through_the_view_to_predict(momentum_target: bool) -> None:
    objective, (views, actions) = moved(replace(SMALL, momentum_target=momentum_target)), random_batch()
    views.requires_grad_()
    objective(views, actions).loss.backward()
    assert (views.grad[:, :-1].abs().sum(dim=(0, 2, 3, 4)) > 0).all()
    assert views.grad[:, -1].abs().sum() == 0


def test_everything_learns_but_the_target() -> None:
    objective = moved()
    objective(*random_batch()).loss.backward()
    without = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in objective.named_parameters() if name.startswith("target_encoder.")}
    assert all(not parameter.requires_grad for parameter in objective.target_encoder.parameters())
    dead = [name for name, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() == 0]
    assert dead == []


def test_the_gradient_is_that_of_finite_differences() -> None:
    objective, (views, actions) = moved(), random_batch()

    def loss(images: Tensor) -> Tensor:
        return objective(torch.cat([images, views[:, -1:]], dim=1), actions).loss

    torch.autograd.gradcheck(loss, views[:, :-1].clone().requires_grad_(), atol=1e-6)


def test_the_target_starts_equal_and_its_parameters_follow_but_not_its_buffers() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, FEATURES), nn.BatchNorm1d(FEATURES))
    encoder.num_features = FEATURES
    objective = SeqJEPA(encoder, SMALL)
    target = objective.target_encoder
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), encoder.parameters(), strict=True))
    before, views = target[1].weight.clone(), random_batch()[0].float()
    with torch.no_grad():
        encoder[1].weight.add_(1)
    objective(views, random_batch()[1].float())
    observed, last = encoder[2].running_mean.clone(), target[2].running_mean.clone()
    assert not torch.allclose(observed, last), "each has the statistics of the views that it saw"
    objective.update_target(0.75)
    assert torch.allclose(target[1].weight, 0.75 * before + 0.25 * encoder[1].weight)
    assert torch.equal(target[2].running_mean, last)
    with pytest.raises(ValueError, match=r"the momentum is 1\.5"):
        objective.update_target(1.5)


def test_without_momentum_target_there_is_nothing_to_move() -> None:
    objective = moved(replace(SMALL, momentum_target=False))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.update_target(0.5)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    images = random_batch()[0][:, 0]
    assert torch.equal(objective.target_features(images), objective.encoder(images))


# ---------------------------------------------------------------- calls of the encoder


def test_the_observed_views_are_encoded_in_one_call_and_the_target_views_in_another() -> None:
    objective = SeqJEPA(LinearEncoder(), SMALL).double()
    objective(*random_batch(9, views=4))
    assert objective.encoder.calls == [27] and objective.target_encoder.calls == [9]


def test_without_momentum_target_all_views_are_encoded_in_one_call() -> None:
    objective = SeqJEPA(LinearEncoder(), replace(SMALL, momentum_target=False)).double()
    objective(*random_batch(9, views=4))
    assert objective.encoder.calls == [36] and objective.target_encoder is None


def test_separate_batch_norm_calls_the_encoder_once_a_view() -> None:
    objective = SeqJEPA(LinearEncoder(), replace(SMALL, separate_batch_norm=True)).double()
    objective(*random_batch(9, views=4))
    assert objective.encoder.calls == [9, 9, 9]


# ---------------------------------------------------------------- aggregates and predictions


@pytest.mark.parametrize("conditioning", ABLATIONS)
def test_aggregate_and_predict_are_what_the_loss_is_made_of(conditioning: str) -> None:
    objective, (views, actions) = moved(replace(SMALL, conditioning=conditioning)).eval(), random_batch()
    output = objective(views, actions)
    aggregates = objective.aggregate(output.features, actions[:, :-1])
    prediction = objective.predict(aggregates, actions[:, -1])
    target = objective.target_features(views[:, -1])
    assert torch.allclose(aggregates, output.aggregates)
    assert torch.allclose(1 - torch.cosine_similarity(prediction, target).mean(), output.loss)


@pytest.mark.parametrize("views", [1, 2, 8])
def test_any_number_of_views_can_be_aggregated(views: int) -> None:
    objective = moved().eval()
    features, actions = torch.randn(5, views, FEATURES).double(), torch.randn(5, views - 1, 4).double()
    aggregates = objective.aggregate(features, actions)
    assert aggregates.shape == (5, objective.aggregate_width) and aggregates.isfinite().all()


def test_without_actions_the_order_of_the_views_does_not_matter_and_with_them_it_does() -> None:
    features, actions = torch.randn(5, 4, FEATURES).double(), torch.randn(5, 3, 4).double()
    for conditioning, same in (("none", True), ("predictor", True), ("both", False), ("aggregator", False)):
        objective = moved(replace(SMALL, conditioning=conditioning)).eval()
        first, second = objective.aggregate(features, actions), objective.aggregate(features.flip(1), actions)
        assert torch.allclose(first, second) is same, conditioning


def test_the_last_action_reaches_the_predictor_only() -> None:
    objective, (views, actions) = moved().eval(), random_batch()
    changed = actions.clone()
    changed[:, -1] += 1
    first, second = objective(views, actions), objective(views, changed)
    assert torch.equal(first.aggregates, second.aggregates)
    assert first.loss != second.loss


def test_the_state_holds_the_target() -> None:
    first = moved()
    second = SeqJEPA(LinearEncoder(), SMALL).double()
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(*random_batch()).loss, second(*random_batch()).loss)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("views", "actions", "message"),
    [
        (torch.zeros(4, 1, 3, 2, 2), torch.zeros(4, 0, 4), "2 or more views of each object"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 0, 4), r"views have shape \(4, 3, 2, 2\)"),
        (torch.zeros(4, 3, 3, 2, 2, dtype=torch.uint8), torch.zeros(4, 2, 4), "convert them to float"),
        (torch.zeros(1, 3, 3, 2, 2), torch.zeros(1, 2, 4), "a global batch of at least 2"),
        (torch.zeros(4, 3, 3, 2, 2), None, r"actions are None: pass \[4, 2, 4\]"),
        (torch.zeros(4, 3, 3, 2, 2), torch.zeros(4, 3, 4), r"actions have shape \(4, 3, 4\): pass \[4, 2, 4\]"),
        (
            torch.zeros(4, 3, 3, 2, 2),
            torch.zeros(4, 2, 6),
            "actions have 6 columns but action_dim is 4: set action_dim=6",
        ),
        (torch.zeros(4, 3, 3, 2, 2), torch.full((4, 2, 4), torch.nan), "the action in row 0"),
    ],
)
def test_wrong_inputs_are_refused(views: Tensor, actions: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeqJEPA(LinearEncoder(), SMALL)(views, actions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "a token has 16 numbers .* which 3 heads can't share"),
        ({"layers": 0}, "the aggregator has 0 layers"),
        ({"action_width": 0}, "action_width is 0"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"conditioning": "all"}, "conditioning is 'all': choose .both., .aggregator., .predictor. or .none."),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeqJEPA(LinearEncoder(), replace(SMALL, **changes))


def test_aggregates_and_predictions_refuse_actions_that_do_not_fit() -> None:
    objective = moved()
    with pytest.raises(ValueError, match=r"pass \[5, 2, 4\]"):
        objective.aggregate(torch.zeros(5, 3, FEATURES).double(), torch.zeros(5, 3, 4).double())
    with pytest.raises(ValueError, match="actions are None"):
        objective.predict(torch.zeros(5, objective.aggregate_width).double(), None)
