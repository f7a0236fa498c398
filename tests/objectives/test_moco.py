"""MoCo's loss against an independent NumPy computation of equation 1, its queue and its moving target."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.moco import MoCo, MoCoConfig

SMALL = MoCoConfig(queue_size=12, projector=(24, 8))
SYMMETRIC = replace(SMALL, queue_size=24, symmetric=True)
BATCH = 4


class LinearEncoder(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.linear(images.flatten(1)))


def moco_apart_from_its_target(config: MoCoConfig, seed: int = 0) -> MoCo:
    """An objective whose target differs from the online branch, as it does once training has begun."""
    torch.manual_seed(seed)
    objective = MoCo(LinearEncoder(), config)
    with torch.no_grad():
        for parameter in (*objective.target_encoder.parameters(), *objective.target_projector.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    return objective


def batch(seed: int) -> Tensor:
    return torch.randn(BATCH, 2, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def numpy_info_nce(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """Equation 1, one query at a time."""
    losses = []
    for q, k in zip(queries, keys, strict=True):
        q, k = q / np.linalg.norm(q), k / np.linalg.norm(k)
        positive, negatives = np.exp(q @ k / temperature), np.exp(queue @ q / temperature)
        losses.append(-np.log(positive / (positive + negatives.sum())))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize("training", [True, False])
def test_loss_of_queries_from_view_1_and_keys_from_view_2(temperature: float, training: bool):
    objective = moco_apart_from_its_target(replace(SMALL, temperature=temperature)).train(training)
    queue_before = objective.queue.double().numpy().copy()
    views = batch(0)
    with torch.no_grad():
        queries = objective.projector(objective.encoder(views[:, 0])).double().numpy()
        keys = objective.target_projector(objective.target_encoder(views[:, 1])).double().numpy()
    output = objective(views)
    expected = numpy_info_nce(queries, keys, queue_before, temperature)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["contrastive"].item() == pytest.approx(expected, rel=1e-5)
    cosines = [q @ k / np.linalg.norm(q) / np.linalg.norm(k) for q, k in zip(queries, keys, strict=True)]
    assert output.terms["positive_similarity"].item() == pytest.approx(np.mean(cosines), rel=1e-5)


def test_symmetric_loss_is_the_mean_of_both_directions():
    objective = moco_apart_from_its_target(replace(SYMMETRIC, separate_batch_norm=True))
    queue_before = objective.queue.double().numpy().copy()
    views = batch(0)
    with torch.no_grad():
        queries = [objective.projector(objective.encoder(views[:, v])).double().numpy() for v in (0, 1)]
        keys = [objective.target_projector(objective.target_encoder(views[:, v])).double().numpy() for v in (0, 1)]
    output = objective(views)
    expected = [numpy_info_nce(queries[v], keys[1 - v], queue_before, 0.2) for v in (0, 1)]
    assert output.loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    np.testing.assert_allclose(output.embeddings.detach().numpy(), np.stack(queries, axis=1), rtol=1e-4, atol=1e-5)
    assert torch.equal(output.encoder_features.detach(), output.features)


def test_the_asymmetric_loss_takes_no_gradient_from_view_2():
    views = batch(0).requires_grad_()
    output = moco_apart_from_its_target(SMALL)(views)
    output.loss.backward()
    assert views.grad[:, 0].abs().sum() > 0
    assert views.grad[:, 1].abs().sum() == 0
    assert output.embeddings is None
    assert output.encoder_features is None
    assert output.features.shape == (BATCH, 1, 16)


@pytest.mark.parametrize(("config", "seen"), [(SMALL, 1), (SYMMETRIC, 2)])
def test_features_are_the_online_encoders_of_the_views_that_are_queries(config: MoCoConfig, seen: int):
    objective = moco_apart_from_its_target(config).eval()
    views = batch(0)
    expected = torch.stack([objective.encoder(views[:, v]) for v in range(seen)], dim=1)
    assert torch.allclose(objective(views).features, expected)


def test_running_statistics_are_those_of_the_queries_alone():
    objective, views = moco_apart_from_its_target(SMALL), batch(0)
    objective(views)
    encoded = objective.encoder.linear(views[:, 0].flatten(1)).detach()
    assert torch.allclose(objective.encoder.norm.running_mean, 0.1 * encoded.mean(0), atol=1e-6)
    assert objective.encoder.norm.num_batches_tracked == 1


def test_the_target_gets_no_gradient():
    objective = MoCo(LinearEncoder(), SMALL)
    objective(batch(0)).loss.backward()
    fixed = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    assert fixed == {name for name, _ in objective.named_parameters() if name.startswith("target_")}
    assert {name for name, parameter in objective.named_parameters() if parameter.grad is None} == fixed


@pytest.mark.parametrize("config", [SMALL, SYMMETRIC])
def test_the_queue_takes_keys_in_order_and_wraps_around(config: MoCoConfig):
    objective = moco_apart_from_its_target(config)
    outputs: list[Tensor] = []
    objective.target_projector.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    rows = 2 * BATCH if config.symmetric else BATCH  # symmetric: both views of object 1, both of object 2, ...
    expected = objective.queue.clone()
    for step, start in enumerate([0, rows, 2 * rows, 0, rows]):
        assert objective.queue_position == start
        objective(batch(step))
        expected[start : start + rows] = F.normalize(outputs[-1], dim=1)
        torch.testing.assert_close(objective.queue, expected)
    torch.testing.assert_close(objective.queue.norm(dim=1), torch.ones(config.queue_size))
    assert not objective.queue.requires_grad


def test_backward_sees_the_queue_as_it_was():
    """Gradients equal those of an evaluation on the same queue, which does not write into it."""
    gradients = []
    for writes in (True, False):
        objective = moco_apart_from_its_target(SMALL)
        for module in (objective.encoder, objective.target_encoder):
            module.eval()
        objective.training = writes
        objective(batch(0)).loss.backward()
        assert objective.queue_position == (BATCH if writes else 0)
        gradients.append(objective.encoder.linear.weight.grad)
    assert torch.equal(*gradients)


def test_the_queue_stays_in_eval_mode_and_without_gradient():
    objective = moco_apart_from_its_target(SMALL)
    before = objective.queue.clone()
    with torch.no_grad():
        objective(batch(0))
    objective.eval()
    objective(batch(1))
    objective(torch.randn(5, 2, 3, 2, 2))  # 5 does not divide the queue, which does not matter here
    assert torch.equal(objective.queue, before)
    assert objective.queue_position == 0


def test_training_continues_from_a_state_dict_as_if_never_stopped():
    def train(objective: MoCo, steps: range) -> list[float]:
        losses = []
        for step in steps:
            loss = objective(batch(step)).loss
            objective.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in objective.parameters():
                    if parameter.requires_grad:
                        parameter -= 0.1 * parameter.grad
            objective.update_target(0.9)
            losses.append(loss.item())
        return losses

    uninterrupted, resumed = moco_apart_from_its_target(SMALL), moco_apart_from_its_target(SMALL, seed=1)
    train(uninterrupted, range(4))
    resumed.load_state_dict(uninterrupted.state_dict())
    assert train(resumed, range(4, 8)) == train(uninterrupted, range(4, 8))
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_queue_starts_with_random_directions_of_the_seed():
    first, second = (moco_apart_from_its_target(SMALL) for _ in range(2))
    assert torch.equal(first.queue, second.queue)
    assert not torch.equal(first.queue, moco_apart_from_its_target(SMALL, seed=1).queue)
    torch.testing.assert_close(first.queue.norm(dim=1), torch.ones(12))


@pytest.mark.parametrize(("momentum", "weight", "bias"), [(1.0, 2.0, -1.0), (0.0, 6.0, 3.0), (0.75, 3.0, 0.0)])
def test_update_target_golden_values(momentum: float, weight: float, bias: float):
    objective = MoCo(LinearEncoder(), SMALL)
    with torch.no_grad():
        objective.target_encoder.linear.weight.fill_(2)
        objective.encoder.linear.weight.fill_(6)
        objective.target_projector.layers[0].bias.fill_(-1)
        objective.projector.layers[0].bias.fill_(3)
    objective.update_target(momentum)
    assert (objective.target_encoder.linear.weight == weight).all()
    assert (objective.target_projector.layers[0].bias == bias).all()
    assert (objective.encoder.linear.weight == 6).all()


@pytest.mark.parametrize("momentum", [1.5, -0.1])
def test_an_impossible_momentum_is_refused(momentum: float):
    with pytest.raises(ValueError, match="the momentum is"):
        MoCo(LinearEncoder(), SMALL).update_target(momentum)


def test_projector_of_the_paper_has_no_batch_norm():
    with torch.device("meta"):
        objective = MoCo(LinearEncoder())
    head = objective.projector.layers
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [(layer.out_features, layer.bias is not None) for layer in head[::2]] == [(2048, True), (128, True)]
    assert objective.queue.shape == (65536, 128)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SMALL, queue_size=13), "queue_size is 13 but each step adds 4 keys: .* multiple of 4, such as 12$"),
        (replace(SYMMETRIC, queue_size=4), "queue_size is 4 but each step adds 8 keys: .* multiple of 8, such as 8$"),
    ],
)
def test_a_queue_that_batches_do_not_fill_evenly_is_refused(config: MoCoConfig, message: str):
    with pytest.raises(ValueError, match=message):
        MoCo(LinearEncoder(), config)(batch(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"temperature": 0.0}, "the temperature is 0.0"), ({"queue_size": 0}, "queue_size is 0")],
)
def test_impossible_configurations_are_refused(changes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        MoCo(LinearEncoder(), replace(SMALL, **changes))
