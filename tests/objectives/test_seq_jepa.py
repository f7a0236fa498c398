"""seq-JEPA against its formula with all ablations; any number of views; who gets a gradient."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from tests.fakes import LinearEncoder, recorded_calls
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.comparison import moved as with_other_weights
from tests.references.sequences import seq_jepa
from tests.references.table import APART, JOINT, TWO_LAYERS, reference

SMALL = SeqJEPAConfig(
    action_width=6, layers=2, heads=2, feedforward_width=20, dropout=0.0, predictor_hidden_width=12
)  # fmt: skip
FEATURES = 10
ABLATIONS = ["both", "aggregator", "predictor", "none"]
TOLD = {"both": ("aggregator", "predictor"), "none": ()}


def random_batch(size: int = 9, views: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, views, 3, 2, 2, generator=generator, dtype=torch.float64)
    return images, torch.randn(size, views - 1, 4, generator=generator, dtype=torch.float64)


def moved(config: SeqJEPAConfig = SMALL) -> SeqJEPA:
    return with_other_weights(SeqJEPA(LinearEncoder(FEATURES), config))


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("conditioning", ABLATIONS)
@pytest.mark.parametrize("momentum_target", [True, False])
@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formula(conditioning: str, momentum_target: bool, views: int, separate: bool) -> None:
    config = replace(SMALL, conditioning=conditioning, momentum_target=momentum_target, separate_batch_norm=separate)
    expected = reference(
        seq_jepa,
        views=views,
        actions=(views - 1, 4),
        calls=APART if separate else JOINT,
        action_calls="all",
        layers=2,
        heads=2,
        predictor=TWO_LAYERS,
        told=TOLD.get(conditioning, (conditioning,)),
        momentum_target=momentum_target,
    )
    assert not disagreements(SeqJEPA(SmallEncoder(), config), expected)


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    objective = SeqJEPA(LinearEncoder(512), SeqJEPAConfig())
    assert sum(parameter.numel() for parameter in objective.aggregator.parameters()) == 14_772_480
    assert sum(parameter.numel() for parameter in objective.predictor.parameters()) == 1_313_280
    assert sum(parameter.numel() for parameter in objective.action_embedding.parameters()) == 4 * 128
    assert (objective.num_features, objective.aggregate_width) == (512, 640)
    assert [layer.dropout.p for layer in objective.aggregator.transformer.layers] == [0.1] * 3


# ---------------------------------------------------------------- gradients


def test_the_gradient_is_that_of_finite_differences() -> None:
    objective, (views, actions) = moved(), random_batch()

    def loss(images: Tensor) -> Tensor:
        return objective(torch.cat([images, views[:, -1:]], dim=1), actions).loss

    torch.autograd.gradcheck(loss, views[:, :-1].clone().requires_grad_(), atol=1e-6)


def test_the_targets_buffers_do_not_follow() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, FEATURES), nn.BatchNorm1d(FEATURES))
    encoder.num_features = FEATURES
    objective = SeqJEPA(encoder, SMALL).double()
    objective(*random_batch())
    observed, last = encoder[2].running_mean.clone(), objective.target_encoder[2].running_mean.clone()
    assert not torch.allclose(observed, last), "each has the statistics of the views that it saw"
    objective.update_target(0.75)
    assert torch.equal(objective.target_encoder[2].running_mean, last)


def test_without_momentum_target_there_is_nothing_to_move() -> None:
    objective = moved(replace(SMALL, momentum_target=False))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.update_target(0.5)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    images = random_batch()[0][:, 0]
    assert torch.equal(objective.target_features(images), objective.encoder(images))


# ---------------------------------------------------------------- calls of the encoder


def test_the_observed_views_are_encoded_in_one_call_and_the_target_views_in_another() -> None:
    objective = SeqJEPA(LinearEncoder(FEATURES), SMALL).double()
    calls, target_calls = recorded_calls(objective.encoder), recorded_calls(objective.target_encoder)
    objective(*random_batch(9, views=4))
    assert calls == [(27, 3, 2, 2)] and target_calls == [(9, 3, 2, 2)]


# ---------------------------------------------------------------- aggregates and predictions


@pytest.mark.parametrize("conditioning", ABLATIONS)
def test_aggregate_and_predict_are_what_the_loss_is_made_of(conditioning: str) -> None:
    objective, (views, actions) = moved(replace(SMALL, conditioning=conditioning)).eval(), random_batch()
    output = objective(views, actions)
    aggregates = objective.aggregate(output.features, actions[:, :-1])
    prediction = objective.predict(aggregates, actions[:, -1])
    target = objective.target_features(views[:, -1])
    assert torch.allclose(aggregates, output.aggregates)
    assert torch.allclose(1 - torch.cosine_similarity(prediction, target).mean(), output.loss)


@pytest.mark.parametrize("views", [1, 2, 8])
def test_any_number_of_views_can_be_aggregated(views: int) -> None:
    objective = moved().eval()
    features, actions = torch.randn(5, views, FEATURES).double(), torch.randn(5, views - 1, 4).double()
    aggregates = objective.aggregate(features, actions)
    assert aggregates.shape == (5, objective.aggregate_width) and aggregates.isfinite().all()


def test_without_actions_the_order_of_the_views_does_not_matter_and_with_them_it_does() -> None:
    features, actions = torch.randn(5, 4, FEATURES).double(), torch.randn(5, 3, 4).double()
    for conditioning, same in (("none", True), ("predictor", True), ("both", False), ("aggregator", False)):
        objective = moved(replace(SMALL, conditioning=conditioning)).eval()
        first, second = objective.aggregate(features, actions), objective.aggregate(features.flip(1), actions)
        assert torch.allclose(first, second) is same, conditioning


def test_the_last_action_reaches_the_predictor_only() -> None:
    objective, (views, actions) = moved().eval(), random_batch()
    changed = actions.clone()
    changed[:, -1] += 1
    first, second = objective(views, actions), objective(views, changed)
    assert torch.equal(first.aggregates, second.aggregates)
    assert first.loss != second.loss


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "a token has 16 numbers .* which 3 heads can't share"),
        ({"layers": 0}, "the aggregator has 0 layers"),
        ({"action_width": 0}, "action_width is 0"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"conditioning": "all"}, "conditioning is 'all': choose .both., .aggregator., .predictor. or .none."),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeqJEPA(LinearEncoder(FEATURES), replace(SMALL, **changes))


def test_aggregates_and_predictions_refuse_actions_that_do_not_fit() -> None:
    objective = moved()
    with pytest.raises(ValueError, match=r"pass \[5, 2, 4\]"):
        objective.aggregate(torch.zeros(5, 3, FEATURES).double(), torch.zeros(5, 3, 4).double())
    with pytest.raises(ValueError, match="actions are None"):
        objective.predict(torch.zeros(5, objective.aggregate_width).double(), None)
