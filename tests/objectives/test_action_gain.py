"""How much larger a prediction error is with the actions of other objects: closed form, controls, no trace."""

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.parts.action_gain import action_gain
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.objectives.sie import SIE, SIEConfig
from tests.fakes import ConvolutionEncoder
from tests.objectives.case import SIDE, SIZE, Case, all_cases, in_turn

PREDICTING = ("sie", "equimod", "sen", "conditional_byol", "conv_jepa", "seq_jepa", "capsie", "equicaps")
CASES = all_cases()
WITH_GAIN = {
    name: case
    for name, case in CASES.items()
    if name.startswith(PREDICTING) and case.actions and not case.ignores_actions
}


def squared(prediction: Tensor) -> Tensor:
    return prediction.square().mean()


@in_turn(CASES)
def test_objectives_that_predict_with_actions_measure_their_gain_when_asked_and_no_others(case: Case):
    torch.manual_seed(0)
    objective, inputs = case.make(ConvolutionEncoder), case.inputs()
    assert objective(**inputs).action_gain is None, "nobody asked"
    objective.measures_action_gain = True
    gain = objective(**inputs).action_gain
    assert (gain is not None) == (case in WITH_GAIN.values())
    if gain is not None:
        assert (gain.shape, gain.dtype, gain.requires_grad) == ((), torch.float32, False)
        assert gain.isfinite()


@in_turn(WITH_GAIN)
def test_measuring_leaves_loss_gradients_buffers_and_generators_as_they_are(case: Case):
    outcomes = []
    for measures in (False, True):
        torch.manual_seed(0)
        objective = case.make(ConvolutionEncoder)
        objective.measures_action_gain = measures
        for _ in range(2):
            output = objective(**case.inputs())
        output.loss.backward()
        gradients = {name: weight.grad for name, weight in objective.named_parameters() if weight.grad is not None}
        drawn = torch.rand(3)
        outcomes.append(
            {"loss": output.loss, "drawn": drawn, **output.terms, **dict(objective.named_buffers()), **gradients}
        )
    without, beside = outcomes
    assert without.keys() == beside.keys()
    for name, value in without.items():
        assert torch.equal(value, beside[name]), name


def test_a_linear_world_has_the_gain_of_its_actions():
    """x' = x + a, predicted by x + a + e with e of variance s^2: another action adds 2 Var(a) to the error s^2."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    actions = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(64, 5, generator=generator, dtype=torch.float64)
    predict = lambda given: first + given + noise  # noqa: E731
    gain = action_gain(predict, lambda p: squared(p - first - actions), actions, predict(actions))
    moved = actions.roll(1, dims=0) - actions
    expected = ((moved + noise).square().mean() - noise.square().mean()) / noise.square().mean()
    assert gain.item() == pytest.approx(expected.item(), rel=1e-12)
    assert gain.item() == pytest.approx(2 / 0.3**2, rel=0.2), "2 Var(a) / s^2, up to sampling"


def test_a_prediction_that_ignores_its_action_gains_nothing_and_a_perfect_one_is_finite():
    actions = torch.randn(8, 4)
    assert action_gain(lambda _: torch.ones(8, 3), squared, actions, torch.ones(8, 3)) == 0
    perfect = action_gain(lambda given: given, lambda p: squared(p - actions), actions, actions)
    assert perfect.isfinite() and perfect > 1e6


def test_both_errors_see_the_same_dropout():
    dropout = nn.Dropout(0.5)
    ones = torch.ones(64, 32)
    assert action_gain(lambda _: dropout(ones), squared, torch.randn(64, 4), dropout(ones), dropout) == 0


@pytest.mark.parametrize("conditioning", ["both", "aggregator", "predictor"])
def test_seq_jepa_whose_weights_of_actions_are_zero_gains_nothing(conditioning: str):
    torch.manual_seed(0)
    config = SeqJEPAConfig(layers=1, feedforward_width=16, action_width=8, conditioning=conditioning)
    objective = SeqJEPA(ConvolutionEncoder(), config)
    objective.measures_action_gain = True
    inputs = CASES["seq_jepa"].inputs()
    assert objective(**inputs).action_gain != 0
    with torch.no_grad():
        objective.action_embedding.projection.weight.zero_()
    assert objective(**inputs).action_gain == pytest.approx(0, abs=1e-6)


class Pixels(nn.Flatten):
    num_features = 3 * SIDE * SIDE


@pytest.mark.parametrize("knows", [True, False])
def test_sie_in_a_linear_world_has_the_closed_form(knows: bool):
    """View 2 is sum_k a_k W_k of view 1 and noise; a predictor that holds these W_k errs by the noise alone."""
    generator = torch.Generator().manual_seed(0)
    width = Pixels.num_features
    actions, first = torch.randn(SIZE, 4, generator=generator), torch.randn(SIZE, width, generator=generator)
    matrices = torch.randn(4, width, width, generator=generator) / width**0.5
    moved = torch.einsum("bk,kij,bj->bi", actions, matrices, first)
    noise = 0.1 * torch.randn(SIZE, width, generator=generator)
    objective = SIE(Pixels(), SIEConfig(parts="equi_only", projector=(width,), action_dim=4))
    objective.projectors["equi"] = nn.Identity()
    objective.measures_action_gain = True
    with torch.no_grad():
        objective.predictor.matrices.copy_(matrices if knows else torch.zeros_like(matrices))
    views = torch.stack([first, moved + noise], dim=1).unflatten(2, (3, SIDE, SIDE))
    of_others = torch.einsum("bk,kij,bj->bi", actions[[SIZE - 1, *range(SIZE - 1)]], matrices, first)
    expected = (moved + noise - of_others).square().mean() / noise.square().mean() - 1 if knows else 0
    assert float(objective(views, actions).action_gain) == pytest.approx(float(expected), rel=1e-4)
