"""SEN's loss against an independent NumPy computation through the predictor."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.sen import SEN, SENConfig


class PixelEncoder(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def numpy_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    z = np.concatenate([first, second])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    logits = z @ z.T / temperature
    np.fill_diagonal(logits, -np.inf)
    rows = np.arange(len(z))
    positives = logits[rows, (rows + len(first)) % len(z)]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - positives))


def numpy_batch_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def numpy_prediction(objective: SEN, embedding: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Embedded action, linear layer on the concatenation, batch norm."""
    project, weight = [p.detach().double().numpy() for p in objective.predictor.parameters()]
    return numpy_batch_norm(np.concatenate([embedding, numpy_batch_norm(actions @ project.T)], axis=1) @ weight.T)


@pytest.mark.parametrize("separate_batch_norm", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_monitor_equal_numpy(separate_batch_norm: bool, temperature: float):
    torch.manual_seed(0)
    config = SENConfig(temperature, (24, 8), action_width=6, separate_batch_norm=separate_batch_norm)
    objective = SEN(PixelEncoder(), config).double()
    views, actions = torch.randn(10, 2, 3, 2, 2).double(), torch.randn(10, 4).double()
    with torch.no_grad():
        pixels = views.flatten(2)
        if separate_batch_norm:
            first, second = objective.projector(pixels[:, 0]), objective.projector(pixels[:, 1])
        else:
            first, second = objective.projector(pixels.flatten(0, 1)).unflatten(0, (10, 2)).unbind(1)
    prediction = numpy_prediction(objective, first.numpy(), actions.numpy())

    output = objective(views, actions)
    expected = numpy_nt_xent(prediction, second.numpy(), temperature)
    assert output.loss.item() == pytest.approx(expected, rel=1e-10)
    assert output.terms["equivariance"].item() == pytest.approx(expected, rel=1e-5)
    directions = torch.stack([nn.functional.normalize(z, dim=1) for z in (first, second)])
    spread = directions.std(dim=1, correction=0).mean() * 8**0.5
    assert output.terms["std_all"].item() == pytest.approx(spread.item(), rel=1e-5)


def test_only_the_prediction_is_compared():
    """View 1 reaches the loss through the prediction alone."""
    torch.manual_seed(0)
    objective = SEN(PixelEncoder(), SENConfig(projector=(24, 8))).eval()
    views, actions = torch.randn(10, 2, 3, 2, 2), torch.randn(10, 4)
    nn.init.zeros_(objective.predictor.head.layers[0].weight[:, :8])
    changed = views.clone()
    changed[:, 0] = torch.randn(10, 3, 2, 2)
    assert torch.equal(objective(views, actions).loss, objective(changed, actions).loss)


def test_both_views_receive_gradient():
    objective = SEN(PixelEncoder(), SENConfig(projector=(24, 8)))
    views = torch.randn(8, 2, 3, 2, 2, requires_grad=True)
    objective(views, torch.randn(8, 4)).loss.backward()
    assert (views.grad.abs().sum(dim=(2, 3, 4)) > 0).all()


def test_defaults_are_seq_jepas():
    config = SENConfig()
    assert (config.temperature, config.projector, config.action_width) == (0.5, (2048, 2048, 2048), 128)
