"""AugSelf: the regression against an independent NumPy computation, and what it leaves as it is."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.objectives.sen import SEN, SENConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig

SMALL = AugSelfConfig(weight=0.7, hidden=(20, 16))


class LinearEncoder(nn.Module):
    num_features = 10

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


BASES = {
    "simclr": lambda: SimCLR(LinearEncoder(), SimCLRConfig(projector=(24, 8))),
    "vicreg": lambda: VICReg(LinearEncoder(), VICRegConfig(projector=(24, 8))),
    "simsiam": lambda: SimSiam(LinearEncoder(), SimSiamConfig(projector=(24, 8), predictor_hidden_width=6)),
    "barlow_twins": lambda: BarlowTwins(LinearEncoder(), BarlowTwinsConfig(projector=(24, 8))),
    "byol": lambda: BYOL(LinearEncoder(), BYOLConfig(projector=(24, 8), predictor_hidden_width=6)),
    "moco": lambda: MoCo(LinearEncoder(), MoCoConfig(projector=(24, 8), queue_size=48, symmetric=True)),
    "sen": lambda: SEN(LinearEncoder(), SENConfig(projector=(24, 8))),
}


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    return views, torch.randn(size, 4, generator=generator, dtype=torch.float64)


def make(base: str, config: AugSelfConfig = SMALL) -> AugSelf:
    torch.manual_seed(0)
    return AugSelf(BASES[base](), config).double()


def numpy_regression(objective: AugSelf, views: Tensor, actions: Tensor) -> float:
    linear = objective.encoder.linear
    y = views.flatten(2).numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    x = y.reshape(len(views), 20)
    arrays = [p.detach().numpy() for p in objective.head.parameters()]
    for layer, (weight, bias) in enumerate(zip(arrays[::2], arrays[1::2], strict=True)):
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if layer < 2 else x
    return float(((x - actions.numpy()) ** 2).mean())


@pytest.mark.parametrize("base", BASES)
def test_loss_is_the_bases_and_the_weighted_regression(base: str):
    objective, batch = make(base), random_batch(12)
    expected_base = copy.deepcopy(objective.base)(*batch)
    output, regression = objective(*batch), numpy_regression(objective, *batch)
    assert output.terms["action_regression"].item() == pytest.approx(regression, rel=1e-5)
    assert output.loss.item() == pytest.approx(expected_base.loss.item() + 0.7 * regression, rel=1e-10)
    for name, term in expected_base.terms.items():
        assert torch.equal(output.terms[name], term)
    assert torch.equal(output.features, expected_base.features)
    assert objective.parts == objective.base.parts
    assert objective.encoder is objective.base.encoder


@pytest.mark.parametrize("base", BASES)
def test_weight_0_is_the_base_bit_for_bit(base: str):
    """Loss, gradients, features and buffers; there is no head, and the action is not looked at."""
    wrapped = make(base, AugSelfConfig(weight=0.0))
    alone = copy.deepcopy(wrapped.base)
    views, actions = random_batch(12)
    output, expected = wrapped(views, actions), alone(views, actions)
    assert wrapped.head is None
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(output.features, expected.features)
    assert output.terms.keys() == expected.terms.keys()
    output.loss.backward()
    expected.loss.backward()
    for mine, theirs in zip(wrapped.parameters(), alone.parameters(), strict=True):
        assert mine.grad is theirs.grad is None or torch.equal(mine.grad, theirs.grad)
    assert {name.removeprefix("base.") for name in wrapped.state_dict()} == set(alone.state_dict())
    for name, buffer in alone.named_buffers():
        assert torch.equal(wrapped.get_buffer(f"base.{name}"), buffer)


def test_weight_0_around_an_invariant_base_needs_no_action():
    assert torch.isfinite(make("simclr", AugSelfConfig(weight=0.0))(random_batch(12)[0]).loss)


def test_the_regression_trains_the_encoder_but_not_the_projector():
    objective, batch = make("simclr"), random_batch(12)
    output = objective(*batch)
    (gradient_of_both,) = torch.autograd.grad(output.loss, objective.encoder.linear.weight, retain_graph=True)
    base = copy.deepcopy(objective.base)
    (gradient_of_base,) = torch.autograd.grad(base(*batch).loss, base.encoder.linear.weight)
    output.loss.backward()
    base(*batch).loss.backward()
    assert not torch.allclose(gradient_of_both, gradient_of_base)
    for mine, theirs in zip(objective.base.projector.parameters(), base.projector.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad)


def test_update_target_reaches_the_base_or_does_nothing():
    objective = make("byol")
    with torch.no_grad():
        objective.encoder.linear.weight.zero_()
    objective.update_target(0.0)
    assert objective.base.target_encoder.linear.weight.abs().sum() == 0
    make("simclr").update_target(0.5)


def test_the_released_head():
    class ResNet18Width(LinearEncoder):
        num_features = 512

    with torch.device("meta"):
        head = AugSelf(SimCLR(ResNet18Width())).head
    assert [layer.weight.shape for layer in head.modules() if isinstance(layer, nn.Linear)] == [
        (1024, 1024), (1024, 1024), (4, 1024),
    ]  # fmt: skip
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in head.modules())


def test_unsuitable_bases_and_sizes_are_refused_with_the_cure():
    with pytest.raises(ValueError, match="Linear is no objective"):
        AugSelf(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="AugSelf returned no encoder_features"):
        AugSelf(make("simclr"), SMALL).double()(*random_batch(12))
    with pytest.raises(ValueError, match="MoCo returned no encoder_features: pass one that trains its encoder on both"):
        AugSelf(MoCo(LinearEncoder(), MoCoConfig(queue_size=48)), SMALL).double()(*random_batch(12))
    with pytest.raises(ValueError, match="weight is -1"):
        make("simclr", AugSelfConfig(weight=-1.0))
    with pytest.raises(ValueError, match="action_dim is 0"):
        make("simclr", AugSelfConfig(action_dim=0))
