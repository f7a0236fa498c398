"""SIE's ResNets against an independent formula, written from their description."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.encoders import EncoderError, create_encoder


def normalised(maps: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (maps - mean) / (variance + 1e-5).sqrt() * weight + bias


def zeros_behind(maps: Tensor, before: int, behind: int, value: float = 0.0) -> Tensor:
    """Rows and columns of `value` around the maps, by writing them into a larger tensor."""
    count, channels, height, width = maps.shape
    padded = maps.new_full((count, channels, height + before + behind, width + before + behind), value)
    padded[:, :, before : before + height, before : before + width] = maps
    return padded


def formula(images: Tensor, state: dict[str, Tensor], depths: tuple[int, ...]) -> Tensor:
    """Features [N, D] of images [N, 3, H, W], H and W multiples of 32."""
    maps = F.conv2d(zeros_behind(images, 2, 3), state["conv1.weight"], stride=2)
    maps = normalised(maps, state, "bn1").clamp(min=0)
    maps = zeros_behind(maps, 0, 1, -1e4).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            name, step = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            bottleneck = f"{name}.conv3.weight" in state
            inner = F.conv2d(maps if bottleneck else zeros_behind(maps, 1, 1), state[f"{name}.conv1.weight"])
            inner = normalised(inner, state, f"{name}.bn1").clamp(min=0)
            padded = zeros_behind(inner, *((0, 1) if step == 2 else (1, 1)))
            inner = normalised(F.conv2d(padded, state[f"{name}.conv2.weight"], stride=step), state, f"{name}.bn2")
            if bottleneck:
                inner = F.conv2d(inner.clamp(min=0), state[f"{name}.conv3.weight"])
                inner = normalised(inner, state, f"{name}.bn3")
            if block == 0:
                picked = torch.einsum(
                    "nchw,dc->ndhw", maps[..., ::step, ::step], state[f"{name}.downsample.0.weight"][..., 0, 0]
                )
                maps = normalised(picked, state, f"{name}.downsample.1")
            maps = (inner + maps).clamp(min=0)
    return maps.mean((2, 3))


@pytest.mark.parametrize(
    ("name", "depths"),
    [("sie_resnet18", (2, 2, 2, 2)), ("sie_resnet34", (3, 4, 6, 3)), ("sie_resnet50", (3, 4, 6, 3))],
)
@torch.no_grad()
def test_features_are_those_of_the_formula(name: str, depths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name, 64).double().eval()
    for key, value in encoder.state_dict().items():
        if "running" in key or "bn" in key or "downsample.1" in key:
            value.copy_(torch.rand(value.shape) + 0.2)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected = formula(images, encoder.state_dict(), depths)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-9, atol=0)
    moved = formula(images.roll(1, dims=3), encoder.state_dict(), depths)
    assert (moved - expected).abs().max() > 1e-3 * expected.abs().max()


def test_maps_and_start_are_the_published_ones() -> None:
    encoder = create_encoder("sie_resnet18", 256)
    with torch.no_grad():
        maps, intermediates = encoder.forward_intermediates(torch.randn(1, 3, 256, 256))
    assert [tuple(map_.shape[1:]) for map_ in intermediates] == [
        (64, 128, 128), (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8),
    ]  # fmt: skip
    assert maps.shape == (1, 512, 8, 8)
    blocks = [block for stage in range(1, 5) for block in getattr(encoder, f"layer{stage}")]
    assert all(block.bn2.weight.count_nonzero() == 0 for block in blocks)
    assert all(block.conv1.stride == (1, 1) for block in blocks)


def test_sides_that_cannot_be_halved_five_times_are_refused() -> None:
    with pytest.raises(EncoderError, match=r"100 x 100 pixels.*multiples of 32, such as 96"):
        create_encoder("sie_resnet18", 100)
    encoder = create_encoder("sie_resnet18", 64)
    with pytest.raises(ValueError, match="64 x 80 pixels"):
        encoder.forward_intermediates(torch.zeros(1, 3, 64, 80))
