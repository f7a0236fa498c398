"""Vision transformers whose features no circular shift of the image changes, by adaptive polyphase anchoring.

After Ding et al. (2023, arXiv:2306.07470). Whatever lies on a grid (patches, windows, strided convolutions) is anchored
to the content, see `ssl_equi.encoders.polyphase`; all other layers commute with circular shifts of their map. There is
no class token and no table of positions: a depth-wise 3 x 3 convolution with circular padding tells patches where their
neighbours are (Chu et al. 2021, arXiv:2102.10882).

The group are the circular shifts of the image by (rows, columns), `polyphase.act_on_image`. Pooled features stay the
same, up to rounding. The map of tokens moves circularly by whole tokens; how far depends on where the grid lay:
`forward_tokens` gives that place and `act_on_tokens` the action.

Limits: shifts that bring in other content, such as crops or shifts with zeros behind them, change the features; nothing
is promised of these. Ties break the symmetry, see `polyphase`. Inner maps carry rounding errors, so in
`ShiftEquivariantTwins` near ties can break it too, above all in half precision; `ShiftEquivariantVisionTransformer`
anchors images only. Anchoring commutes with no turns or mirrorings.

`ssl_equi.encoders.shift_equivariant_vit_names` registers them with timm.
"""

import itertools
import math
from collections.abc import Collection, Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_equi.encoders.arguments import check_at_least, check_heads
from ssl_equi.encoders.shift_equivariant_encoder import Pooling, ShiftEquivariantEncoder, Tokens, initialise_linear
from ssl_equi.encoders.shift_equivariant_layers import (
    AnchoredBlock,
    AnchoredPatches,
    PositionalConvolution,
    as_maps,
    as_tokens,
)

__all__ = ["ShiftEquivariantTwins", "ShiftEquivariantVisionTransformer"]


class ShiftEquivariantVisionTransformer(ShiftEquivariantEncoder):
    """Patches of the anchored image, standard blocks, and a positional convolution after the first one.

    Weights of timm's vision transformers fit, but for the class token and the positions that it lacks and the
    positional convolution that it adds.

    Args:
        img_size: side, or (height, width), of images; others that patches fill will do as well.
        patch_size: p, side of a patch.
        in_chans: colour channels.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: "avg" or "" (none).
        embed_dim: D.
        depth: number of blocks, at least 1.
        num_heads: a divisor of D.
        mlp_ratio: hidden width of a block's perceptron over D.
        qkv_bias: queries, keys and values have a bias.
        init_values: factors of layer scale at first; None leaves it out.
        drop_path_rate: of the last block; it rises from 0.

    Raises:
        ValueError: an argument is out of range; the message gives the nearest legal one.
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
        check_at_least("patch_size", patch_size, 1)
        check_at_least("embed_dim", embed_dim, 1)
        check_at_least("depth", depth, 1)
        check_heads(embed_dim, num_heads)
        super().__init__(in_chans, embed_dim, num_classes, global_pool, patch_size, patch_size, img_size)
        self.embed_dim, self.num_prefix_tokens = embed_dim, 0
        self.patch_embed = AnchoredPatches(in_chans, embed_dim, patch_size)
        self.pos_block = PositionalConvolution(embed_dim)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, init_values=init_values, drop_path=rate)
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
        self.feature_info = [
            {"module": f"blocks.{number}", "num_chs": embed_dim, "reduction": patch_size} for number in range(depth)
        ]
        self.apply(initialise_linear)

    def _tokens(self, images: Tensor, layers: int | None = None, kept: Collection[int] = ()) -> Tokens:
        maps, origins = self.patch_embed(images)
        size, tokens, kept_maps = tuple(maps.shape[2:]), as_tokens(maps), {}
        for number, block in enumerate(self.blocks[:layers]):
            tokens = self._run(block, tokens)
            if number == 0:
                tokens = as_tokens(self.pos_block(as_maps(tokens, size)))
            if number in kept:
                kept_maps[number] = as_maps(tokens, size)
        return Tokens(as_maps(tokens, size), origins, kept_maps)


class ShiftEquivariantTwins(ShiftEquivariantEncoder):
    """Stages of shrinking maps, with attention within windows and to sub-sampled tokens in turn, as Twins-SVT has them.

    Every grid is anchored: the patches of each stage, the windows of even blocks, and the strided convolution that
    makes the keys and values of odd blocks. Each stage has a positional convolution after its first block.

    Args:
        img_size: side, or (height, width), of images; other multiples of `side_step` will do as well.
        patch_size: p, side of a patch of the first stage; later ones merge 2 x 2 tokens.
        in_chans: colour channels.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: "avg" or "" (none).
        embed_dims: channels of each stage.
        depths: blocks of each stage, at least 1.
        num_heads: divisors of the channels.
        window_sizes: side of each stage's windows in tokens, at least 2.
        kv_strides: of each stage's sub-sampling.
        mlp_ratio: hidden width of a block's perceptron over its channels.
        drop_path_rate: of the last block; it rises from 0.

    Attributes:
        side_step: windows and sub-sampling fill the maps of images whose sides are multiples of this: 224 with the
            defaults, 64 with windows (4, 4, 4, 2).
        blocks: of all stages, in order.

    Raises:
        ValueError: an argument is out of range; the message gives the nearest legal one.
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
        check_at_least("patch_size", patch_size, 1)
        _check_stages(embed_dims, depths, num_heads, window_sizes, kv_strides)
        strides = [patch_size * 2**stage for stage in range(len(depths))]
        side_step = math.lcm(*(s * math.lcm(w, k) for s, w, k in zip(strides, window_sizes, kv_strides)))
        super().__init__(in_chans, embed_dims[-1], num_classes, global_pool, strides[-1], side_step, img_size)
        self.num_prefix_tokens = 0
        self.depths, self.pixels_a_place = tuple(depths), (1, *strides[:-1])
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

    def _tokens(self, images: Tensor, layers: int | None = None, kept: Collection[int] = ()) -> Tokens:
        maps, kept_maps = images, {}
        origins = torch.zeros(images.shape[0], 2, dtype=torch.int64, device=images.device)
        blocks = iter(self.blocks)
        for stage, depth in enumerate(self.depths[:layers]):
            maps, offsets = self.patch_embeds[stage](maps)
            origins = origins + self.pixels_a_place[stage] * offsets
            maps = self.pos_block[stage](self._run(next(blocks), maps))
            for block in itertools.islice(blocks, depth - 1):
                maps = self._run(block, maps)
            if stage in kept:
                kept_maps[stage] = maps
        return Tokens(maps, origins, kept_maps)


def _check_stages(
    embed_dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_sizes: Sequence[int],
    kv_strides: Sequence[int],
) -> None:
    check_at_least("the number of stages (embed_dims)", len(embed_dims), 1)
    for name, values, least in (
        ("embed_dims", embed_dims, 1),
        ("depths", depths, 1),
        ("num_heads", num_heads, 1),
        ("window_sizes", window_sizes, 2),
        ("kv_strides", kv_strides, 1),
    ):
        if len(values) != len(embed_dims):
            raise ValueError(f"{name} are {values}: give one for each of the {len(embed_dims)} stages")
        check_at_least(f"the smallest of {name}", min(values), least)
    for width, heads in zip(embed_dims, num_heads):
        check_heads(width, heads)
