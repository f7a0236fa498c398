"""Conv-JEPA against its formula, its calls, and the order of its views."""

import pytest
import torch
from torch import Tensor

from ssl_equi.objectives.conv_jepa import ConvJEPA, ConvJEPAConfig
from tests.fakes import LinearEncoder, recorded_calls
from tests.references.comparison import SmallEncoder, disagreements, moved
from tests.references.sequences import conv_jepa
from tests.references.table import APART, JOINT, TWO_LAYERS, reference

SIZES = {
    "projector": (24, 8), "predictor_hidden_width": 20, "action_width": 6, "action_dim": 2, "last_batch_norm": "none",
}  # fmt: skip
BATCH = 10


def random_batch(observed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(observed)
    views = torch.randn(BATCH, observed + 1, 3, 2, 2, generator=generator, dtype=torch.float64)
    return views, torch.randn(BATCH, observed, 2, generator=generator, dtype=torch.float64)


def with_a_target_of_its_own(**changes: object) -> ConvJEPA:
    return moved(ConvJEPA(LinearEncoder(num_features=10), ConvJEPAConfig(**SIZES | changes)))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("observed", [1, 2, 4])
def test_it_agrees_with_the_formula(observed: int, reduction: str, separate: bool):
    config = ConvJEPAConfig(**SIZES, reduction=reduction, separate_batch_norm=separate)
    expected = reference(
        conv_jepa,
        views=observed + 1,
        actions=(observed, 2),
        calls=APART if separate else JOINT,
        projector=TWO_LAYERS,
        predictor=TWO_LAYERS,
        reduction=reduction,
    )
    assert not disagreements(ConvJEPA(SmallEncoder(), config), expected)


def test_target_views_are_encoded_in_one_call():
    objective = with_a_target_of_its_own()
    calls = recorded_calls(objective.target_encoder)
    objective(*random_batch(4))
    assert calls == [(BATCH, 3, 2, 2)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("training", [False, True])
def test_the_order_of_the_observed_views_does_not_matter(reduction: str, training: bool):
    objective = with_a_target_of_its_own(reduction=reduction).train(training)
    views, actions = random_batch(4)
    order = [2, 0, 3, 1]
    expected, found = objective(views, actions), objective(views[:, [*order, 4]], actions[:, order])
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    assert torch.allclose(found.features, expected.features[:, order])
    other_way = objective(views[:, [*order, 4]], actions)
    assert abs(other_way.loss.item() - expected.loss.item()) > 1e-6, "actions belong to their views"


def test_in_eval_mode_views_are_judged_one_by_one():
    objective, (views, actions) = with_a_target_of_its_own(reduction="sum").eval(), random_batch(4)
    alone = [objective(views[:, [i, 4]], actions[:, [i]]).loss.item() for i in range(4)]
    assert objective(views, actions).loss.item() == pytest.approx(sum(alone), rel=1e-12)


def test_defaults_are_those_of_the_released_code():
    config = ConvJEPAConfig()
    assert (config.projector, config.predictor_hidden_width, config.action_width) == ((2048, 128), 1024, 128)
    assert (config.reduction, config.action_dim, config.last_batch_norm) == ("mean", 2, "not_affine")
    with torch.device("meta"):
        objective = ConvJEPA(LinearEncoder(512), config)
    assert [p.shape for p in objective.projector.parameters() if p.ndim == 2] == [(2048, 512), (128, 2048)]
    assert [p.shape for p in objective.predictor.head.parameters() if p.ndim == 2] == [(1024, 256), (128, 1024)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduction": "max"}, "reduction is 'max': choose 'mean' or 'sum'"),
        ({"projector": ()}, "the head's widths"),
        ({"predictor_hidden_width": 0}, "the head's widths"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"action_width": 0}, "action_width is 0"),
    ],
)
def test_wrong_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        with_a_target_of_its_own(**changes)
