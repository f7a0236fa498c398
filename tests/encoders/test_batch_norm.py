"""Running statistics stay equal to the bit while batch norms normalise as in training."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ssl_equi.encoders.batch_norm import running_statistics_kept
from ssl_equi.objectives.parts.batch import SynchronisedBatchNorm

LAYERS = {
    "batch_norm_1d": lambda: nn.BatchNorm1d(4),
    "batch_norm_2d": lambda: nn.BatchNorm2d(4, momentum=0.3),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "not_affine": lambda: nn.BatchNorm2d(4, affine=False),
    "timm": lambda: BatchNormAct2d(4, act_layer=nn.SiLU),
    "synchronised": lambda: SynchronisedBatchNorm(4),
    "synchronised_cumulative": lambda: SynchronisedBatchNorm(4, 1e-5, None),
    "torch_synchronised": lambda: nn.SyncBatchNorm(4),
    "without_statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


def inputs_of(layer: nn.Module, seed: int) -> Tensor:
    shape = (6, 4) if isinstance(layer, nn.BatchNorm1d) else (6, 4, 3, 3)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 3


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, expected: dict[str, Tensor]) -> None:
    assert module.state_dict().keys() == expected.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_are_kept_and_outputs_are_those_of_training(name: str):
    layer = LAYERS[name]()
    layer(inputs_of(layer, 0))
    before, addresses = copied_state(layer), [buffer.data_ptr() for buffer in layer.buffers()]
    x = inputs_of(layer, 1).requires_grad_()
    with running_statistics_kept(layer):
        kept = layer(x)
    assert_same_state(layer, before)
    assert [buffer.data_ptr() for buffer in layer.buffers()] == addresses  # an optimizer or DDP may hold them
    weights = torch.randn(x.shape)
    gradient = torch.autograd.grad((kept * weights).sum(), x)[0]
    trained = layer(x)
    assert torch.equal(kept, trained)
    assert torch.equal(gradient, torch.autograd.grad((trained * weights).sum(), x)[0])
    if name != "without_statistics":
        assert not torch.equal(layer.running_mean, before["running_mean"])
        assert layer.num_batches_tracked == 2


def test_backward_after_the_context_and_after_another_training_pass():
    layer = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    with running_statistics_kept(layer):
        kept = layer(inputs_of(layer, 0))
    trained = layer(inputs_of(layer, 1))
    (kept.square().sum() + trained.square().sum()).backward()
    assert torch.isfinite(layer[0].weight.grad).all()


def test_layers_in_eval_mode_use_their_statistics():
    layer = nn.BatchNorm2d(4)
    layer(inputs_of(layer, 0))
    layer.eval()
    before = copied_state(layer)
    expected = layer(inputs_of(layer, 1))
    with running_statistics_kept(layer):
        assert torch.equal(layer(inputs_of(layer, 1)), expected)
    assert_same_state(layer, before)


def test_everything_is_restored_after_an_exception():
    module = nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    module(inputs_of(module, 0))
    before = copied_state(module)
    with pytest.raises(ZeroDivisionError), running_statistics_kept(module):
        module(inputs_of(module, 1))
        raise ZeroDivisionError
    assert_same_state(module, before)
    assert [layer.track_running_stats for layer in module] == [True, True, False]
    module(inputs_of(module, 1))
    assert module[0].num_batches_tracked == 2


def test_contexts_may_be_nested_and_layers_shared():
    layer = nn.BatchNorm2d(4)
    module = nn.ModuleList([layer, nn.Sequential(layer)])
    before = copied_state(module)
    with running_statistics_kept(module):
        with running_statistics_kept(layer):
            layer(inputs_of(layer, 0))
        layer(inputs_of(layer, 1))
    assert_same_state(module, before)
    assert layer.track_running_stats
