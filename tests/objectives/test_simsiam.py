"""SimSiam against its formula (gradients included, which stop at the embeddings), and its heads."""

import pytest
import torch
from torch import nn

from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig
from tests.fakes import LinearEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.invariant import simsiam
from tests.references.table import APART, JOINT, TWO_LAYERS, reference


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    ("last_batch_norm", "last"),
    [("none", "linear+bias"), ("affine", "linear norm"), ("not_affine", "linear norm-affine")],
)
def test_it_agrees_with_the_formula(separate: bool, last_batch_norm: str, last: str):
    objective = SimSiam(SmallEncoder(), SimSiamConfig((24, 8), last_batch_norm, 6, separate))
    calls = APART if separate else JOINT
    assert not disagreements(
        objective, reference(simsiam, calls=calls, projector=f"linear norm relu | {last}", predictor=TWO_LAYERS)
    )


def test_a_collapse_is_reported():
    objective = SimSiam(LinearEncoder(), SimSiamConfig((24, 8), "none", 6))
    with torch.no_grad():
        objective.encoder.linear.weight.zero_()
    assert objective(random_pairs(10)[0]).terms["std_all"].item() == pytest.approx(0, abs=1e-6)


def test_heads_of_the_paper():
    with torch.device("meta"):
        objective = SimSiam(LinearEncoder())
    assert [type(layer) for layer in objective.projector.layers] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d,
    ]  # fmt: skip
    assert objective.projector.layers[-1].weight is None
    assert [type(layer) for layer in objective.predictor.layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert sum(parameter.numel() for parameter in objective.predictor.parameters()) == 2048 * 512 + 2 * 512 + 513 * 2048


@pytest.mark.parametrize(("projector", "width"), [((24, 8), 0), ((), 6), ((0,), 6), ((24, -1), 6)])
def test_impossible_heads_are_refused(projector: tuple[int, ...], width: int):
    with pytest.raises(ValueError, match="the head's widths are"):
        SimSiam(LinearEncoder(), SimSiamConfig(projector, predictor_hidden_width=width))
