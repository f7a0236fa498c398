"""Which parameters decay, at which rate they move, and that targets are left alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_equi.checkpoint import read_state, write_checkpoint
from ssl_equi.training.optimisation import load_optimizer_state, make_optimizer, parameter_groups


def module_with_a_target() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    module.add_module("target", nn.Linear(4, 3).requires_grad_(False))
    return module


def test_one_group_holds_all_that_is_trained() -> None:
    module = module_with_a_target()
    (group,) = parameter_groups(module.parameters(), weight_decay=0.1)
    assert group["params"] == [p for p in module.parameters() if p.requires_grad]
    assert len(group["params"]) == 5 and group["weight_decay"] == 0.1 and group["rate_factor"] == 1


def test_biases_and_normalisations_are_not_decayed_and_have_their_rate() -> None:
    weights, others = parameter_groups(module_with_a_target().parameters(), 0.1, False, bias_and_norm_rate_factor=0.024)
    assert [tuple(p.shape) for p in weights["params"]] == [(3, 4), (2, 3)]
    assert [tuple(p.shape) for p in others["params"]] == [(3,), (3,), (3,)]
    assert (weights["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert (weights["rate_factor"], others["rate_factor"]) == (1.0, 0.024)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 1), torch.randn(16, 4)
    optimizer = make_optimizer(name, parameter_groups(layer.parameters(), 1e-4, False), learning_rate=0.05)
    losses = []
    for _ in range(20):
        loss = (layer(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_lars_scales_weights_by_their_norms_and_biases_not_at_all() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
        layer.bias.zero_()
    optimizer = make_optimizer(
        "lars", parameter_groups(layer.parameters(), 1e-6, False), learning_rate=1.0, momentum=0.0
    )
    layer.weight.grad, layer.bias.grad = torch.tensor([[0.0, 10.0]]), torch.tensor([2.0])
    optimizer.step()
    # trust .001 * |w| 5 / |g| 10 gives a step of .005 along the gradient's direction; the bias steps by its gradient.
    assert layer.weight.tolist()[0] == pytest.approx([3.0, 4.0 - 0.005], abs=1e-5)
    assert layer.bias.tolist() == pytest.approx([-2.0])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="choose adam, adamw, sgd or lars"):
        make_optimizer("adagrad", [], 0.1)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_an_optimizer_of_channels_last_weights_goes_on_as_if_it_had_not_stopped(
    name: str, fused: bool, tmp_path: Path
) -> None:
    def train(layer: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            layer(images).square().sum().backward()
            optimizer.step()

    def optimizer_of(layer: nn.Module, fused: bool) -> torch.optim.Optimizer:
        optimizer = make_optimizer(name, parameter_groups(layer.parameters(), 1e-4), learning_rate=0.01)
        optimizer.param_groups[0]["fused"] = fused
        return optimizer

    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(layer, fused)
    train(layer, optimizer)
    write_checkpoint(tmp_path / "saved", {"layer": layer.state_dict(), "optimizer": optimizer.state_dict()})
    train(layer, optimizer)

    resumed = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    resumed.load_state_dict(read_state(tmp_path / "saved", "layer"))
    its_optimizer = optimizer_of(resumed, fused)
    load_optimizer_state(its_optimizer, read_state(tmp_path / "saved", "optimizer"))
    assert its_optimizer.param_groups[0]["fused"] == fused
    for parameter, moments in its_optimizer.state.items():
        assert all(value.stride() == parameter.stride() for value in moments.values() if value.ndim)
    train(resumed, its_optimizer)
    assert torch.equal(resumed.weight, layer.weight) and torch.equal(resumed.bias, layer.bias)
