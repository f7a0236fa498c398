"""What runs set up for a GPU, tried on the CPU: other layouts and kernels, equal results."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.checkpoint import load_module_strictly, read_state, write_checkpoint
from ssl_equi.encoders import create_encoder
from ssl_equi.gpu import use_channels_last
from ssl_equi.objectives.byol import BYOL, BYOLConfig


def objective() -> BYOL:
    torch.manual_seed(0)
    return BYOL(create_encoder("resnet10t", 32), BYOLConfig(projector=(16, 8), predictor_hidden_width=8))


def views() -> Tensor:
    return torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_every_convolution_gets_weights_and_images_in_channels_last() -> None:
    changed, seen = objective(), []
    use_channels_last(changed)
    convolutions = [module for module in changed.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        assert is_channels_last(convolution.weight)
        convolution.register_forward_pre_hook(lambda module, inputs: seen.append(is_channels_last(inputs[0])))
    assert not is_channels_last(views().flatten(0, 1))
    changed(views())
    assert len(seen) == len(convolutions) and all(seen)  # online and target encoder, each once for both views


def test_losses_and_gradients_stay() -> None:
    plain = objective().double()
    changed = copy.deepcopy(plain)
    use_channels_last(changed)
    losses = [model(views().double()).loss for model in (plain, changed)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-12)
    for mine, theirs in zip(changed.encoder.parameters(), plain.encoder.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-8, atol=1e-12)


def test_checkpoints_have_the_default_layout_and_fill_either(tmp_path: Path) -> None:
    changed = objective()
    use_channels_last(changed)
    write_checkpoint(tmp_path / "step", {"objective": dict(changed.state_dict())})
    saved = read_state(tmp_path / "step", "objective")
    assert all(tensor.is_contiguous() for tensor in saved.values())
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    load_module_strictly(changed, saved, tmp_path / "step")
    assert all(torch.equal(tensor, objective().state_dict()[name]) for name, tensor in changed.state_dict().items())
    assert is_channels_last(next(m for m in changed.modules() if isinstance(m, nn.Conv2d)).weight)
