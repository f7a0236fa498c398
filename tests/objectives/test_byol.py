"""BYOL's loss against an independent NumPy computation of equation 2, and the moving target."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.byol import BYOL, BYOLConfig

SMALL = BYOLConfig(projector=(24, 8), predictor_hidden_width=20)


class LinearEncoder(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def byol_apart_from_its_target(config: BYOLConfig = SMALL) -> BYOL:
    """An objective whose target differs from the online branch, as it does once training has begun."""
    torch.manual_seed(0)
    objective = BYOL(LinearEncoder(), config)
    with torch.no_grad():
        for parameter in (*objective.target_encoder.parameters(), *objective.target_projector.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    return objective


def numpy_loss(prediction: np.ndarray, target: np.ndarray) -> float:
    """Equation 2: the squared distance of the two after normalising both to length 1, mean over the batch."""
    prediction = prediction / np.linalg.norm(prediction, axis=1, keepdims=True)
    target = target / np.linalg.norm(target, axis=1, keepdims=True)
    return float(np.mean(np.sum((prediction - target) ** 2, axis=1)))


@pytest.mark.parametrize("separate_batch_norm", [False, True])
def test_loss_is_the_mean_of_both_directions(separate_batch_norm: bool):
    objective = byol_apart_from_its_target(BYOLConfig((24, 8), 20, separate_batch_norm))
    views, online, target = torch.randn(10, 2, 3, 2, 2), [], []
    objective.predictor.register_forward_hook(lambda _module, _inputs, output: online.append(output.detach()))
    objective.target_projector.register_forward_hook(lambda _module, _inputs, output: target.append(output))
    output = objective(views)
    assert len(online) == len(target) == (2 if separate_batch_norm else 1)
    if separate_batch_norm:
        (p1, p2), (t1, t2) = online, target
    else:
        (p1, p2), (t1, t2) = (batch[0].unflatten(0, (10, 2)).unbind(1) for batch in (online, target))
    p1, p2, t1, t2 = (tensor.double().numpy() for tensor in (p1, p2, t1, t2))
    expected = (numpy_loss(p1, t2) + numpy_loss(p2, t1)) / 2
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["cosine"].item() == pytest.approx(1 - expected / 2, rel=1e-5)


def test_eval_mode_equals_a_pass_through_the_modules():
    objective = byol_apart_from_its_target().eval()
    views = torch.randn(6, 2, 3, 2, 2)
    p1, p2 = (objective.predictor(objective.embed(views[:, v])).detach().double().numpy() for v in (0, 1))
    t1, t2 = (objective.target_projector(objective.target_encoder(views[:, v])).double().numpy() for v in (0, 1))
    assert objective(views).loss.item() == pytest.approx((numpy_loss(p1, t2) + numpy_loss(p2, t1)) / 2, rel=1e-5)


def test_the_target_starts_as_a_copy_without_gradient_and_gets_none():
    objective = BYOL(LinearEncoder(), SMALL)
    for online, target in [
        (objective.encoder, objective.target_encoder),
        (objective.projector, objective.target_projector),
    ]:
        assert target is not online
        for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert mine is not theirs
    objective(torch.randn(6, 2, 3, 2, 2)).loss.backward()
    without_gradient = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    assert without_gradient == {name for name, _ in objective.named_parameters() if name.startswith("target_")}
    assert {name for name, parameter in objective.named_parameters() if not parameter.requires_grad} == without_gradient


def test_the_gradient_takes_the_target_as_a_constant():
    objective = byol_apart_from_its_target().eval()  # without batch statistics, a row depends on itself only
    views = torch.randn(6, 2, 3, 2, 2)
    with torch.no_grad():
        constant = objective.target_projector(objective.target_encoder(views[:, 1]))
        reverse = objective.target_projector(objective.target_encoder(views[:, 0]))
    predictions = [objective.predictor(objective.embed(views[:, view])) for view in (0, 1)]
    cosines = [
        torch.cosine_similarity(prediction, target).mean()
        for prediction, target in zip(predictions, (constant, reverse), strict=True)
    ]
    online = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(2 - sum(cosines), online)
    found = torch.autograd.grad(objective(views).loss, online)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("momentum", "weight", "bias"), [(1.0, 2.0, -1.0), (0.0, 6.0, 3.0), (0.75, 3.0, 0.0)])
def test_update_target_golden_values(momentum: float, weight: float, bias: float):
    objective = BYOL(LinearEncoder(), SMALL)
    with torch.no_grad():
        for target_value, value, target, online in [
            (2.0, 6.0, objective.target_encoder.linear.weight, objective.encoder.linear.weight),
            (-1.0, 3.0, objective.target_projector.layers[-1].bias, objective.projector.layers[-1].bias),
        ]:
            target.fill_(target_value)
            online.fill_(value)
    objective.update_target(momentum)
    assert (objective.target_encoder.linear.weight == weight).all()
    assert (objective.target_projector.layers[-1].bias == bias).all()
    assert (objective.encoder.linear.weight == 6).all()
    assert (objective.projector.layers[-1].bias == 3).all()


@pytest.mark.parametrize("momentum", [1.5, -0.1, float("nan")])
def test_an_impossible_momentum_is_refused_and_moves_nothing(momentum: float):
    objective = byol_apart_from_its_target()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with pytest.raises(ValueError, match="the momentum is"):
        objective.update_target(momentum)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())


def test_the_target_uses_batch_statistics_while_training_and_running_ones_after():
    objective = byol_apart_from_its_target()
    norm = objective.target_projector.layers[1]
    assert isinstance(norm, nn.BatchNorm1d)
    objective(torch.randn(6, 2, 3, 2, 2))
    after_training = norm.running_mean.clone()
    assert norm.num_batches_tracked == 1
    objective.eval()(torch.randn(6, 2, 3, 2, 2))
    assert torch.equal(norm.running_mean, after_training)


def test_sizes_of_the_paper():
    with torch.device("meta"):
        encoder = LinearEncoder()
        encoder.num_features = 2048
        objective = BYOL(encoder)
    assert (
        sum(parameter.numel() for parameter in objective.projector.parameters()) == 2048 * 4096 + 2 * 4096 + 4097 * 256
    )
    assert (
        sum(parameter.numel() for parameter in objective.predictor.parameters()) == 256 * 4096 + 2 * 4096 + 4097 * 256
    )


def test_an_impossible_predictor_is_refused():
    with pytest.raises(ValueError, match=r"the head's widths are \(0, 8\)"):
        BYOL(LinearEncoder(), BYOLConfig(projector=(24, 8), predictor_hidden_width=0))
