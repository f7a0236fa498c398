"""SimSiam's loss against an independent NumPy computation, and where its gradient stops."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig

SMALL = SimSiamConfig(projector=(24, 8), predictor_hidden_width=6)


class LinearEncoder(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def numpy_distance(prediction: np.ndarray, embedding: np.ndarray) -> float:
    """Equation 1, mean over the batch."""
    lengths = np.linalg.norm(prediction, axis=1) * np.linalg.norm(embedding, axis=1)
    return float(np.mean(-np.sum(prediction * embedding, axis=1) / lengths))


@pytest.mark.parametrize("separate_batch_norm", [False, True])
@pytest.mark.parametrize("last_batch_norm", ["none", "affine", "not_affine"])
def test_loss_equals_numpy(separate_batch_norm: bool, last_batch_norm: str):
    torch.manual_seed(0)
    objective = SimSiam(LinearEncoder(), SimSiamConfig((24, 8), last_batch_norm, 6, separate_batch_norm))
    calls: list[tuple[Tensor, Tensor]] = []
    objective.predictor.register_forward_hook(lambda _module, z, p: calls.append((z[0].detach(), p.detach())))
    output = objective(torch.randn(10, 2, 3, 2, 2))
    if separate_batch_norm:
        (z1, p1), (z2, p2) = calls
    else:
        (z1, z2), (p1, p2) = (tensor.unflatten(0, (10, 2)).unbind(1) for tensor in calls[0])
    z1, z2, p1, p2 = (tensor.double().numpy() for tensor in (z1, z2, p1, p2))
    expected = (numpy_distance(p1, z2) + numpy_distance(p2, z1)) / 2
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["cosine"].item() == pytest.approx(-expected, rel=1e-5)
    lengths = [np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2)]
    spread = ((z1 / lengths[0]).std(0).mean() + (z2 / lengths[1]).std(0).mean()) / 2 * 8**0.5
    assert output.terms["std_all"].item() == pytest.approx(spread, rel=1e-5)


def test_the_gradient_takes_the_other_views_embedding_as_a_constant():
    torch.manual_seed(0)
    objective = SimSiam(LinearEncoder(), SMALL).eval()  # without batch statistics, a row depends on itself only
    views = torch.randn(6, 2, 3, 2, 2)
    embeddings = [objective.embed(views[:, view]) for view in (0, 1)]
    predictions = [objective.predictor(embedding) for embedding in embeddings]
    parameters = list(objective.parameters())

    def gradient(of_view_2: Tensor, of_view_1: Tensor) -> list[Tensor]:
        first = torch.cosine_similarity(predictions[0], of_view_2).mean()
        second = torch.cosine_similarity(predictions[1], of_view_1).mean()
        return list(torch.autograd.grad(-(first + second) / 2, parameters, retain_graph=True))

    found = torch.autograd.grad(objective(views).loss, parameters)
    stopped = gradient(embeddings[1].detach(), embeddings[0].detach())
    flowing = gradient(embeddings[1], embeddings[0])
    for mine, expected in zip(found, stopped, strict=True):
        torch.testing.assert_close(mine, expected)
    assert not torch.allclose(found[0], flowing[0], rtol=0.01, atol=1e-3)


def test_a_collapse_is_reported():
    objective = SimSiam(LinearEncoder(), SimSiamConfig((24, 8), "none", 6))
    with torch.no_grad():
        objective.encoder.linear.weight.zero_()
    output = objective(torch.randn(10, 2, 3, 2, 2))
    assert output.terms["std_all"].item() == pytest.approx(0, abs=1e-6)


def test_heads_of_the_paper():
    with torch.device("meta"):
        objective = SimSiam(LinearEncoder())
    assert [type(layer) for layer in objective.projector.layers] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d,
    ]  # fmt: skip
    assert objective.projector.layers[-1].weight is None
    assert [type(layer) for layer in objective.predictor.layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert sum(parameter.numel() for parameter in objective.predictor.parameters()) == 2048 * 512 + 2 * 512 + 513 * 2048


def test_an_impossible_predictor_is_refused():
    with pytest.raises(ValueError, match=r"the head's widths are \(0, 8\)"):
        SimSiam(LinearEncoder(), SimSiamConfig(projector=(24, 8), predictor_hidden_width=0))
