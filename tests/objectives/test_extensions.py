"""What objectives that add a term leave of their base: everything, and with weight 0 nothing else."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_equi.objectives.base import Extension, Objective
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.objectives.care import CARE, CAREConfig
from ssl_equi.objectives.essl import ESSL, ESSLConfig
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.objectives.sen import SEN, SENConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.objectives.vicreg_traj import VICRegTraj, VICRegTrajConfig
from tests.fakes import ConvolutionEncoder, random_pairs, recorded_calls
from tests.objectives.case import in_turn
from tests.objectives.cases.care import shared_views
from tests.objectives.cases.essl import small_views

HEADS = {"projector": (16, 8)}
BASES: dict[str, Callable[[nn.Module], Objective]] = {
    "simclr": lambda encoder: SimCLR(encoder, SimCLRConfig(**HEADS)),
    "vicreg": lambda encoder: VICReg(encoder, VICRegConfig(**HEADS)),
    "simsiam": lambda encoder: SimSiam(encoder, SimSiamConfig(**HEADS, predictor_hidden_width=6)),
    "barlow_twins": lambda encoder: BarlowTwins(encoder, BarlowTwinsConfig(**HEADS)),
    "byol": lambda encoder: BYOL(encoder, BYOLConfig(**HEADS, predictor_hidden_width=6)),
    "moco": lambda encoder: MoCo(encoder, MoCoConfig(**HEADS, queue_size=48, symmetric=True)),
    "sen": lambda encoder: SEN(encoder, SENConfig(**HEADS)),
}
EXTENSIONS: dict[str, Callable[[Objective, float], Extension]] = {
    "augself": lambda base, weight: AugSelf(base, AugSelfConfig(weight, hidden=(20,))),
    "essl": lambda base, weight: ESSL(base, ESSLConfig(weight, hidden_widths=(16, 16))),
    "care": lambda base, weight: CARE(base, CAREConfig(weight, chunk_size=4)),
    "care_two_passes": lambda base, weight: CARE(base, CAREConfig(weight, chunk_size=4, reuse_views=True)),
    "vicreg_traj": lambda base, weight: VICRegTraj(base, VICRegTrajConfig(weight)),
}
TERMS = {
    "augself": "action_regression", "essl": "transformation", "care": "gram_difference",
    "care_two_passes": "gram_difference",
}  # fmt: skip
FURTHER_VIEWS = {"care": shared_views, "essl": partial(small_views, 4)}


SUITABLE_BASES = {
    "augself": list(BASES), "essl": [base for base in BASES if base != "sen"], "care": list(BASES),
    "care_two_passes": ["simclr", "vicreg", "barlow_twins", "moco"], "vicreg_traj": ["vicreg"],
}  # fmt: skip
PAIRS = {f"{extension} {base}": (extension, base) for extension, bases in SUITABLE_BASES.items() for base in bases}


def make(extension: str, base: str, weight: float) -> tuple[Extension, Objective]:
    """The extension, and its base again, alone."""
    torch.manual_seed(0)
    alone = BASES[base](ConvolutionEncoder(10))
    return EXTENSIONS[extension](copy.deepcopy(alone), weight), alone


@in_turn({name: pair for name, pair in PAIRS.items() if pair[0] in TERMS})
def test_the_base_is_the_same_as_alone(pair: tuple[str, str]) -> None:
    extension = pair[0]
    objective, alone = make(*pair, weight=0.7)
    views, actions = random_pairs(12, side=8)
    more = FURTHER_VIEWS.get(extension, lambda *_: {})(12, torch.Generator().manual_seed(1), torch.float32)
    output, expected = objective(views, actions, **more), alone(views, actions)
    assert output.terms.keys() > expected.terms.keys()
    assert all(torch.equal(output.terms[name], term) for name, term in expected.terms.items())
    assert torch.equal(output.features, expected.features)
    assert torch.equal(output.loss, expected.loss + 0.7 * output.terms[TERMS[extension]])
    assert output.embeddings is None and output.encoder_features is None
    for name, buffer in alone.named_buffers():
        assert torch.equal(objective.get_buffer(f"base.{name}"), buffer), name


@in_turn(PAIRS)
def test_weight_0_is_the_base_to_the_bit(pair: tuple[str, str]) -> None:
    """Loss, gradients, features and buffers; there is no head and no further call of the encoder."""
    objective, alone = make(*pair, weight=0.0)
    views, actions = random_pairs(12, side=8)
    calls, expected_calls = recorded_calls(objective.encoder), recorded_calls(alone.encoder)
    output, expected = objective(views, actions), alone(views, actions)
    assert calls == expected_calls
    assert torch.equal(output.loss, expected.loss) and torch.equal(output.features, expected.features)
    assert output.terms == expected.terms
    assert output.embeddings is None and output.encoder_features is None
    output.loss.backward()
    expected.loss.backward()
    for mine, theirs in zip(objective.parameters(), alone.parameters(), strict=True):
        assert mine.grad is theirs.grad is None or torch.equal(mine.grad, theirs.grad)
    assert list(objective.state_dict()) == [f"base.{name}" for name in alone.state_dict()]
    for name, buffer in alone.named_buffers():
        assert torch.equal(objective.get_buffer(f"base.{name}"), buffer), name


@pytest.mark.parametrize("extension", ["augself", "essl", "care"])
def test_weight_0_around_an_invariant_base_needs_views_only(extension: str) -> None:
    assert make(extension, "simclr", weight=0.0)[0](random_pairs(12, side=8)[0]).loss.isfinite()
