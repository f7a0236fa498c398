"""AugSelf against its formula on every base, and what it leaves as it is."""

import copy

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
from tests.fakes import LinearEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.extensions import augself
from tests.references.invariant import simclr
from tests.references.table import ACTION_HEAD, APART, JOINT, THREE_LAYERS_NO_BIAS, reference

SMALL = AugSelfConfig(weight=0.7, hidden=(20, 16))
BASES = {
    "simclr": lambda encoder: SimCLR(encoder, SimCLRConfig(projector=(24, 8))),
    "vicreg": lambda encoder: VICReg(encoder, VICRegConfig(projector=(24, 8))),
    "simsiam": lambda encoder: SimSiam(encoder, SimSiamConfig(projector=(24, 8), predictor_hidden_width=6)),
    "barlow_twins": lambda encoder: BarlowTwins(encoder, BarlowTwinsConfig(projector=(24, 8))),
    "byol": lambda encoder: BYOL(encoder, BYOLConfig(projector=(24, 8), predictor_hidden_width=6)),
    "moco": lambda encoder: MoCo(encoder, MoCoConfig(projector=(24, 8), queue_size=48, symmetric=True)),
    "sen": lambda encoder: SEN(encoder, SENConfig(projector=(24, 8))),
}


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    return random_pairs(size, dtype=torch.float64)


def make(base: str, config: AugSelfConfig = SMALL) -> AugSelf:
    torch.manual_seed(0)
    return AugSelf(BASES[base](LinearEncoder()), config).double()


@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formula(separate: bool):
    base = SimCLRConfig(0.1, (24, 20, 12), separate_batch_norm=separate, last_bias=False)
    expected = reference(
        augself,
        actions=(4,),
        head=ACTION_HEAD,
        weight=0.7,
        base=reference(
            simclr,
            calls=APART if separate else JOINT,
            projector=THREE_LAYERS_NO_BIAS,
            temperature=0.1,
            candidates="2N - 1",
        ),
    )
    assert not disagreements(AugSelf(SimCLR(SmallEncoder(), base), SMALL), expected)


@pytest.mark.parametrize("base", BASES)
def test_loss_is_the_bases_and_the_weighted_regression(base: str):
    objective, (views, actions) = make(base), random_batch(12)
    expected_base = copy.deepcopy(objective.base)(views, actions)
    output = objective(views, actions)
    with torch.no_grad():
        told = objective.head.layers(objective.encoder(views.flatten(0, 1)).reshape(12, -1))
    regression = (told - actions).square().mean().item()
    assert output.terms["action_regression"].item() == pytest.approx(regression, rel=1e-10)
    assert output.loss.item() == pytest.approx(expected_base.loss.item() + 0.7 * regression, rel=1e-10)
    for name, term in expected_base.terms.items():
        assert torch.equal(output.terms[name], term)
    assert torch.equal(output.features, expected_base.features)


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


def test_the_released_head():
    with torch.device("meta"):
        head = AugSelf(SimCLR(LinearEncoder(512))).head
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
