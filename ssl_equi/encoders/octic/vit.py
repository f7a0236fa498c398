"""Vision transformers that commute with the quarter turns and mirrorings of their images.

Octic vision transformers (Nordström, Edstedt, Kahl and Bökman 2025, arXiv:2505.15441), in three kinds:

    octic        all blocks commute with the group. The features of a turned or mirrored image are the features of the
                 image times a known matrix (invariants="none"), or invariants made of them. A block has an eighth of
                 the weights of a standard one, and its linear layers take 5.33 times fewer multiplications.
    hybrid       the first blocks commute with the group, and standard ones follow, which break the symmetry.
    invariant    the first blocks commute with the group, and standard ones follow that see invariants only, so that the
                 features stay the same.

`ssl_equi.encoders.octic.vit` registers them with timm. Compile them block by block
(`for block in encoder.blocks: block.compile()`): blocks share compiled code, whole models take very long.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_equi.encoders.octic.features import act_on_components
from ssl_equi.encoders.octic.invariants import make_invariants
from ssl_equi.encoders.octic.layers import (
    OcticBlock,
    OcticPatchEmbed,
    OcticRMSNorm,
    nearest_side,
    positions,
    resized_table,
)
from ssl_equi.encoders.recomputing import recomputed
from ssl_equi.encoders.square.symmetries import ELEMENTS, act_on_image
from ssl_equi.encoders.timm_interface import (
    check_at_least,
    check_heads,
    check_output_format,
    chosen_layers,
    square_side,
)

Kind = Literal["octic", "hybrid", "invariant"]
Pooling = Literal["token", "avg", ""]


def check_sizes(patch_size: int, in_chans: int, depth: int, reg_tokens: int) -> None:
    """Raises ValueError if one is too small."""
    check_at_least("patch_size", patch_size, 1)
    check_at_least("in_chans", in_chans, 1)
    check_at_least("depth", depth, 1)
    check_at_least("reg_tokens", reg_tokens, 0)


def checked_pooling(global_pool: Pooling, class_token: bool) -> Pooling:
    """The pooling; raises ValueError if there is none of this name, or no class token for it."""
    if global_pool not in get_args(Pooling):
        raise ValueError(f"global_pool is {global_pool!r}: choose 'token', 'avg' or '' (none)")
    if global_pool == "token" and not class_token:
        raise ValueError("global_pool is 'token', but there is no class token: choose 'avg', or class_token=True")
    return global_pool


def number_of_octic_blocks(kind: Kind, octic_blocks: int | None, depth: int) -> int:
    """How many blocks commute with the group, by default all of kind octic and half of the others.

    Raises:
        ValueError: there is no such kind, or it can't have so many.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}: choose {', '.join(get_args(Kind))}")
    if octic_blocks is None:
        return depth if kind == "octic" else depth // 2
    if not 0 <= octic_blocks <= depth:
        nearest = min(max(octic_blocks, 0), depth)
        raise ValueError(f"octic_blocks is {octic_blocks}: the encoder has {depth} blocks, use {nearest}")
    if kind == "octic" and octic_blocks != depth:
        raise ValueError(
            f"octic_blocks is {octic_blocks}, but all {depth} blocks of kind 'octic' are octic: "
            f"use {depth}, or kind 'hybrid' or 'invariant'"
        )
    return octic_blocks


__all__ = ["OcticVisionTransformer"]


