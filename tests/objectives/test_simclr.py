"""SimCLR against its formula, and its projector."""

import pytest
from torch import nn

from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from tests.fakes import PixelEncoder
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.invariant import simclr
from tests.references.table import APART, JOINT, reference


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize(("candidates", "words"), [("both_views", "2N - 1"), ("other_view", "N")])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    ("last_batch_norm", "last"),
    [("none", "linear+bias"), ("affine", "linear norm"), ("not_affine", "linear norm-affine")],
)
def test_it_agrees_with_the_formula(
    temperature: float, candidates: str, words: str, separate: bool, last_batch_norm: str, last: str
):
    config = SimCLRConfig(temperature, (24, 12), last_batch_norm, separate, candidates=candidates)
    expected = reference(
        simclr,
        calls=APART if separate else JOINT,
        projector=f"linear norm relu | {last}",
        temperature=temperature,
        candidates=words,
    )
    assert not disagreements(SimCLR(SmallEncoder(), config), expected)


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
