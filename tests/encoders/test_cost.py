"""The counted multiplications are those of formulas written by hand."""

import functools

import pytest
import torch
from torch import nn

from ssl_equi.encoders.cost import EncoderCost, cost_by_name, encoder_cost
from ssl_equi.errors import EncoderError

SIZES = {"small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
"""Width and number of blocks."""


cost_at_224 = functools.cache(functools.partial(cost_by_name, image_size=224))


def dense_vit(size: str) -> EncoderCost:
    """The standard vision transformer with patches of 16 x 16 pixels; timm has the huge one for other patches."""
    if size == "huge":
        return cost_at_224("vit_huge_patch14_224", patch_size=16)
    return cost_at_224(f"vit_{size}_patch16_224")


@pytest.mark.parametrize("size", SIZES)
def test_of_vision_transformers(size: str) -> None:
    width, depth = SIZES[size]
    tokens, patches = 197, 196
    block_parameters = (4 + 8) * width**2 + (3 + 1 + 4 + 1) * width + 4 * width
    embedding_parameters = (3 * 16**2 + 1 + 1 + tokens) * width
    assert dense_vit(size) == EncoderCost(
        parameters=depth * block_parameters + embedding_parameters + 2 * width,
        linear=depth * 12 * tokens * width**2,
        attention=depth * 2 * tokens**2 * width,
        convolution=patches * 3 * 16**2 * width,
    )


@pytest.mark.parametrize("size", SIZES)
def test_of_octic_vision_transformers(size: str) -> None:
    dense = dense_vit(size)
    octic = cost_at_224(f"octic_vit_{size}_patch16_224")
    hybrid = cost_at_224(f"hybrid_octic_vit_{size}_patch16_224")
    assert dense.linear * 12 == octic.linear * 64  # 5.33 times fewer
    assert dense.linear + octic.linear == 2 * hybrid.linear
    assert dense.attention == octic.attention == hybrid.attention
    assert dense.convolution == octic.convolution == hybrid.convolution
    assert octic.parameters / dense.parameters == pytest.approx(1 / 8, rel=0.005)
    if size == "huge":  # forty percent fewer
        assert hybrid.multiplications / dense.multiplications == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("name", "parameters", "multiplications"),
    [
        ("vit_small_patch16_224", 21.7, 4.60),
        ("octic_vit_small_patch16_224", 2.7, 1.20),
        ("hybrid_octic_vit_small_patch16_224", 12.0, 2.90),
        ("invariant_octic_vit_small_patch16_224", 12.1, 2.92),
        ("octic_vit_base_patch16_224", 10.7, 3.97),
        ("hybrid_octic_vit_base_patch16_224", 47.9, 10.77),
        ("octic_vit_large_patch16_224", 37.9, 13.2),
        ("hybrid_octic_vit_large_patch16_224", 170.2, 37.4),
        ("octic_vit_huge_patch16_224", 78.9, 26.6),
        ("hybrid_octic_vit_huge_patch16_224", 354.4, 77.0),
        ("invariant_octic_vit_huge_patch16_224", 355.6, 77.2),
        ("shift_equivariant_vit_tiny_patch16_224", 5.5, 1.25),
        ("shift_equivariant_vit_small_patch16_224", 21.6, 4.57),
        ("shift_equivariant_vit_base_patch16_224", 85.7, 17.5),
        ("shift_equivariant_twins_small", 23.5, 2.93),
        ("c4_resnet18", 3.09, 1.92),
        ("d4_resnet18", 1.55, 1.92),
        ("resnet18", 11.18, 1.81),
    ],
)
def test_the_fixed_names_have_the_documented_costs(name: str, parameters: float, multiplications: float) -> None:
    """Millions of parameters and billions of multiplications of one image of 224 pixels."""
    cost = cost_at_224(name)
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert cost.multiplications / 1e9 == pytest.approx(multiplications, rel=0.005)


def test_what_meta_tensors_cannot_count_is_counted_on_the_cpu() -> None:
    averaged = cost_by_name("group_averaged", 32, backbone="strided_cnn_tiny")
    assert averaged == cost_by_name("group_averaged", 32, device="cpu", backbone="strided_cnn_tiny")
    single = cost_by_name("strided_cnn_tiny", 32)
    assert averaged.parameters == single.parameters
    assert averaged.multiplications == 4 * single.multiplications
    canonicalized = cost_by_name("canonicalized", 32, device="cpu", backbone="strided_cnn_tiny")
    assert single.multiplications < canonicalized.multiplications < 2 * single.multiplications


def test_kinds_are_told_apart() -> None:
    class Small(nn.Module):
        """A convolution of 3 x 3 pixels to 8 channels, a linear layer, and the products of all pairs of pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 16, bias=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.linear(self.conv(images).flatten(2).transpose(1, 2))
            return tokens @ tokens.transpose(1, 2)

    encoder = Small().train()
    found = encoder_cost(encoder, 6)
    assert found == EncoderCost(
        parameters=3 * 8 * 9 + 8 + 8 * 16, linear=16 * 8 * 16, attention=16 * 16 * 16, convolution=16 * 8 * 3 * 9
    )
    assert found.multiplications == found.linear + found.attention + found.convolution
    assert encoder.training
    assert encoder_cost(nn.Linear(6, 5), 6) == EncoderCost(35, linear=3 * 6 * 6 * 5, attention=0, convolution=0)
    assert encoder_cost(nn.Flatten(), 6) == EncoderCost(0, 0, 0, 0)


def test_names_that_timm_does_not_know_are_refused() -> None:
    with pytest.raises(EncoderError, match="timm has no model named 'vit_smal_patch16_224': did you mean"):
        cost_by_name("vit_smal_patch16_224", 224)