class OcticVisionTransformer(nn.Module):
    """Square images [B, in_chans, S, S] to features [B, num_features]; any side S that patches fill.

    Args:
        kind: see above.
        octic_blocks: how many blocks commute with the group, 0..depth; all of kind octic, half of the others if not
            given. A hybrid in which all do is of kind octic.
        invariants: name in `octic_invariants.INVARIANTS`: what the head of kind octic, or the standard blocks of kind
            invariant, see of the octic features. Hybrids don't use it.
        keep_octic: kind octic puts the octic features themselves behind their invariants, as part equi behind inv.
        norm_before_invariants: kind invariant has a norm between the octic blocks and their invariants. The published
            code has none.
        img_size: side of the images that the table of positions is made for; others resize it.
        patch_size: side of a patch.
        in_chans: colour channels.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: "token": the class token; "avg": the mean over patches; "": none.
        embed_dim: D, a multiple of 8.
        depth: number of blocks.
        num_heads: D / num_heads must be a multiple of 8 if any block commutes with the group.
        mlp_ratio: hidden width of a block's perceptron over D.
        qkv_bias: queries, keys and values have a bias.
        class_token: whether there is one.
        reg_tokens: number of register tokens.
        init_values: factors of layer scale at first; None leaves it out.
        drop_path_rate: of the last block; it rises from 0.

    Attributes:
        num_features, head_hidden_size: width of what the classifier sees, and of the output without one.
        embed_dim, num_prefix_tokens, patch_embed, blocks, num_classes, global_pool: as in timm.
        octic_blocks: how many of the blocks commute with the group.
        group: its name.

    Raises:
        ValueError: an argument is out of range or not the name of anything.
    """

    group: ClassVar[str] = "d4"

    def __init__(
        self,
        kind: Kind = "octic",
        octic_blocks: int | None = None,
        invariants: str = "power_spectrum",
        keep_octic: bool = False,
        norm_before_invariants: bool = False,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: Pooling = "token",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        class_token: bool = True,
        reg_tokens: int = 0,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(patch_size, in_chans, depth, reg_tokens)
        self.octic_blocks = number_of_octic_blocks(kind, octic_blocks, depth)
        self.kind: Kind = "octic" if kind == "hybrid" and self.octic_blocks == depth else kind
        _check_invariants(self.kind, invariants, keep_octic, norm_before_invariants)
        self.invariants, self.keep_octic = invariants, keep_octic
        self.norm_before_invariants = norm_before_invariants
        self.embed_dim, self.num_classes, self.has_class_token = embed_dim, num_classes, class_token
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.grad_checkpointing = False
        self.global_pool = checked_pooling(global_pool, class_token)

        side = square_side(img_size, lambda side: nearest_side(side, patch_size))
        self.patch_embed = OcticPatchEmbed(side, patch_size, in_chans, embed_dim)
        channels = embed_dim // 8
        self.pos_embed = _table(channels, *self.patch_embed.grid_size)
        # A constant that the group leaves as it is must be in A1; the other values of these tokens start at 0.
        self.cls_token = _table(1, 1, channels) if class_token else None
        self.reg_token = _table(1, reg_tokens, channels) if reg_tokens else None

        sizes: dict[str, Any] = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "init_values": init_values}
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        makers = [OcticBlock] * self.octic_blocks + [_standard_block] * (depth - self.octic_blocks)
        self.blocks = nn.ModuleList(
            make(embed_dim, num_heads, drop_path=rate, **sizes) for make, rate in zip(makers, rates)
        )
        self.feature_info = [
            {"module": f"blocks.{number}", "num_chs": embed_dim, "reduction": patch_size} for number in range(depth)
        ]

        self.num_features = self.head_hidden_size = self._make_norms_and_invariants()
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(_initialise_linear)

    def _make_norms_and_invariants(self) -> int:
        """What follows the octic blocks, and all blocks; returns the width of the features."""
        width = self.embed_dim
        self.head_invariants: nn.Module = nn.Identity()
        if self.kind == "octic":
            self.norm: nn.Module = OcticRMSNorm(width)
            self.head_invariants, num_invariants = make_invariants(self.invariants, width)
            return num_invariants + (width if self.keep_octic else 0)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if self.kind == "invariant":
            self.trunk_norm = OcticRMSNorm(width) if self.norm_before_invariants else nn.Identity()
            self.trunk_invariants, num_invariants = make_invariants(self.invariants, width)
            self.trunk_proj = nn.Linear(num_invariants, width)
        return width

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_chans, S, S] -> [B, num_classes], or [B, num_features] without a classifier.

        Raises:
            ValueError: the images are not square, or patches don't fill them.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens [B, T, D] after all blocks and the last norm: prefix tokens, then patches row by row."""
        tokens = self._run_octic_blocks(images)
        if self.kind == "octic":
            return self.norm(tokens)
        tokens = self._leave_octic_blocks(tokens)
        for block in self.blocks[self.octic_blocks :]:
            tokens = self._run(block, tokens)
        return self.norm(tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave to the output; with `pre_logits` to what the classifier would see."""
        if self.global_pool == "token":
            tokens = tokens[:, 0]
        elif self.global_pool == "avg":
            tokens = tokens[:, self.num_prefix_tokens :].mean(dim=1)
        features = self.head_invariants(tokens)
        if self.keep_octic:
            features = torch.cat([features, tokens], dim=-1)
        return features if pre_logits else self.head(features)

    def forward_octic(self, images: Tensor) -> Tensor:
        """Tokens [B, T, D] after the last block that commutes with the group, without a norm.

        `act_on_octic_tokens` is the group's action on them, in every kind of encoder.
        """
        return self._run_octic_blocks(images)

    def act_on_octic_tokens(self, g: int, tokens: Tensor) -> Tensor:
        """Turns the tokens [B, T, D] of `forward_octic` of images into those of `act_on_image(g, images)`.

        Raises:
            ValueError: g is not an element, or the patches fill no square.
        """
        return act_on_components(g, self._move_patches(g, tokens))

    def act_on_tokens(self, g: int, tokens: Tensor) -> Tensor:
        """Turns the tokens [B, T, D] of `forward_features` of images into those of `act_on_image(g, images)`.

        Patches move; prefix tokens stay in their place. The values of each token are mixed in kind octic, and stay in
        kind invariant.

        Raises:
            ValueError: the encoder is a hybrid; g is not an element; the patches fill no square.
        """
        self._refuse_hybrid()
        return self.act_on_octic_tokens(g, tokens) if self.kind == "octic" else self._move_patches(g, tokens)

    def act_on_features(self, g: int, features: Tensor) -> Tensor:
        """Turns the features [B, num_features] of images into those of `act_on_image(g, images)`.

        Features are the output without a classifier, `forward_head(tokens, pre_logits=True)`. Invariant ones stay;
        without pooling the patches move.

        Raises:
            ValueError: the encoder is a hybrid; g is not an element; the features have another width.
        """
        self._refuse_hybrid()
        if not 0 <= g < ELEMENTS:
            raise ValueError(f"{g} is not a symmetry of the square: use 0..{ELEMENTS - 1}")
        if features.shape[-1] != self.num_features:
            raise ValueError(f"features have {features.shape[-1]} columns: this encoder's have {self.num_features}")
        if self.global_pool == "":
            features = self._move_patches(g, features)
        if not self.has_steerable_features:
            return features
        kept, octic = features.split([self.num_features - self.embed_dim, self.embed_dim], dim=-1)
        return torch.cat([kept, act_on_components(g, octic)], dim=-1)

    @property
    def has_steerable_features(self) -> bool:
        """Whether features change with the orientation of images, by a known matrix."""
        return self.kind == "octic" and (self.invariants == "none" or self.keep_octic)

    @property
    def parts(self) -> dict[str, slice]:
        """Columns of the features by name: all; inv (do not change with the group) and equi, where there are such.

        Octic features alone are A1, inv, and others, equi. Hybrids and features without pooling have no part but all.
        """
        parts = {"all": slice(0, self.num_features)}
        if self.kind == "hybrid" or self.global_pool == "":
            return parts
        invariant = self.embed_dim // 8 if self.invariants == "none" else self.num_features
        if self.keep_octic:
            invariant -= self.embed_dim
        parts["inv"] = slice(0, invariant)
        if self.has_steerable_features:
            parts["equi"] = slice(invariant, self.num_features)
        return parts

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's interface to the tokens after chosen blocks.

        Args:
            x: images [B, in_chans, S, S].
            indices: numbers of blocks; an int for the last so many, None for all.
            return_prefix_tokens: gives pairs of patches and prefix tokens.
            norm: puts the last norm after each; it fits blocks of the last block's sort only.
            stop_early: leaves out the blocks after the last chosen one.
            output_fmt: "NCHW" for maps [B, D, h, w], "NLC" for tokens [B, h w, D].
            intermediates_only: leaves out the tokens after the last block.

        Returns:
            a list with one tensor (or pair) for each index, or (final tokens [B, T, D], list).

        Raises:
            ValueError: another output format, or the norm for octic blocks that standard ones follow.
        """
        check_output_format(output_fmt, ("NCHW", "NLC"))
        taken = chosen_layers("blocks", len(self.blocks), indices)
        if norm and self.kind != "octic" and min(taken) < self.octic_blocks:
            raise ValueError(
                f"norm=True for block {min(taken)} of a {self.kind} encoder: its last norm fits blocks from "
                f"{self.octic_blocks} on, choose those or norm=False"
            )
        stop = max(taken) + 1 if stop_early else len(self.blocks)
        kept: list[Tensor] = []
        tokens = self._embed(x)
        for number in range(stop):
            if number == self.octic_blocks:
                tokens = self._leave_octic_blocks(tokens)
            tokens = self._run(self.blocks[number], tokens)
            if number in taken:
                kept.append(self.norm(tokens) if norm else tokens)
        prefixes = [tokens[:, : self.num_prefix_tokens] for tokens in kept]
        kept = [tokens[:, self.num_prefix_tokens :] for tokens in kept]
        if output_fmt == "NCHW":
            side = x.shape[-1] // self.patch_embed.patch_size[0]
            kept = [tokens.transpose(1, 2).unflatten(2, (side, side)).contiguous() for tokens in kept]
        intermediates = list(zip(kept, prefixes)) if return_prefix_tokens else kept
        if intermediates_only:
            return intermediates
        if stop <= self.octic_blocks and self.kind != "octic":
            tokens = self._leave_octic_blocks(tokens)
        return self.norm(tokens), intermediates

    def reset_classifier(self, num_classes: int, global_pool: Pooling | None = None) -> None:
        """A new classifier of so many outputs (0: none), and another pooling if one is named."""
        if global_pool is not None:
            self.global_pool = checked_pooling(global_pool, self.has_class_token)
        self.num_classes = num_classes
        weight = self.patch_embed.weight
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head.apply(_initialise_linear).to(weight.device, weight.dtype)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or nn.Identity."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes each block's activations again in the backward pass rather than keep them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare, beside all vectors."""
        return {"pos_embed", "cls_token", "reg_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of parameters, for learning rates by layer."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^trunk", (99999,))],
        }

    def _embed(self, images: Tensor) -> Tensor:
        """Prefix tokens and patches with their positions."""
        patches = self.patch_embed(images)
        patches = patches + positions(self.pos_embed, images.shape[-1] // self.patch_embed.patch_size[0])
        given: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if not given:
            return patches
        in_a1 = torch.cat(given, dim=1).to(patches.dtype)
        prefix = F.pad(in_a1, (0, self.embed_dim - in_a1.shape[-1]))
        return torch.cat([prefix.expand(images.shape[0], -1, -1), patches], dim=1)

    def _run(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return recomputed(block, tokens)
        return block(tokens)

    def _run_octic_blocks(self, images: Tensor) -> Tensor:
        tokens = self._embed(images)
        for block in self.blocks[: self.octic_blocks]:
            tokens = self._run(block, tokens)
        return tokens

    def _leave_octic_blocks(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, D] as the standard blocks take them."""
        if self.kind == "invariant":
            return self.trunk_proj(self.trunk_invariants(self.trunk_norm(tokens)))
        return tokens

    def _move_patches(self, g: int, tokens: Tensor) -> Tensor:
        prefix, patches = tokens.tensor_split((self.num_prefix_tokens,), dim=1)
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1]:
            raise ValueError(
                f"{patches.shape[1]} tokens beside {self.num_prefix_tokens} prefix tokens fill no square grid: "
                "pass all tokens of square images"
            )
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        return torch.cat([prefix, act_on_image(g, maps).flatten(2).transpose(1, 2)], dim=1)

    def _refuse_hybrid(self) -> None:
        if self.kind == "hybrid":
            raise ValueError(
                "the standard blocks of a hybrid break the symmetry, so the group does not act on its features: "
                f"use forward_octic and act_on_octic_tokens, or octic_blocks={len(self.blocks)}"
            )


def _standard_block(embed_dim: int, num_heads: int, **sizes: Any) -> Block:
    """timm's; raises ValueError for heads that don't divide the width."""
    check_heads(embed_dim, num_heads)
    return Block(embed_dim, num_heads, **sizes)


def _check_invariants(kind: Kind, invariants: str, keep_octic: bool, norm_before_invariants: bool) -> None:
    """Raises ValueError for invariants that this kind of encoder can't make."""
    if kind == "invariant" and invariants == "none":
        raise ValueError("invariants is 'none' for kind 'invariant': choose 'power_spectrum', or kind 'hybrid'")
    if norm_before_invariants and kind != "invariant":
        raise ValueError(
            f"norm_before_invariants is True for kind {kind!r}: only kind 'invariant' makes invariants of its trunk"
        )
    if keep_octic and kind != "octic":
        raise ValueError(f"keep_octic is True for kind {kind!r}: only kind 'octic' ends with octic features")
    if keep_octic and invariants == "none":
        raise ValueError("keep_octic is True for invariants 'none', which are the octic features: leave it out")


def _table(*size: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*size), std=0.02))


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Those of the standard vision transformers."""
PREFIXES: dict[str, Kind] = {"octic": "octic", "hybrid_octic": "hybrid", "invariant_octic": "invariant"}

SHARED_CFG = {
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "num_classes": 0,
    "first_conv": "patch_embed",
    "classifier": "head",
    "license": "apache-2.0",
}

default_cfgs = generate_default_cfgs(
    {f"{prefix}_vit_{size}_patch16_224.untrained": SHARED_CFG for prefix in PREFIXES for size in SIZES}
)


def fit_positions(state: dict[str, Tensor], encoder: OcticVisionTransformer) -> dict[str, Tensor]:
    """The weights with their table of positions resized to the encoder's, for weights of another image size.

    On images of its new size, the encoder then computes what the old one computed on them.
    """
    if "pos_embed" not in state:
        return state
    return state | {"pos_embed": resized_table(state["pos_embed"], encoder.patch_embed.grid_size[0])}


def _make(name: str, pretrained: bool, arguments: dict[str, Any]) -> OcticVisionTransformer:
    prefix, _, rest = name.partition("_vit_")
    sizes = {"kind": PREFIXES[prefix], "patch_size": 16, **SIZES[rest.split("_")[0]]}
    return build_model_with_cfg(
        OcticVisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=fit_positions,
        feature_cfg={"feature_cls": "getter", "out_indices": 3},
        **(sizes | arguments),
    )


@register_model
def octic_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 0.7 M parameters, 0.4 G multiplications."""
    return _make("octic_vit_tiny_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 2.7 M parameters, 1.2 G multiplications."""
    return _make("octic_vit_small_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 10.7 M parameters, 4.0 G multiplications."""
    return _make("octic_vit_base_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 37.9 M parameters, 13.2 G multiplications."""
    return _make("octic_vit_large_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 78.9 M parameters, 26.6 G multiplications."""
    return _make("octic_vit_huge_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 3.0 M parameters, 0.8 G multiplications."""
    return _make("hybrid_octic_vit_tiny_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 12.0 M parameters, 2.9 G multiplications."""
    return _make("hybrid_octic_vit_small_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 47.9 M parameters, 10.8 G multiplications."""
    return _make("hybrid_octic_vit_base_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 170 M parameters, 37.4 G multiplications."""
    return _make("hybrid_octic_vit_large_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 354 M parameters, 77.0 G multiplications."""
    return _make("hybrid_octic_vit_huge_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 3.1 M parameters, 0.8 G multiplications."""
    return _make("invariant_octic_vit_tiny_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 12.1 M parameters, 2.9 G multiplications."""
    return _make("invariant_octic_vit_small_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 48.4 M parameters, 10.9 G multiplications."""
    return _make("invariant_octic_vit_base_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 171 M parameters, 37.5 G multiplications."""
    return _make("invariant_octic_vit_large_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 356 M parameters, 77.2 G multiplications."""
    return _make("invariant_octic_vit_huge_patch16_224", pretrained, kwargs)
