"""SEN against its formula, and what is compared."""

import pytest
import torch
from torch import nn

from ssl_equi.objectives.sen import SEN, SENConfig
from tests.fakes import PixelEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.equivariant import sen
from tests.references.table import APART, JOINT, PREDICTOR_NORM, TWO_LAYERS_NORM, reference


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_it_agrees_with_the_formula(separate: bool, temperature: float):
    config = SENConfig(temperature, (24, 8), action_width=6, separate_batch_norm=separate)
    calls = APART if separate else JOINT
    expected = reference(
        sen, actions=(4,), calls=calls, projector=TWO_LAYERS_NORM, predictor=PREDICTOR_NORM, temperature=temperature
    )
    assert not disagreements(SEN(SmallEncoder(), config), expected)


def test_only_the_prediction_is_compared():
    """View 1 reaches the loss through the prediction alone."""
    torch.manual_seed(0)
    objective = SEN(PixelEncoder(), SENConfig(projector=(24, 8))).eval()
    views, actions = random_pairs(10)
    nn.init.zeros_(objective.predictor.head.layers[0].weight[:, :8])
    changed = views.clone()
    changed[:, 0] = torch.randn(10, 3, 2, 2)
    assert torch.equal(objective(views, actions).loss, objective(changed, actions).loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector": ()}, "the head's widths are"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"action_width": 0}, "action_width is 0"),
        ({"temperature": -1.0}, "the temperature is -1.0"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SEN(PixelEncoder(), SENConfig(**{"projector": (24, 8)} | changes))


def test_defaults_are_seq_jepas():
    config = SENConfig()
    assert (config.temperature, config.projector, config.action_width) == (0.5, (2048, 2048, 2048), 128)
