"""VICReg against its formulas and against lightly's loss on the same embeddings."""

import pytest
import torch
from lightly.loss import VICRegLoss

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from tests.fakes import PixelEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.invariant import vicreg
from tests.references.table import APART, JOINT, VICREG_HEAD, reference


@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formulas(separate: bool):
    config = VICRegConfig(7.0, 5.0, 2.0, (24, 20, 12), separate_batch_norm=separate)
    weights = {"invariance": 7.0, "variance": 5.0, "covariance": 2.0}
    calls = APART if separate else JOINT
    assert not disagreements(
        VICReg(SmallEncoder(), config), reference(vicreg, calls=calls, projector=VICREG_HEAD, weights=weights)
    )


def test_its_loss_is_lightlys():
    objective = VICReg(PixelEncoder(), VICRegConfig(projector=(24, 24, 8)))
    output = objective(random_pairs(16)[0])
    expected = VICRegLoss(lambda_param=10, mu_param=10, nu_param=1)(*output.embeddings.unbind(1))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_large_embeddings_in_half_precision_give_a_finite_float32_loss():
    objective = VICReg(PixelEncoder(), VICRegConfig(projector=(24, 24, 8)))
    with torch.no_grad():
        objective.projector[-1].weight.mul_(3e3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = objective(random_pairs(16)[0])
    output.loss.backward()
    assert output.terms["std_all"] > 500
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)
