"""Vision transformers whose features no circular shift of the image changes, by adaptive polyphase anchoring.

After Ding et al. (2023, arXiv:2306.07470). Whatever lies on a grid (patches, windows, strided convolutions) is anchored
to the content, see `shifts.polyphase`; all other layers commute with circular shifts of their map. There is
no class token and no table of positions: a depth-wise 3 x 3 convolution with circular padding tells patches where their
neighbours are (Chu et al. 2021, arXiv:2102.10882).

The group are the circular shifts of the image by (rows, columns), `polyphase.act_on_image`. Pooled features stay the
same, up to rounding. The map of tokens moves circularly by whole tokens; how far depends on where the grid lay:
`forward_tokens` gives that place and `act_on_tokens` the action.

Limits: shifts that bring in other content, such as crops or shifts with zeros behind them, change the features; nothing
is promised of these. Ties break the symmetry, see `polyphase`. Inner maps carry rounding errors, so in
`ShiftEquivariantTwins` near ties can break it too, above all in half precision; `ShiftEquivariantVisionTransformer`
anchors images only. Anchoring commutes with no turns or mirrorings.

    name                                     features  parameters  multiplications at 224 pixels
    shift_equivariant_vit_tiny_patch16_224   192       5.5 M       1.2 G
    shift_equivariant_vit_small_patch16_224  384       21.6 M      4.6 G
    shift_equivariant_vit_base_patch16_224   768       85.7 M      17.5 G
    shift_equivariant_twins_small            512       23.5 M      2.9 G: images of 64 pixels need other window_sizes
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_equi.encoders.checks import check_at_least, check_heads
from ssl_equi.encoders.shifts.layers import AnchoredBlock, AnchoredPatches, PositionalConvolution
from ssl_equi.encoders.shifts.polyphase import act_on_image, nearest_multiple
from ssl_equi.encoders.symmetric import Symmetric, Symmetries
from ssl_equi.encoders.timm_interface import (
    MATCH_PREVIOUS,
    LayeredEncoder,
    as_maps,
    as_tokens,
    initialise_linear,
    register_encoders,
    untrained_cfg,
)

__all__ = ["ShiftEquivariantTwins", "ShiftEquivariantVisionTransformer"]

Pooling = Literal["avg", ""]


class Tokens(NamedTuple):
    """What the layers of an encoder make of images."""

    maps: Tensor
    """[N, D, h, w], before the last norm."""
    origins: Tensor
    """int64 [N, 2], the pixel at which each map's first token begins."""
    kept: dict[int, Tensor]
    """Maps after chosen layers, by number."""


