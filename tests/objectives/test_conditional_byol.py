"""Conditional BYOL's loss against an independent NumPy computation, and its momentum target."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.byol import ConditionalBYOL, ConditionalBYOLConfig

SMALL = ConditionalBYOLConfig(projector=(24, 8), predictor_hidden_width=20, action_width=6)


class LinearEncoder(nn.Module):
    num_features = 10

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    return views, torch.randn(size, 4, generator=generator, dtype=torch.float64)


def numpy_head(head: nn.Module, x: np.ndarray) -> np.ndarray:
    """Linear-BN-ReLU-Linear, in training mode."""
    weight, gamma, beta, last_weight, last_bias = [p.detach().numpy() for p in head.parameters()]
    x = x @ weight.T
    x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * gamma + beta, 0)
    return x @ last_weight.T + last_bias


def numpy_encoder(encoder: nn.Module, images: Tensor) -> np.ndarray:
    return images.flatten(1).numpy() @ encoder.linear.weight.detach().numpy().T + encoder.linear.bias.detach().numpy()


def with_a_target_of_its_own() -> ConditionalBYOL:
    """The target has moved away from the online branch."""
    torch.manual_seed(0)
    objective = ConditionalBYOL(LinearEncoder(), SMALL).double()
    with torch.no_grad():
        for target in (objective.target_encoder, objective.target_projector):
            for parameter in target.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return objective


def test_loss_equals_numpy():
    objective, (views, actions) = with_a_target_of_its_own(), random_batch(10)
    embedding = numpy_head(objective.projector, numpy_encoder(objective.encoder, views[:, 0]))
    embedded = actions.numpy() @ objective.predictor.action_embedding.projection.weight.detach().numpy().T
    embedded = (embedded - embedded.mean(0)) / np.sqrt(embedded.var(0) + 1e-5)
    prediction = numpy_head(objective.predictor.head, np.concatenate([embedding, embedded], axis=1))
    target = numpy_head(objective.target_projector, numpy_encoder(objective.target_encoder, views[:, 1]))
    lengths = np.linalg.norm(prediction, axis=1) * np.linalg.norm(target, axis=1)
    expected = np.mean(2 - 2 * (prediction * target).sum(1) / lengths)

    output = objective(views, actions)
    assert output.loss.item() == pytest.approx(expected, rel=1e-10)
    assert output.terms["equivariance"].item() == pytest.approx(expected, rel=1e-5)
    directions = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    assert output.terms["std_all"].item() == pytest.approx(directions.std(0).mean() * 8**0.5, rel=1e-5)


def test_the_target_gives_no_gradient_and_view_2_gets_none():
    objective, (views, actions) = with_a_target_of_its_own(), random_batch(10)
    views.requires_grad_()
    objective(views, actions).loss.backward()
    assert views.grad[:, 0].abs().sum() > 0
    assert views.grad[:, 1].abs().sum() == 0
    assert all(p.grad is None for p in objective.target_encoder.parameters())
    assert all(p.grad is None for p in objective.target_projector.parameters())


def test_features_are_the_online_encoders_of_view_1():
    objective, (views, actions) = with_a_target_of_its_own(), random_batch(10)
    features = objective(views, actions).features
    assert np.allclose(features[:, 0].numpy(), numpy_encoder(objective.encoder, views[:, 0]))


def test_the_target_starts_equal_and_follows():
    objective = ConditionalBYOL(LinearEncoder(), SMALL)
    pairs = [
        (objective.target_encoder.linear.weight, objective.encoder.linear.weight),
        (next(objective.target_projector.parameters()), next(objective.projector.parameters())),
    ]
    for target, online in pairs:
        assert torch.equal(target, online)
        with torch.no_grad():
            online.add_(1)
    before = [target.clone() for target, _ in pairs]
    objective.update_target(0.75)
    for (target, online), old in zip(pairs, before, strict=True):
        assert torch.allclose(target, 0.75 * old + 0.25 * online)
    objective.update_target(1.0)
    assert torch.allclose(pairs[0][0], 0.75 * before[0] + 0.25 * pairs[0][1])
    with pytest.raises(ValueError, match=r"the momentum is 1\.5"):
        objective.update_target(1.5)


def test_the_state_holds_the_target():
    first, second = with_a_target_of_its_own(), ConditionalBYOL(LinearEncoder(), SMALL).double()
    second.load_state_dict(first.state_dict(), strict=True)
    batch = random_batch(10)
    assert torch.equal(first(*batch).loss, second(*batch).loss)


def test_defaults_are_seq_jepas():
    config = ConditionalBYOLConfig()
    assert (config.projector, config.predictor_hidden_width, config.action_width) == ((2048, 2048, 2048), 512, 128)
