"""SimCLR's loss against an independent NumPy computation of equation 1."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig


class PixelEncoder(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def numpy_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Equation 1, one embedding at a time."""
    z = np.concatenate([first, second])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    count, losses = len(first), []
    for i in range(2 * count):
        positive = (i + count) % (2 * count)
        others = [k for k in range(2 * count) if k != i]
        similarities = np.exp(z @ z[i] / temperature)
        losses.append(-np.log(similarities[positive] / similarities[others].sum()))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("separate_batch_norm", [False, True])
@pytest.mark.parametrize("last_batch_norm", ["none", "affine", "not_affine"])
def test_loss_and_terms_equal_numpy(temperature: float, separate_batch_norm: bool, last_batch_norm: str):
    torch.manual_seed(0)
    config = SimCLRConfig(temperature, (24, 8), last_batch_norm, separate_batch_norm)
    output = SimCLR(PixelEncoder(), config)(torch.randn(10, 2, 3, 2, 2))
    first, second = output.embeddings.detach().double().numpy().transpose(1, 0, 2)
    expected = numpy_nt_xent(first, second, temperature)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["contrastive"].item() == pytest.approx(expected, rel=1e-5)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    assert output.terms["alignment"].item() == pytest.approx((first * second).sum(1).mean(), rel=1e-5)
    spread = (first.std(0).mean() + second.std(0).mean()) / 2 * 8**0.5
    assert output.terms["std_all"].item() == pytest.approx(spread, rel=1e-5)


def test_projector_layers():
    head = SimCLR(PixelEncoder(), SimCLRConfig(projector=(24, 16, 8), last_batch_norm="not_affine")).projector.layers
    assert [type(layer) for layer in head] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d,
    ]  # fmt: skip
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [24, 16, 8]
    assert head[-1].weight is None


def test_the_loss_keeps_no_buffers_of_its_own():
    objective = SimCLR(PixelEncoder(), SimCLRConfig(projector=(8, 8)))
    assert {name.split(".")[0] for name, _ in objective.named_buffers()} == {"projector"}


@pytest.mark.parametrize("temperature", [0.0, -0.5, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float):
    with pytest.raises(ValueError, match="the temperature is"):
        SimCLR(PixelEncoder(), SimCLRConfig(temperature=temperature))