class ShiftEquivariantEncoder(LayeredEncoder, Symmetric):
    """What both architectures share; subclasses make the tokens in `_tokens` and set `feature_info`.

    Args:
        num_features: D, width of the tokens.
        global_pool: "avg": the mean over tokens; "": none.
        token_stride: side of the square of pixels that a token stands for.
        side_step: what the sides of images must be multiples of.
        img_size: side, or (height, width), to be checked; the model takes all legal ones.

    Attributes:
        feature_info: of every block of the vision transformer (the first one with its positional convolution), of every
            stage of the Twins. Circular shifts move their maps by whole places, and leave the means as they are.
        parts: columns of the features by name; all of them are invariant.
    """

    poolings = get_args(Pooling)
    symmetries = Symmetries("circular_shifts", ((1, 0), (0, 1)), act_on_image)
    initialise = staticmethod(initialise_linear)

    def __init__(
        self,
        in_chans: int,
        num_features: int,
        num_classes: int,
        global_pool: Pooling,
        token_stride: int,
        side_step: int,
        img_size: int | tuple[int, int],
    ) -> None:
        super().__init__(num_classes)
        check_at_least(1, in_chans=in_chans)
        self.in_chans, self.num_features = in_chans, num_features
        self.global_pool = self.checked_pooling(global_pool)
        self.token_stride, self.side_step = token_stride, side_step
        self.parts = {"all": slice(0, num_features), "inv": slice(0, num_features)}
        self.norm = nn.LayerNorm(num_features, eps=1e-6)
        self.head = self.new_classifier().apply(initialise_linear)
        self._check_size(*((img_size, img_size) if isinstance(img_size, int) else img_size))

    def run_layers(
        self, images: Tensor, count: int | None = None, kept: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        tokens = self._checked_tokens(images, count, kept)
        return tokens.maps, tokens.kept

    def forward_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map of tokens, and the pixel [N, 2] at which the first token's square begins."""
        tokens = self._checked_tokens(images)
        return self.last_norm(tokens.maps), tokens.origins

    def last_norm(self, output: Tensor) -> Tensor:
        if output.shape[1] != self.num_features:  # the layers were left before the last width
            return output
        return self.norm(output.movedim(1, -1)).movedim(-1, 1)

    def check_norm(self, taken: Sequence[int]) -> None:
        widths = [self.feature_info[number]["num_chs"] for number in taken]
        if set(widths) != {self.num_features}:
            raise ValueError(
                f"norm=True for layers {list(taken)} of widths {widths}: the last norm fits a width of "
                f"{self.num_features}, choose other layers or norm=False"
            )

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave to the output; with `pre_logits` to what the classifier would see.

        Without pooling that is a row for each token, [N, T, D] or [N, T, num_classes].
        """
        features = maps.mean(dim=(2, 3)) if self.global_pool == "avg" else as_tokens(maps)
        return features if pre_logits else self.head(features)

    def act_on_features(self, element: tuple[int, int], features: Tensor) -> Tensor:
        """The features of shifted images from those of the images: the same ones, [N, D].

        They are pooled ones, without a classifier; `act_on_tokens` moves those of tokens.
        """
        _check_shift(element)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"features have shape {tuple(features.shape)}: pooled ones of this encoder are [N, "
                f"{self.num_features}]; for maps of tokens use act_on_tokens"
            )
        return features

    def act_on_tokens(self, shift: tuple[int, int], tokens: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward_tokens` gives for shifted images, from what it gives for the images.

        With R = token_stride, the grid begins at (origins + shift) mod R, and tokens move circularly by
        floor((origins + shift) / R).

        Args:
            shift: rows down and columns to the right, in pixels.
            tokens: [N, D, h, w].
            origins: [N, 2].
        """
        _check_shift(shift)
        if tokens.ndim != 4 or origins.shape != (tokens.shape[0], 2):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)} and origins {tuple(origins.shape)}: "
                "pass [N, D, h, w] and [N, 2], as forward_tokens gives them"
            )
        begins = origins + torch.tensor(shift, device=origins.device)
        moves = begins.div(self.token_stride, rounding_mode="floor").tolist()
        moved = [act_on_image((rows, columns), own) for own, (rows, columns) in zip(tokens, moves)]
        return torch.stack(moved), begins % self.token_stride

    @abstractmethod
    def _tokens(self, images: Tensor, layers: int | None, kept: Collection[int]) -> Tokens:
        """The maps after the first so many of the layers in `feature_info`, or all of them."""

    def _checked_tokens(self, images: Tensor, layers: int | None = None, kept: Collection[int] = ()) -> Tokens:
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images have shape {tuple(images.shape)}: this encoder takes [N, {self.in_chans}, H, W]")
        self._check_size(*images.shape[2:])
        return self._tokens(images, layers, kept)

    def _check_size(self, height: int, width: int) -> None:
        step = self.side_step
        if height < 1 or width < 1 or height % step or width % step:
            raise ValueError(
                f"images of {height} x {width} pixels don't fill the grids of this encoder, whose sides are multiples "
                f"of {step}: use {nearest_multiple(height, step)} x {nearest_multiple(width, step)}"
            )


