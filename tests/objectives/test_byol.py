"""BYOL and Conditional BYOL against their formulas, and their target, which the formulas take as a constant."""

import pytest
import torch
from torch import nn

from ssl_equi.objectives.byol import BYOL, BYOLConfig, ConditionalBYOL, ConditionalBYOLConfig
from tests.fakes import LinearEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements, moved
from tests.references.equivariant import conditional_byol
from tests.references.invariant import byol
from tests.references.table import APART, JOINT, TWO_LAYERS, TWO_LAYERS_NORM, reference

SMALL = BYOLConfig(projector=(24, 8), predictor_hidden_width=20)
SMALL_CONDITIONAL = {"projector": (24, 8), "predictor_hidden_width": 20, "action_width": 6}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_byol_agrees_with_the_formula(separate: bool, reduction: str):
    objective = BYOL(SmallEncoder(), BYOLConfig((24, 8), 20, separate, reduction=reduction))
    calls = APART if separate else JOINT
    assert not disagreements(
        objective, reference(byol, calls=calls, projector=TWO_LAYERS, predictor=TWO_LAYERS, reduction=reduction)
    )


@pytest.mark.parametrize(("last_batch_norm", "projector"), [("none", TWO_LAYERS), ("not_affine", TWO_LAYERS_NORM)])
def test_conditional_byol_agrees_with_the_formula(last_batch_norm: str, projector: str):
    config = ConditionalBYOLConfig(**SMALL_CONDITIONAL, last_batch_norm=last_batch_norm)
    expected = reference(conditional_byol, actions=(4,), projector=projector, predictor=TWO_LAYERS)
    assert not disagreements(ConditionalBYOL(SmallEncoder(), config), expected)


def test_in_eval_mode_views_are_compared_one_by_one():
    objective = moved(BYOL(LinearEncoder(), SMALL)).eval()
    views, _ = random_pairs(6, dtype=torch.float64)
    predictions = [objective.predictor(objective.embed(views[:, view])) for view in (0, 1)]
    targets = [objective.target_projector(objective.target_encoder(views[:, view])) for view in (0, 1)]
    cosines = [torch.cosine_similarity(predictions[view], targets[1 - view]).mean() for view in (0, 1)]
    assert objective(views).loss.item() == pytest.approx(2 - sum(cosines).item(), rel=1e-10)


@pytest.mark.parametrize(("momentum", "weight", "bias"), [(1.0, 2.0, -1.0), (0.0, 6.0, 3.0), (0.75, 3.0, 0.0)])
def test_update_target_golden_values(momentum: float, weight: float, bias: float):
    objective = BYOL(LinearEncoder(), SMALL)
    with torch.no_grad():
        for target_value, value, target, online in [
            (2.0, 6.0, objective.target_encoder.linear.weight, objective.encoder.linear.weight),
            (-1.0, 3.0, objective.target_projector.layers[-1].bias, objective.projector.layers[-1].bias),
        ]:
            target.fill_(target_value)
            online.fill_(value)
    objective.update_target(momentum)
    assert (objective.target_encoder.linear.weight == weight).all()
    assert (objective.target_projector.layers[-1].bias == bias).all()
    assert (objective.encoder.linear.weight == 6).all()
    assert (objective.projector.layers[-1].bias == 3).all()


def test_the_target_uses_batch_statistics_while_training_and_running_ones_after():
    objective, (views, _) = BYOL(LinearEncoder(), SMALL), random_pairs(6)
    norm = objective.target_projector.layers[1]
    assert isinstance(norm, nn.BatchNorm1d)
    objective(views)
    after_training = norm.running_mean.clone()
    assert norm.num_batches_tracked == 1
    objective.eval()(views + 1)
    assert torch.equal(norm.running_mean, after_training)


def test_sizes_of_the_paper():
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        objective = BYOL(LinearEncoder(num_features=2048))
    assert count(objective.projector) == 2048 * 4096 + 2 * 4096 + 4097 * 256
    assert count(objective.predictor) == 256 * 4096 + 2 * 4096 + 4097 * 256


def test_defaults_of_conditional_byol_are_seq_jepas():
    config = ConditionalBYOLConfig()
    assert (config.projector, config.predictor_hidden_width, config.action_width) == ((2048, 2048, 2048), 512, 128)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BYOLConfig((24, 8), 0), r"the head's widths are \(0, 8\)"),
        (lambda: BYOLConfig(()), "the head's widths are"),
        (lambda: BYOLConfig((24, -1)), "the head's widths are"),
        (lambda: BYOLConfig((24, 8), reduction="max"), "reduction is 'max': choose 'mean' or 'sum'"),
        (lambda: ConditionalBYOLConfig(predictor_hidden_width=0), "the head's widths"),
    ],
)
def test_impossible_configurations_are_refused(make, message: str):
    config = make()
    objective_class = BYOL if isinstance(config, BYOLConfig) else ConditionalBYOL
    with pytest.raises(ValueError, match=message):
        objective_class(LinearEncoder(), config)
