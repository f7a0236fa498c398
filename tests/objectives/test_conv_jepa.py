"""Conv-JEPA's loss against an independent NumPy computation, its momentum target, and the order of its views."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.conv_jepa import ConvJEPA, ConvJEPAConfig

SIZES = {
    "projector": (24, 8), "predictor_hidden_width": 20, "action_width": 6, "action_dim": 2, "last_batch_norm": "none",
}  # fmt: skip
BATCH = 10


class LinearEncoder(nn.Module):
    num_features = 10

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 10)
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.linear(images.flatten(1))


def random_batch(observed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(observed)
    views = torch.randn(BATCH, observed + 1, 3, 2, 2, generator=generator, dtype=torch.float64)
    return views.to(dtype), torch.randn(BATCH, observed, 2, generator=generator, dtype=torch.float64).to(dtype)


def with_a_target_of_its_own(**changes: object) -> ConvJEPA:
    """The target has moved away from the online branch."""
    torch.manual_seed(0)
    objective = ConvJEPA(LinearEncoder(), ConvJEPAConfig(**SIZES | changes)).double()
    with torch.no_grad():
        for target in (objective.target_encoder, objective.target_projector):
            for parameter in target.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return objective


def numpy_head(head: nn.Module, x: np.ndarray) -> np.ndarray:
    """Linear-BN-ReLU-Linear, in training mode."""
    weight, gamma, beta, last_weight, last_bias = [p.detach().numpy() for p in head.parameters()]
    x = x @ weight.T
    x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * gamma + beta, 0)
    return x @ last_weight.T + last_bias


def numpy_encoder(encoder: nn.Module, images: Tensor) -> np.ndarray:
    return images.flatten(1).numpy() @ encoder.linear.weight.detach().numpy().T + encoder.linear.bias.detach().numpy()


def numpy_embeddings_and_predictions(
    objective: ConvJEPA, views: Tensor, actions: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Of the given views [B, M, ...], both [B, M, E]: embedded in one batch of B * M rows, predicted view by view."""
    embeddings = numpy_head(objective.projector, numpy_encoder(objective.encoder, views.flatten(0, 1)))
    embeddings = embeddings.reshape(*actions.shape[:2], -1)
    weight, predictions = objective.predictor.action_embedding.projection.weight.detach().numpy(), []
    for view in range(actions.shape[1]):
        embedded = actions[:, view].numpy() @ weight.T
        embedded = (embedded - embedded.mean(0)) / np.sqrt(embedded.var(0) + 1e-5)
        inputs = np.concatenate([embeddings[:, view], embedded], axis=1)
        predictions.append(numpy_head(objective.predictor.head, inputs))
    return embeddings, np.stack(predictions, axis=1)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("observed", [1, 2, 4])
def test_loss_equals_numpy(observed: int, reduction: str, separate: bool):
    objective = with_a_target_of_its_own(reduction=reduction, separate_batch_norm=separate)
    views, actions = random_batch(observed)
    groups = [slice(view, view + 1) for view in range(observed)] if separate else [slice(0, observed)]
    results = [numpy_embeddings_and_predictions(objective, views[:, group], actions[:, group]) for group in groups]
    embeddings, predictions = (np.concatenate(arrays, axis=1) for arrays in zip(*results, strict=True))
    target = numpy_head(objective.target_projector, numpy_encoder(objective.target_encoder, views[:, -1]))
    cosines = np.stack(
        [
            (predictions[:, i] * target).sum(1)
            / (np.linalg.norm(predictions[:, i], axis=1) * np.linalg.norm(target, axis=1))
            for i in range(observed)
        ]
    )
    expected = np.mean(1 - cosines) * (observed if reduction == "sum" else 1)

    output = objective(views, actions)
    assert output.loss.item() == pytest.approx(expected, rel=1e-10)
    assert output.terms["cosine"].item() == pytest.approx(cosines.mean(), rel=1e-5)
    directions = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    assert output.terms["std_all"].item() == pytest.approx(directions.std(0).mean() * 8**0.5, rel=1e-5)
    assert output.terms.keys() == {"cosine", "std_all"}
    assert all(term.dtype == torch.float64 and not term.requires_grad for term in output.terms.values())


def test_float32_equals_float64():
    objective = with_a_target_of_its_own()
    expected = objective(*random_batch(3)).loss.item()
    assert objective.float()(*random_batch(3, torch.float32)).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("separate", "calls"), [(False, [4 * BATCH]), (True, [BATCH] * 4)])
def test_observed_views_are_encoded_in_one_call_unless_separate_and_targets_in_one(separate: bool, calls: list[int]):
    objective = with_a_target_of_its_own(separate_batch_norm=separate)
    objective.encoder.calls.clear()
    objective(*random_batch(4))
    assert objective.encoder.calls == calls
    assert objective.target_encoder.calls == [BATCH]