class ShiftEquivariantVisionTransformer(ShiftEquivariantEncoder):
    """Patches of the anchored image, standard blocks, and a positional convolution after the first one.

    Weights of timm's vision transformers fit, but for the class token and the positions that it lacks and the
    positional convolution that it adds.

    Args:
        img_size: side, or (height, width), of images; others that patches fill will do as well.
        global_pool: "avg" or "" (none); the other arguments are those of timm's vision transformer.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: Pooling = "avg",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        check_at_least(1, patch_size=patch_size, embed_dim=embed_dim, depth=depth)
        check_heads(embed_dim, num_heads)
        super().__init__(in_chans, embed_dim, num_classes, global_pool, patch_size, patch_size, img_size)
        self.embed_dim = embed_dim
        self.patch_embed = AnchoredPatches(in_chans, embed_dim, patch_size)
        self.pos_block = PositionalConvolution(embed_dim)
        # It tells positions, as tables of positions do, which weight decay spares as well.
        self.spared_from_weight_decay = ("pos_block.proj.weight",)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, init_values=init_values, drop_path=rate)
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
        self.feature_info = [
            {"module": f"blocks.{number}", "num_chs": embed_dim, "reduction": patch_size} for number in range(depth)
        ]
        self.apply(initialise_linear)

    def _tokens(self, images: Tensor, layers: int | None, kept: Collection[int]) -> Tokens:
        maps, origins = self.patch_embed(images)
        size, tokens, kept_maps = tuple(maps.shape[2:]), as_tokens(maps), {}
        for number, block in enumerate(self.blocks[:layers]):
            tokens = self.run_block(block, tokens)
            if number == 0:
                tokens = as_tokens(self.pos_block(as_maps(tokens, size)))
            if number in kept:
                kept_maps[number] = as_maps(tokens, size)
        return Tokens(as_maps(tokens, size), origins, kept_maps)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: the stem, then blocks; the positional convolution stands behind the first one."""
        return {
            "stem": r"^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^pos_block", (0,)), (r"^norm", MATCH_PREVIOUS)],
        }


class ShiftEquivariantTwins(ShiftEquivariantEncoder):
    """Stages of shrinking maps, with attention within windows and to sub-sampled tokens in turn, as Twins-SVT has them.

    Every grid is anchored: the patches of each stage, the windows of even blocks, and the strided convolution that
    makes the keys and values of odd blocks. Each stage has a positional convolution after its first block.

    Args:
        img_size: side, or (height, width), of images; other multiples of `side_step` will do as well.
        patch_size: side of a patch of the first stage; later ones merge 2 x 2 tokens.
        global_pool: "avg" or "" (none).
        embed_dims, depths, num_heads: channels, blocks and attention heads of each stage.
        window_sizes: side of each stage's windows in tokens, at least 2.
        kv_strides: of each stage's sub-sampling.

    Attributes:
        side_step: windows and sub-sampling fill the maps of images whose sides are multiples of this: 224 with the
            defaults, 64 with windows (4, 4, 4, 2).
        blocks: of all stages, in order.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: Pooling = "avg",
        embed_dims: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (2, 2, 10, 4),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        window_sizes: tuple[int, ...] = (7, 7, 7, 7),
        kv_strides: tuple[int, ...] = (8, 4, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        check_at_least(1, patch_size=patch_size)
        _check_stages(embed_dims, depths, num_heads, window_sizes, kv_strides)
        strides = [patch_size * 2**stage for stage in range(len(depths))]
        side_step = math.lcm(*(s * math.lcm(w, k) for s, w, k in zip(strides, window_sizes, kv_strides)))
        super().__init__(in_chans, embed_dims[-1], num_classes, global_pool, strides[-1], side_step, img_size)
        self.depths, self.pixels_a_place = tuple(depths), (1, *strides[:-1])
        self.spared_from_weight_decay = [f"pos_block.{stage}.proj.weight" for stage in range(len(depths))]
        self.patch_embeds, self.pos_block, self.blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for stage, channels in enumerate(embed_dims):
            before, patch = (embed_dims[stage - 1], 2) if stage else (in_chans, patch_size)
            self.patch_embeds.append(AnchoredPatches(before, channels, patch, normalise=stage > 0))
            self.pos_block.append(PositionalConvolution(channels))
            for number in range(depths[stage]):
                sizes = {"kv_stride": kv_strides[stage]} if number % 2 else {"window_size": window_sizes[stage]}
                self.blocks.append(AnchoredBlock(channels, num_heads[stage], mlp_ratio, next(rates), **sizes))
        self.feature_info = [
            {"module": f"blocks.{end - 1}", "num_chs": channels, "reduction": stride}
            for end, channels, stride in zip(itertools.accumulate(depths), embed_dims, strides)
        ]
        self.apply(initialise_linear)

    def _tokens(self, images: Tensor, layers: int | None, kept: Collection[int]) -> Tokens:
        maps, kept_maps = images, {}
        origins = torch.zeros(images.shape[0], 2, dtype=torch.int64, device=images.device)
        blocks = iter(self.blocks)
        for stage, depth in enumerate(self.depths[:layers]):
            maps, offsets = self.patch_embeds[stage](maps)
            origins = origins + self.pixels_a_place[stage] * offsets
            maps = self.pos_block[stage](self.run_block(next(blocks), maps))
            for block in itertools.islice(blocks, depth - 1):
                maps = self.run_block(block, maps)
            if stage in kept:
                kept_maps[stage] = maps
        return Tokens(maps, origins, kept_maps)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: the stem, then blocks; what leads to a stage goes with its first one."""
        firsts = itertools.accumulate((0, *self.depths[:-1]))
        leading = [(rf"^(?:patch_embeds|pos_block)\.{stage}\.", (first,)) for stage, first in enumerate(firsts)]
        return {
            "stem": r"^patch_embeds\.0\.",
            "blocks": [(r"^blocks\.(\d+)", None), *leading, (r"^norm", MATCH_PREVIOUS)],
        }


