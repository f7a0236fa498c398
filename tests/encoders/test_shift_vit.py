"""Shift-equivariant vision transformers: what every circular shift of an image does to tokens and features."""

import itertools
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.shifts.layers import AnchoredBlock, AnchoredPatches
from ssl_equi.encoders.shifts.polyphase import act_on_image, phase_energies
from ssl_equi.encoders.shifts.vit import ShiftEquivariantTwins, ShiftEquivariantVisionTransformer
from tests.encoders.symmetric_encoders import CASES, IMAGE, SHIFTS, VARIANTS, assert_refused, relative_error

VIT, TWINS = "shift_equivariant_vit_small_patch16_224", "shift_equivariant_twins_small"
THREE_STAGES = "shift twins, three stages"
LABELS = (VIT, "shift vit, large patches, layer scale", TWINS, THREE_STAGES)
Encoder = ShiftEquivariantVisionTransformer | ShiftEquivariantTwins


def make(label: str, **arguments: Any) -> Encoder:
    """With weights that let attention and perceptrons have their say; those for wide models are small."""
    encoder = (CASES | VARIANTS)[label].make(**arguments)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return encoder


def random_images(dtype: torch.dtype = torch.float64, n: int = 1, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@torch.no_grad()
def error_over_all_shifts(encoder: Encoder, image: Tensor) -> float:
    """Of invariance, over all circular shifts of one image."""
    shifts = itertools.product(range(image.shape[-2]), range(image.shape[-1]))
    features = encoder(torch.cat([act_on_image(shift, image) for shift in shifts]))
    return relative_error(features, features[:1].expand_as(features))


@torch.no_grad()
@pytest.mark.parametrize("label", LABELS)
def test_tokens_move_by_the_predicted_whole_tokens(label: str) -> None:
    encoder = make(label).double()
    images = random_images(n=3, height=IMAGE, width=IMAGE)
    tokens, origins = encoder.forward_tokens(images)
    assert torch.equal(tokens, encoder.forward_features(images))
    assert origins.min() >= 0 and origins.max() < encoder.token_stride
    for shift in SHIFTS:
        found, found_origins = encoder.forward_tokens(act_on_image(shift, images))
        expected, expected_origins = encoder.act_on_tokens(shift, tokens, origins)
        assert relative_error(found, expected) < 1e-10
        assert torch.equal(found_origins, expected_origins)
        features = encoder.forward_head(tokens)
        assert encoder.act_on_features(shift, features) is features
    moved = encoder.forward_features(act_on_image((16, 0), images))
    assert relative_error(moved, tokens) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("layer", ["patches", "windows", "keys", "positions"])
def test_every_grid_and_edge_counts(layer: str) -> None:
    """Without one anchor, or with zeros around the map, the symmetry is lost."""
    encoder = make(TWINS).double()
    assert error_over_all_shifts(encoder, random_images()) < 1e-10
    if layer == "patches":
        merging = encoder.patch_embeds[1]
        merging.forward = lambda maps: (merging.proj(maps), torch.zeros(maps.shape[0], 2, dtype=torch.int64))
    elif layer == "positions":
        encoder.pos_block[1].proj = nn.Conv2d(16, 16, 3, padding=1, groups=16).double()
    else:
        number = ["windows", "keys"].index(layer)
        encoder.blocks[number] = _Unanchored(encoder.blocks[number])
    assert error_over_all_shifts(encoder, random_images()) > 1e-3


class _Unanchored(nn.Module):
    def __init__(self, anchored: AnchoredBlock) -> None:
        super().__init__()
        self.block = anchored.block

    def forward(self, maps: Tensor) -> Tensor:
        tokens = self.block(maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:]))
        return tokens.transpose(1, 2).unflatten(2, tuple(maps.shape[2:]))


@torch.no_grad()
def test_no_anchor_chooses_by_rounding_errors() -> None:
    """Normalised tokens would have equal energies; here the largest exceeds the smallest by a clear margin."""
    encoder, spreads = make(THREE_STAGES), []

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        period = module.patch_size if isinstance(module, AnchoredPatches) else module.period
        energies = phase_energies(inputs[0], period).flatten(1)
        spreads.append(float((energies.amax(1) / energies.amin(1) - 1).min()))

    for module in encoder.modules():
        if isinstance(module, AnchoredPatches) or (isinstance(module, AnchoredBlock) and module.period > 1):
            module.register_forward_pre_hook(note)
    encoder(random_images(torch.float32, n=4))
    assert len(spreads) == 7 and min(spreads) > 0.005


def test_gradients_of_images_move_with_them() -> None:
    encoder, images = make(TWINS).double(), random_images().requires_grad_()
    (gradient,) = torch.autograd.grad(encoder(images).square().sum(), images)
    shifted = act_on_image((3, 6), images.detach()).requires_grad_()
    (found,) = torch.autograd.grad(encoder(shifted).square().sum(), shifted)
    assert relative_error(found, act_on_image((3, 6), gradient)) < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("label", [VIT, TWINS])
def test_images_of_other_sizes_are_taken(label: str) -> None:
    encoder = make(label).double()
    width_of_tokens, stride = encoder.num_features, encoder.token_stride
    for height, width in ((8, 8), (8, 24), (32, 16)):
        images = random_images(n=2, height=height, width=width)
        assert encoder.forward_features(images).shape == (2, width_of_tokens, height // stride, width // stride)
        for shift in [(0, 1), (3, 5), (9, 14)]:
            assert relative_error(encoder(act_on_image(shift, images)), encoder(images)) < 1e-10


def test_weights_of_an_ordinary_vision_transformer_fit() -> None:
    plain = VisionTransformer(img_size=IMAGE, patch_size=8, embed_dim=48, depth=2, num_heads=6, num_classes=3)
    missing, unexpected = make(VIT, num_classes=3).load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == {"pos_block.proj.weight", "pos_block.proj.bias"}
    assert set(unexpected) == {"cls_token", "pos_embed"}


def test_the_registered_names_have_the_stated_sizes() -> None:
    encoder = create_encoder("shift_equivariant_vit_tiny_patch16_224", 48, depth=1)
    assert isinstance(encoder, ShiftEquivariantVisionTransformer) and encoder.num_features == 192
    twins = create_encoder("shift_equivariant_twins_small", 64, depths=(1,) * 4, window_sizes=(4, 4, 4, 2))
    assert isinstance(twins, ShiftEquivariantTwins) and (twins.num_features, twins.side_step) == (512, 64)


def test_what_does_not_fit_is_named() -> None:
    encoder, tokens = make(VIT), torch.zeros(2, 48, 4, 4)
    assert_refused(
        (r"features have shape \(2, 48, 4, 4\): .* use act_on_tokens", lambda: encoder.act_on_features((1, 0), tokens)),
        (
            r"tokens have shape \(2, 48, 4, 4\) and origins \(1, 2\)",
            lambda: encoder.act_on_tokens((1, 0), tokens, torch.zeros(1, 2)),
        ),
    )
    with pytest.raises(EncoderError, match=r"can't be made for images of 64 x 64 pixels .*use 224 x 224"):
        create_encoder("shift_equivariant_twins_small", 64)