def test_the_online_branch_alone_gets_gradients():
    objective, (views, actions) = with_a_target_of_its_own(), random_batch(3)
    views.requires_grad_()
    objective(views, actions).loss.backward()
    with_gradient = {name.split(".")[0] for name, p in objective.named_parameters() if p.grad is not None}
    assert with_gradient == {"encoder", "projector", "predictor"}
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad != name.startswith("target_")
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), name
    assert objective.encoder.linear.weight.grad.abs().sum() > 0
    assert objective.predictor.action_embedding.projection.weight.grad.abs().sum() > 0
    assert (views.grad[:, :-1].flatten(2).abs().sum(dim=2) > 0).all()
    assert views.grad[:, -1].abs().sum() == 0


def test_features_are_the_online_encoders_of_the_observed_views():
    objective, (views, actions) = with_a_target_of_its_own(), random_batch(3)
    output = objective(views, actions)
    expected = numpy_encoder(objective.encoder, views[:, :-1].flatten(0, 1)).reshape(BATCH, 3, 10)
    assert np.allclose(output.features.numpy(), expected, rtol=1e-12)
    assert not output.features.requires_grad and output.encoder_features.requires_grad
    assert objective.parts == {"all": slice(0, 10)}


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


def test_the_target_starts_equal_and_follows():
    objective = ConvJEPA(LinearEncoder(), ConvJEPAConfig(**SIZES))
    pairs = [
        (objective.target_encoder.linear.weight, objective.encoder.linear.weight),
        (next(objective.target_projector.parameters()), next(objective.projector.parameters())),
    ]
    for target, online in pairs:
        assert torch.equal(target, online) and target is not online
        with torch.no_grad():
            online.add_(1)
    before = [target.clone() for target, _ in pairs]
    objective.update_target(0.75)
    for (target, online), old in zip(pairs, before, strict=True):
        assert torch.allclose(target, 0.75 * old + 0.25 * online)
    with pytest.raises(ValueError, match=r"the momentum is 1\.5"):
        objective.update_target(1.5)


def test_the_state_holds_the_target():
    first, second = with_a_target_of_its_own(), ConvJEPA(LinearEncoder(), ConvJEPAConfig(**SIZES)).double()
    second.load_state_dict(first.state_dict(), strict=True)
    batch = random_batch(3)
    assert torch.equal(first(*batch).loss, second(*batch).loss)


def test_loss_falls():
    objective, batch = with_a_target_of_its_own(), random_batch(3)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(20):
        loss = objective(*batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.update_target(0.99)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_half_precision_gives_a_float32_loss():
    objective = with_a_target_of_its_own().float()
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(*random_batch(3, torch.float32))
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and torch.isfinite(output.loss)
    assert output.features.dtype == torch.float32


def test_defaults_are_those_of_the_released_code():
    config = ConvJEPAConfig()
    assert (config.projector, config.predictor_hidden_width, config.action_width) == ((2048, 128), 1024, 128)
    assert (config.reduction, config.action_dim, config.last_batch_norm) == ("mean", 2, "not_affine")
    with torch.device("meta"):
        encoder = LinearEncoder()
        encoder.num_features = 512
        objective = ConvJEPA(encoder, config)
    assert [p.shape for p in objective.projector.parameters() if p.ndim == 2] == [(2048, 512), (128, 2048)]
    assert [p.shape for p in objective.predictor.head.parameters() if p.ndim == 2] == [(1024, 256), (128, 1024)]


VIEWS, ACTIONS = random_batch(3)


@pytest.mark.parametrize(
    ("views", "actions", "message"),
    [
        (VIEWS[:, :1], ACTIONS[:, :0], "2 or more views"),
        (VIEWS[:, 0], ACTIONS, r"views have shape \(10, 3, 2, 2\)"),
        (VIEWS.to(torch.uint8), ACTIONS, "dtype torch.uint8: convert them to float"),
        (VIEWS[:1], ACTIONS[:1], "global batch of at least 2"),
        (VIEWS, None, r"actions are None: pass \[10, 3, 2\]"),
        (VIEWS, ACTIONS[:, :2], r"actions have shape \(10, 2, 2\): pass \[10, 3, 2\]"),
        (VIEWS, ACTIONS[:, 0], r"actions have shape \(10, 2\)"),
        (VIEWS, ACTIONS[:5], r"actions have shape \(5, 3, 2\)"),
        (VIEWS, ACTIONS.repeat(1, 1, 2), "actions have 4 columns but action_dim is 2"),
        (VIEWS, ACTIONS.log(), r"the action in row \d is"),
    ],
)
def test_wrong_inputs_are_refused(views: Tensor, actions: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        with_a_target_of_its_own()(views, actions)


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


def test_an_encoder_without_width_is_refused():
    with pytest.raises(ValueError, match="encoder Linear has num_features=None"):
        ConvJEPA(nn.Linear(3, 4))