def _check_stages(
    embed_dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_sizes: Sequence[int],
    kv_strides: Sequence[int],
) -> None:
    check_at_least(1, **{"the number of stages (embed_dims)": len(embed_dims)})
    for name, values, least in (
        ("embed_dims", embed_dims, 1),
        ("depths", depths, 1),
        ("num_heads", num_heads, 1),
        ("window_sizes", window_sizes, 2),
        ("kv_strides", kv_strides, 1),
    ):
        if len(values) != len(embed_dims):
            raise ValueError(f"{name} are {values}: give one for each of the {len(embed_dims)} stages")
        check_at_least(least, **{f"the smallest of {name}": min(values)})
    for width, heads in zip(embed_dims, num_heads):
        check_heads(width, heads)


def _check_shift(shift: tuple[int, int]) -> None:
    given = shift if isinstance(shift, (tuple, list)) else (shift,)
    if len(given) != 2 or not all(isinstance(pixels, int) for pixels in given):
        nearest = tuple(round(pixels) for pixels in (*given, 0, 0)[:2])
        raise ValueError(f"shift is {shift}: pass two whole numbers of pixels, such as {nearest}")


_VIT_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
"""Width and number of heads."""
register_encoders(
    __name__,
    ShiftEquivariantVisionTransformer,
    {
        f"shift_equivariant_vit_{size}_patch16_224": {
            "patch_size": 16, "embed_dim": width, "depth": 12, "num_heads": num_heads,
        }
        for size, (width, num_heads) in _VIT_SIZES.items()
    },
    untrained_cfg(224, first_conv="patch_embed.proj", classifier="head", fixed_input_size=True),
    feature_cfg={"feature_cls": "getter", "out_indices": 3},
)  # fmt: skip
register_encoders(
    __name__,
    ShiftEquivariantTwins,
    {"shift_equivariant_twins_small": {}},
    untrained_cfg(224, first_conv="patch_embeds.0.proj", classifier="head", fixed_input_size=True),
    feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
)
