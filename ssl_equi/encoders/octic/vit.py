"""Vision transformers that commute with the quarter turns and mirrorings of their images.

Octic vision transformers (Nordström, Edstedt, Kahl and Bökman 2025, arXiv:2505.15441), in three kinds:

    octic        all blocks commute with the group. The features of a turned or mirrored image are the features of the
                 image times a known matrix (invariants="none"), or invariants made of them. A block has an eighth of
                 the weights of a standard one, and its linear layers take 5.33 times fewer multiplications.
    hybrid       the first blocks commute with the group, and standard ones follow, which break the symmetry.
    invariant    the first blocks commute with the group, and standard ones follow that see invariants only, so that the
                 features stay the same.

timm makes them as octic_vit_SIZE_patch16_224, hybrid_octic_vit_SIZE_patch16_224 and
invariant_octic_vit_SIZE_patch16_224, in which the first half of the blocks commutes with the group for the last two.
Millions of parameters and billions of multiplications, of one image of 224 pixels and without a classifier:

    size    standard       octic        hybrid       invariant
    tiny    5.5   1.3      0.7   0.4    3.0   0.8    3.1   0.8
    small   21.7  4.6      2.7   1.2    12.0  2.9    12.1  2.9
    base    85.8  17.6     10.7  4.0    47.9  10.8   48.4  10.9
    large   303   61.6     37.9  13.2   170   37.4   171   37.5
    huge    631   -        78.9  26.6   354   77.0   356   77.2

Compile them block by block (`for block in encoder.blocks: block.compile()`): blocks share compiled code, whole models
take very long.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_equi.encoders.checks import check_at_least, check_heads, square_side
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
from ssl_equi.encoders.square.convolutions import check_element, square_group
from ssl_equi.encoders.square.symmetries import act_on_image
from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.encoders.timm_interface import (
    MATCH_PREVIOUS,
    LayeredEncoder,
    as_maps,
    as_tokens,
    initialise_linear,
    register_encoders,
    untrained_cfg,
)

__all__ = ["OcticVisionTransformer"]

Kind = Literal["octic", "hybrid", "invariant"]
Pooling = Literal["token", "avg", ""]


class OcticVisionTransformer(LayeredEncoder, Symmetric):
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
        global_pool: "token": the class token; "avg": the mean over patches; "": none.
        embed_dim: D, a multiple of 8.
        num_heads: D / num_heads must be a multiple of 8 if any block commutes with the group.

    The other arguments, and the other attributes, are those of timm's vision transformer.

    Attributes:
        has_steerable_features: whether features change with the orientation of images, by a known matrix.
    """

    poolings = get_args(Pooling)
    spared_from_weight_decay = ("pos_embed", "cls_token", "reg_token")
    symmetries = square_group("d4")
    initialise = staticmethod(initialise_linear)

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
        super().__init__(num_classes)
        check_at_least(1, patch_size=patch_size, in_chans=in_chans, depth=depth)
        check_at_least(0, reg_tokens=reg_tokens)
        self.octic_blocks = _number_of_octic_blocks(kind, octic_blocks, depth)
        self.kind: Kind = "octic" if kind == "hybrid" and self.octic_blocks == depth else kind
        _check_invariants(self.kind, invariants, keep_octic, norm_before_invariants)
        self.invariants, self.keep_octic = invariants, keep_octic
        self.norm_before_invariants = norm_before_invariants
        self.has_steerable_features = self.kind == "octic" and (invariants == "none" or keep_octic)
        self.embed_dim, self.has_class_token = embed_dim, class_token
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.global_pool = self.checked_pooling(global_pool)

        side = square_side(img_size, lambda side: nearest_side(side, patch_size))
        self.patch_embed = OcticPatchEmbed(side, patch_size, in_chans, embed_dim)
        channels = embed_dim // 8
        self.pos_embed = _table(channels, *self.patch_embed.grid_size)
        # A constant that the group leaves as it is must be in A1; the other values of these tokens start at 0.
        self.cls_token = _table(1, 1, channels) if class_token else None
        self.reg_token = _table(1, reg_tokens, channels) if reg_tokens else None

        sizes: dict[str, Any] = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "init_values": init_values}
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        # A head of an octic block takes whole channels; timm's block would assert that heads divide the width.
        check_heads(embed_dim, num_heads, step=8 if self.octic_blocks else 1)
        self.blocks = nn.ModuleList(
            (OcticBlock if number < self.octic_blocks else Block)(embed_dim, num_heads, drop_path=rate, **sizes)
            for number, rate in enumerate(rates)
        )
        self.feature_info = [
            {"module": f"blocks.{number}", "num_chs": embed_dim, "reduction": patch_size} for number in range(depth)
        ]

        self.num_features = self._make_norms_and_invariants()
        self.head = self.new_classifier()
        self.apply(initialise_linear)

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

    def run_layers(
        self, images: Tensor, count: int | None = None, kept: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        tokens, kept_tokens = self._embed(images), {}
        blocks = self.blocks[:count]
        for number, block in enumerate(blocks):
            if number == self.octic_blocks:
                tokens = self._leave_octic_blocks(tokens)
            tokens = self.run_block(block, tokens)
            if number in kept:
                kept_tokens[number] = tokens
        if len(blocks) <= self.octic_blocks:
            tokens = self._leave_octic_blocks(tokens)
        return tokens, kept_tokens

    def last_norm(self, output: Tensor) -> Tensor:
        return self.norm(output)

    def check_norm(self, taken: Sequence[int]) -> None:
        if self.kind != "octic" and min(taken) < self.octic_blocks:
            raise ValueError(
                f"norm=True for block {min(taken)} of a {self.kind} encoder: its last norm fits blocks from "
                f"{self.octic_blocks} on, choose those or norm=False"
            )

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        tokens = maps  # [B, T, D]: prefix tokens, then patches row by row
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
        tokens = self._embed(images)
        for block in self.blocks[: self.octic_blocks]:
            tokens = self.run_block(block, tokens)
        return tokens

    def act_on_octic_tokens(self, g: int, tokens: Tensor) -> Tensor:
        """Turns the tokens [B, T, D] of `forward_octic` of images into those of `act_on_image(g, images)`."""
        return act_on_components(g, self._move_patches(g, tokens))

    def act_on_tokens(self, g: int, tokens: Tensor) -> Tensor:
        """Turns the tokens [B, T, D] of `forward_features` of images into those of `act_on_image(g, images)`.

        Hybrids have no such action.
        """
        self._refuse_hybrid()
        # Patches move and prefix tokens stay; the values of each token are mixed in kind octic only.
        return self.act_on_octic_tokens(g, tokens) if self.kind == "octic" else self._move_patches(g, tokens)

    def act_on_features(self, element: int, features: Tensor) -> Tensor:
        """Turns features [B, num_features], or without pooling [B, T, num_features], as the element turns images.

        Features are the output without a classifier. Hybrids have no such action.
        """
        self._refuse_hybrid()
        check_element("d4", element)
        if features.shape[-1] != self.num_features:
            raise ValueError(f"features have {features.shape[-1]} columns: this encoder's have {self.num_features}")
        if self.global_pool == "":
            features = self._move_patches(element, features)
        if not self.has_steerable_features:
            return features
        kept, octic = features.split([self.num_features - self.embed_dim, self.embed_dim], dim=-1)
        return torch.cat([kept, act_on_components(element, octic)], dim=-1)

    def act_on_layer(self, layer: str, element: int, maps: Tensor) -> Tensor | None:
        if layer not in {f"blocks.{number}" for number in range(self.octic_blocks)}:
            return None
        check_element("d4", element)
        moved = as_tokens(act_on_image(element, maps))
        return as_maps(act_on_components(element, moved), maps.shape[2:])

    @property
    def parts(self) -> dict[str, slice]:
        """Columns of the features by name: all; inv (do not change with the group) and equi, where there are such."""
        parts = {"all": slice(0, self.num_features)}
        if self.kind == "hybrid" or self.global_pool == "":
            return parts
        # Of octic features alone, A1 is invariant.
        invariant = self.embed_dim // 8 if self.invariants == "none" else self.num_features
        if self.keep_octic:
            invariant -= self.embed_dim
        parts["inv"] = slice(0, invariant)
        if self.has_steerable_features:
            parts["equi"] = slice(invariant, self.num_features)
        return parts

    def checked_pooling(self, global_pool: str) -> str:
        if super().checked_pooling(global_pool) == "token" and not self.has_class_token:
            raise ValueError("global_pool is 'token', but there is no class token: choose 'avg', or class_token=True")
        return global_pool

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: the stem, then blocks."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^trunk", MATCH_PREVIOUS)],
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


