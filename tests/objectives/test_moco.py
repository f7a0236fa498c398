"""MoCo against its formula (gradients and queue included), and its queue over several steps."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.moco import MoCo, MoCoConfig
from tests.fakes import BatchNormEncoder
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.invariant import moco
from tests.references.table import APART, JOINT, TWO_LAYERS_NO_NORM, reference

SMALL = MoCoConfig(queue_size=12, projector=(24, 8))
SYMMETRIC = replace(SMALL, queue_size=24, symmetric=True)
BATCH = 4


def moco_apart_from_its_target(config: MoCoConfig, seed: int = 0) -> MoCo:
    """An objective whose target differs from the online branch, as it does once training has begun."""
    torch.manual_seed(seed)
    objective = MoCo(BatchNormEncoder(), config)
    with torch.no_grad():
        for parameter in (*objective.target_encoder.parameters(), *objective.target_projector.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    return objective


def batch(seed: int) -> Tensor:
    return torch.randn(BATCH, 2, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize(("symmetric", "separate"), [(False, False), (True, False), (True, True)])
def test_it_agrees_with_the_formula(temperature: float, symmetric: bool, separate: bool):
    config = MoCoConfig(temperature, 64, (24, 8), symmetric, separate)
    expected = reference(
        moco,
        projector=TWO_LAYERS_NO_NORM,
        temperature=temperature,
        calls=APART if separate else JOINT,
        symmetric=symmetric,
    )
    assert not disagreements(MoCo(SmallEncoder(), config), expected)


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
        gradients.append(objective.encoder.layers[1].weight.grad)
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


def test_projector_of_the_paper_has_no_batch_norm():
    with torch.device("meta"):
        objective = MoCo(BatchNormEncoder())
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
        MoCo(BatchNormEncoder(), config)(batch(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "the temperature is 0.0"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"projector": ()}, "the head's widths are"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        MoCo(BatchNormEncoder(), replace(SMALL, **changes))
