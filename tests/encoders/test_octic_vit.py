"""Octic vision transformers: what turning an image does to tokens and features, and what timm expects of a model."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.octic.invariants import INVARIANTS
from ssl_equi.encoders.octic.vit import OcticVisionTransformer
from ssl_equi.encoders.square.symmetries import ELEMENTS, act_on_image
from ssl_equi.objectives.sie import SIE, SIEConfig
from tests.encoders.symmetric_encoders import assert_refused, relative_error

IMAGE = 32
TINY: dict[str, Any] = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "octic": {},
    "octic, steerable": {"invariants": "none"},
    "octic, invariant and steerable": {"keep_octic": True},
    "octic, mean of patches": {"invariants": "none", "global_pool": "avg", "class_token": False},
    "octic, registers and scales": {"invariants": "none", "reg_tokens": 2, "init_values": 0.1, "num_heads": 4},
    "octic, no pooling": {"invariants": "none", "global_pool": ""},
    "octic, odd sizes": {"invariants": "none", "patch_size": 7, "img_size": 35},
    "octic, one patch": {"invariants": "none", "patch_size": 32},
    "hybrid": {"kind": "hybrid"},
    "hybrid, no octic block": {"kind": "hybrid", "octic_blocks": 0},
    "hybrid, all octic": {"kind": "hybrid", "octic_blocks": 2, "invariants": "none"},
    "invariant": {"kind": "invariant"},
    "invariant, normed": {"kind": "invariant", "norm_before_invariants": True},
    "invariant, no octic block": {"kind": "invariant", "octic_blocks": 0, "invariants": "third_order"},
    "invariant, all octic": {"kind": "invariant", "octic_blocks": 2, "global_pool": "avg"},
    "invariant, no pooling": {"kind": "invariant", "global_pool": "", "reg_tokens": 1},
}


def make(variant: str = "octic", seed: int = 0, **arguments: Any) -> OcticVisionTransformer:
    torch.manual_seed(seed)
    return OcticVisionTransformer(**(TINY | VARIANTS[variant] | arguments)).eval()


def random_images(encoder: OcticVisionTransformer, dtype: torch.dtype = torch.float64, n: int = 2) -> Tensor:
    return torch.randn(n, 3, *encoder.patch_embed.img_size, dtype=dtype)


@torch.no_grad()
def test_invariants_are_made_of_what_the_octic_blocks_give_without_a_norm() -> None:
    encoder, seen = make("invariant"), []
    encoder.trunk_invariants.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = random_images(encoder, torch.float32)
    encoder(images)
    assert torch.equal(seen[0], encoder.forward_octic(images))
    assert not any(name.startswith("trunk_norm") for name in encoder.state_dict())


@torch.no_grad()
def largest_error(encoder: OcticVisionTransformer, images: Tensor) -> float:
    """Over all elements, of the tokens where the octic blocks end, the last tokens, and the features."""
    errors = []
    outputs = [encoder.forward_octic(images), encoder.forward_features(images)]
    outputs.append(encoder.forward_head(outputs[1], pre_logits=True))
    for g in range(ELEMENTS):
        turned = act_on_image(g, images)
        found = encoder.forward_octic(turned)
        errors.append(relative_error(found, encoder.act_on_octic_tokens(g, outputs[0])))
        if encoder.kind != "hybrid":
            found = encoder.forward_features(turned)
            errors.append(relative_error(found, encoder.act_on_tokens(g, outputs[1])))
            found = encoder.forward_head(found, pre_logits=True)
            errors.append(relative_error(found, encoder.act_on_features(g, outputs[2])))
    return max(errors)


@pytest.mark.parametrize("variant", VARIANTS)
def test_turning_images_acts_on_tokens_and_features_as_predicted(variant: str) -> None:
    encoder = make(variant).double()
    assert largest_error(encoder, random_images(encoder)) < 1e-10
    for side in (8, 24, 40) if variant in ("octic, steerable", "hybrid", "invariant") else ():
        images = torch.randn(2, 3, side, side, dtype=torch.float64)
        assert encoder.forward_features(images).shape == (2, 1 + (side // 8) ** 2, 64)
        assert largest_error(encoder, images) < 1e-10


@pytest.mark.parametrize("invariants", INVARIANTS)
def test_it_does_so_with_all_invariants(invariants: str) -> None:
    encoder = make(invariants=invariants, num_classes=3).double()
    images = random_images(encoder)
    assert largest_error(encoder, images) < 1e-10
    logits = encoder(images)
    assert logits.shape == (2, 3)
    same = all(relative_error(encoder(act_on_image(g, images)), logits) < 1e-10 for g in range(ELEMENTS))
    assert same == (invariants != "none") == (not encoder.has_steerable_features)


def test_a_hybrid_breaks_the_symmetry_and_says_so() -> None:
    encoder = make("hybrid").double()
    images = random_images(encoder)
    for g in range(1, ELEMENTS):
        assert relative_error(encoder(act_on_image(g, images)), encoder(images)) > 0.1
    for act in (encoder.act_on_features, encoder.act_on_tokens):
        with pytest.raises(ValueError, match=r"a hybrid break the symmetry.*or octic_blocks=2"):
            act(1, encoder.forward_features(images))


def test_prefix_tokens_keep_their_place_and_patches_move() -> None:
    encoder = make("invariant, no pooling")
    tokens = torch.arange(2 + 16.0).view(1, 18, 1).expand(1, 18, 64)
    moved = encoder.act_on_tokens(1, tokens)[0, :, 0]
    assert moved.tolist() == [0, 1, 5, 9, 13, 17, 4, 8, 12, 16, 3, 7, 11, 15, 2, 6, 10, 14]


def test_the_classifier_and_the_pooling_can_be_reset() -> None:
    encoder = make().double()
    encoder.reset_classifier(4, "avg")
    images = random_images(encoder)
    tokens = encoder.forward_features(images)
    assert encoder(images).shape == (2, 4)
    mean = tokens[:, 1:].mean(dim=1)
    assert torch.equal(encoder.forward_head(tokens, pre_logits=True), encoder.head_invariants(mean))


@pytest.mark.parametrize("variant", ["octic, registers and scales", "hybrid", "invariant"])
def test_tokens_after_every_block(variant: str) -> None:
    """Beside what holds for the maps of every encoder with a symmetry."""
    encoder = make(variant)
    images = random_images(encoder, torch.float32)
    outputs: list[Tensor] = []
    hook = encoder.blocks[0].register_forward_hook(lambda block, inputs, output: outputs.append(output))
    final, maps = encoder.forward_intermediates(images)
    hook.remove()
    patches = outputs[0][:, encoder.num_prefix_tokens :]
    assert torch.equal(maps[0].flatten(2).transpose(1, 2), patches)
    (pair,) = encoder.forward_intermediates(
        images, 1, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    assert torch.allclose(torch.cat(pair[::-1], dim=1), final)
    with contextlib.nullcontext() if encoder.kind == "octic" else pytest.raises(ValueError, match="norm=True for bloc"):
        encoder.forward_intermediates(images, [0], norm=True)


def test_blocks_share_compiled_code_whatever_their_rate_of_stochastic_depth() -> None:
    torch.compiler.reset()
    encoder = make(depth=4, drop_path_rate=0.3).train()
    compiled: list[torch.fx.GraphModule] = []

    def keep_graph(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    for block in encoder.blocks:
        block.compile(backend=keep_graph, fullgraph=True)
    encoder(random_images(encoder, torch.float32))
    assert len(compiled) == 2  # without stochastic depth in the first block, with it in all others


def test_the_registered_names_take_their_arguments() -> None:
    encoder = create_encoder("octic_vit_tiny_patch16_224", 48)
    assert isinstance(encoder, OcticVisionTransformer) and encoder.patch_embed.grid_size == (3, 3)
    assert (encoder.kind, encoder.octic_blocks, encoder.num_features) == ("octic", 12, 192 * 6 // 8)
    hybrid = create_encoder("hybrid_octic_vit_tiny_patch16_224", 32, octic_blocks=3, invariants="linear")
    assert (hybrid.kind, hybrid.octic_blocks, hybrid.num_features) == ("hybrid", 3, 192)


def test_what_does_not_fit_is_named() -> None:
    """Beside what every encoder with a symmetry refuses."""
    encoder = make("octic, steerable")
    assert_refused(
        ("features have 48 columns: this .* have 64", lambda: encoder.act_on_features(1, torch.zeros(2, 48))),
        ("15 tokens beside 1 prefix tokens fill no", lambda: encoder.act_on_tokens(1, torch.zeros(2, 16, 64))),
    )
    with pytest.raises(EncoderError, match=r"can't be made for images of 50 x 50 pixels .*use 48"):
        create_encoder("octic_vit_tiny_patch16_224", 50)


PARTS = {
    "octic": {"inv": slice(0, 48)},
    "octic, steerable": {"inv": slice(0, 8), "equi": slice(8, 64)},
    "octic, invariant and steerable": {"inv": slice(0, 48), "equi": slice(48, 112)},
    "invariant": {"inv": slice(0, 64)},
    "hybrid": {},
}


def test_the_parts_are_the_stated_columns() -> None:
    """What they are called they are in the tests of every encoder; here the halves that SIE makes, too.

    These are 6 C invariants and A1 of 14 C, and all others.
    """
    for variant, expected in PARTS.items():
        encoder = make(variant).double()
        assert encoder.parts == {"all": slice(0, encoder.num_features)} | expected
    encoder = make("octic, invariant and steerable").double()
    images = random_images(encoder)
    features, halves = encoder(images), SIE(encoder, SIEConfig(projector=(8, 8, 8))).parts
    for g in range(1, ELEMENTS):
        turned = encoder(act_on_image(g, images))
        errors = {name: relative_error(turned[:, halves[name]], features[:, halves[name]]) for name in ("inv", "equi")}
        assert errors["inv"] < 1e-10 and errors["equi"] > 0.1
