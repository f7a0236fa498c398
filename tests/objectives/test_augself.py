"""AugSelf against its formula, and what it trains."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from tests.fakes import LinearEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.extensions import augself
from tests.references.invariant import simclr
from tests.references.table import ACTION_HEAD, APART, JOINT, THREE_LAYERS_NO_BIAS, reference

SMALL = AugSelfConfig(weight=0.7, hidden=(20, 16))


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    return random_pairs(size, dtype=torch.float64)


def make(config: AugSelfConfig = SMALL) -> AugSelf:
    torch.manual_seed(0)
    return AugSelf(SimCLR(LinearEncoder(), SimCLRConfig(projector=(24, 8))), config).double()


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


def test_the_regression_trains_the_encoder_but_not_the_projector():
    objective, batch = make(), random_batch(12)
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
        AugSelf(make(), SMALL).double()(*random_batch(12))
    with pytest.raises(ValueError, match="MoCo returned no encoder_features: pass one that trains its encoder on both"):
        AugSelf(MoCo(LinearEncoder(), MoCoConfig(queue_size=48)), SMALL).double()(*random_batch(12))
    with pytest.raises(ValueError, match="weight is -1"):
        make(AugSelfConfig(weight=-1.0))
    with pytest.raises(ValueError, match="action_dim is 0"):
        make(AugSelfConfig(action_dim=0))
