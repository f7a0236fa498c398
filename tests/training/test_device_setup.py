"""What runs set up for their device: other layouts and kernels, equal results."""

import copy
import platform
import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.checkpoint import load_module_strictly, read_state, write_checkpoint
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.training.devices import keep_freed_memory, prepare_for_device, use_channels_last
from ssl_equi.training.optimisation import make_optimizer, parameter_groups


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
    expected = objective().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in changed.state_dict().items())
    assert is_channels_last(next(m for m in changed.modules() if isinstance(m, nn.Conv2d)).weight)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_is_used_again() -> None:
    keep_freed_memory()
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2**21) for _ in range(8)]  # 64 MiB in 16,384 pages
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del tensors
    assert faults[-1] < 1000


@pytest.mark.parametrize("name", ["strided_cnn_tiny", "resnet10t"])
def test_a_prepared_step_learns_what_a_plain_one_does(name: str) -> None:
    def train(prepared: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        objective = BYOL(create_encoder(name, 32), BYOLConfig(projector=(16, 8), predictor_hidden_width=8)).double()
        if prepared:
            prepare_for_device(objective, torch.device("cpu"))
            optimizer = make_optimizer("adam", parameter_groups(objective.parameters(), 1e-4), learning_rate=1e-3)
        else:
            optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3, weight_decay=1e-4)
        for _ in range(3):
            objective(views().double()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return objective.state_dict()

    plain, prepared = train(prepared=False), train(prepared=True)
    for key, value in plain.items():
        assert torch.allclose(prepared[key].double(), value.double(), rtol=1e-6, atol=1e-9), key