def _number_of_octic_blocks(kind: Kind, octic_blocks: int | None, depth: int) -> int:
    """How many blocks commute with the group, by default all of kind octic and half of the others."""
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


def fit_positions(state: dict[str, Tensor], encoder: OcticVisionTransformer) -> dict[str, Tensor]:
    """The weights with their table of positions resized to the encoder's, for weights of another image size.

    On images of its new size, the encoder then computes what the old one computed on them.
    """
    if "pos_embed" not in state:
        return state
    return state | {"pos_embed": resized_table(state["pos_embed"], encoder.patch_embed.grid_size[0])}


# Those of the standard vision transformers.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
PREFIXES: dict[str, Kind] = {"octic": "octic", "hybrid_octic": "hybrid", "invariant_octic": "invariant"}
register_encoders(
    __name__,
    OcticVisionTransformer,
    {
        f"{prefix}_vit_{size}_patch16_224": {"kind": kind, "patch_size": 16, **sizes}
        for prefix, kind in PREFIXES.items()
        for size, sizes in SIZES.items()
    },
    untrained_cfg(224, first_conv="patch_embed", classifier="head", fixed_input_size=True),
    pretrained_filter_fn=fit_positions,
    feature_cfg={"feature_cls": "getter", "out_indices": 3},
)
