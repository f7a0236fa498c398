"""Both forms of EquiMod against their formulas."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ssl_equi.objectives.equimod import EquiMod, EquiModConfig
from tests.fakes import PixelEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.equivariant import equimod, equimod_vicreg
from tests.references.table import APART, JOINT, PREDICTOR, PREDICTOR_NORM, TWO_LAYERS, TWO_LAYERS_NORM, reference

SMALL = EquiModConfig(projector=(24, 8), action_width=6)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("predictor", ["linear", "hypernetwork"])
@pytest.mark.parametrize("form", ["simclr", "vicreg"])
def test_it_agrees_with_the_formulas(form: str, predictor: str, separate: bool):
    config = replace(
        SMALL, form=form, predictor=predictor, equi_weight=0.3, separate_batch_norm=separate,
        inv_weight=7.0, variance_weight=5.0, covariance_weight=2.0,
    )  # fmt: skip
    if form == "simclr":
        loss, layers, projectors, more = equimod, PREDICTOR_NORM, TWO_LAYERS_NORM, {"temperature": 0.1}
    else:
        loss, layers, projectors = equimod_vicreg, PREDICTOR, TWO_LAYERS
        more = {"weights": {"invariance": 7.0, "variance": 5.0, "covariance": 2.0}}
    expected = reference(
        loss,
        actions=(4,),
        calls=APART if separate else JOINT,
        projectors=projectors,
        predictor=layers if predictor == "linear" else predictor,
        equivariant_weight=0.3,
        **more,
    )
    assert not disagreements(EquiMod(SmallEncoder(), config), expected)


@pytest.mark.parametrize("form", ["simclr", "vicreg"])
def test_each_projector_has_its_term(form: str):
    """Without the equivariant part, neither its projector nor the predictor gets a gradient, and the reverse holds."""
    objective = EquiMod(PixelEncoder(), replace(SMALL, form=form, equi_weight=0.0)).double()
    objective(*random_pairs(10, dtype=torch.float64)).loss.backward()
    for name, parameter in objective.named_parameters():
        trained = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert trained == name.startswith("projectors.inv") or name.endswith("bias"), name


def test_the_vicreg_form_has_no_batch_norm_on_the_embedding():
    last_layers = {
        form: type(EquiMod(PixelEncoder(), replace(SMALL, form=form)).projectors["equi"].layers[-1])
        for form in ("simclr", "vicreg")
    }
    assert last_layers == {"simclr": nn.BatchNorm1d, "vicreg": nn.Linear}


def test_defaults_are_seq_jepas():
    config = EquiModConfig()
    assert (config.temperature, config.equi_weight, config.projector) == (0.1, 1.0, (1024, 1024, 128))
    assert config.action_width == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "byol"}, "form is 'byol': choose 'simclr' or 'vicreg'"),
        ({"predictor": "mlp"}, "predictor is 'mlp': choose 'linear' or 'hypernetwork'"),
        ({"temperature": 0.0}, "the temperature is 0.0"),
        ({"projector": (), "form": "vicreg"}, "the head's widths are"),
        ({"predictor": "hypernetwork", "action_dim": 0}, "action_dim is 0"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        EquiMod(PixelEncoder(), replace(SMALL, **changes))
