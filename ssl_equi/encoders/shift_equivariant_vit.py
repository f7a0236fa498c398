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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_equi.encoders.polyphase import act_on_image, nearest_multiple
from ssl_equi.encoders.shift_equivariant_layers import (
    AnchoredBlock,
    AnchoredPatches,
    PositionalConvolution,
    as_maps,
    as_tokens,
)

__all__ = ["ShiftEquivariantTwins", "ShiftEquivariantVisionTransformer"]

Pooling = Literal["avg", ""]


class ShiftEquivariantEncoder(nn.Module, ABC):
    """What both architectures share; subclasses make the tokens in `_tokens`.

    Args:
        num_features: D, width of the tokens.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: "avg": the mean over tokens; "": none.
        token_stride: side of the square of pixels that a token stands for.
        side_step: what the sides of images must be multiples of.
        img_size: side, or (height, width), to be checked; the model takes all legal ones.

    Attributes:
        group: the name of the group.
        parts: columns of the features by name; all of them are invariant.
    """

    group: ClassVar[str] = "circular_shifts"

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        global_pool: Pooling,
        token_stride: int,
        side_step: int,
        img_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = num_features
        self.num_classes, self.global_pool = num_classes, _checked_pooling(global_pool)
        self.token_stride, self.side_step = token_stride, side_step
        self.grad_checkpointing = False
        self.parts = {"all": slice(0, num_features), "inv": slice(0, num_features)}
        self.norm = nn.LayerNorm(num_features, eps=1e-6)
        self.head = _classifier(num_features, num_classes)
        self._check_size(*((img_size, img_size) if isinstance(img_size, int) else img_size))

    def forward(self, images: Tensor) -> Tensor:
        """[N, in_chans, H, W] -> [N, num_classes], or [N, D] without a classifier.

        Raises:
            ValueError: the images have another shape, or sides that the grids don't fill.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The map of tokens after the last norm, [N, D, H / token_stride, W / token_stride]."""
        return self.forward_tokens(images)[0]

    def forward_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map of tokens, and the pixel [N, 2] at which the first token's square begins."""
        if images.ndim != 4:
            raise ValueError(f"images have shape {tuple(images.shape)}: this encoder takes [N, in_chans, H, W]")
        self._check_size(*images.shape[2:])
        tokens, origins = self._tokens(images)
        return self.norm(tokens.movedim(1, -1)).movedim(-1, 1), origins

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave to the output; with `pre_logits` to what the classifier would see.

        Without pooling that is a row for each token, [N, T, D] or [N, T, num_classes].
        """
        features = tokens.mean(dim=(2, 3)) if self.global_pool == "avg" else as_tokens(tokens)
        return features if pre_logits else self.head(features)

    def act_on_features(self, shift: tuple[int, int], features: Tensor) -> Tensor:
        """The features of shifted images from those of the images: the same ones, [N, D].

        Args:
            shift: rows down and columns to the right, in pixels.
            features: pooled ones, without a classifier.

        Raises:
            ValueError: the features have another shape, or are those of tokens (`act_on_tokens` moves these).
        """
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

        Raises:
            ValueError: there is not one origin for each map.
        """
        if tokens.ndim != 4 or origins.shape != (tokens.shape[0], 2):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)} and origins {tuple(origins.shape)}: "
                "pass [N, D, h, w] and [N, 2], as forward_tokens gives them"
            )
        begins = origins + torch.tensor(shift, device=origins.device)
        moves = begins.div(self.token_stride, rounding_mode="floor").tolist()
        moved = [act_on_image((rows, columns), own) for own, (rows, columns) in zip(tokens, moves)]
        return torch.stack(moved), begins % self.token_stride

    def reset_classifier(self, num_classes: int, global_pool: Pooling | None = None) -> None:
        """A new classifier of so many outputs (0: none), and another pooling if one is named."""
        if global_pool is not None:
            self.global_pool = _checked_pooling(global_pool)
        self.num_classes = num_classes
        self.head = _classifier(self.num_features, num_classes).to(self.norm.weight.device, self.norm.weight.dtype)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or nn.Identity."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes each block's activations again in the backward pass rather than keep them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare, beside all vectors: those that tell positions."""
        return {
            f"{name}.proj.weight" for name, module in self.named_modules() if isinstance(module, PositionalConvolution)
        }

    @abstractmethod
    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map of tokens before the last norm, and the pixel at which each first token begins."""

    def _run(self, block: nn.Module, state: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(block, state, use_reentrant=False)
        return block(state)

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
        _check_at_least("patch_size", patch_size, 1)
        _check_at_least("depth", depth, 1)
        _check_heads(embed_dim, num_heads)
        super().__init__(embed_dim, num_classes, global_pool, patch_size, patch_size, img_size)
        self.embed_dim, self.num_prefix_tokens = embed_dim, 0
        self.patch_embed = AnchoredPatches(in_chans, embed_dim, patch_size)
        self.pos_block = PositionalConvolution(embed_dim)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, init_values=init_values, drop_path=rate)
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
        self.apply(_initialise_linear)

    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps, origins = self.patch_embed(images)
        size = tuple(maps.shape[2:])
        tokens = self._run(self.blocks[0], as_tokens(maps))
        tokens = as_tokens(self.pos_block(as_maps(tokens, size)))
        for block in self.blocks[1:]:
            tokens = self._run(block, tokens)
        return as_maps(tokens, size), origins


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
        _check_at_least("patch_size", patch_size, 1)
        _check_stages(embed_dims, depths, num_heads, window_sizes, kv_strides)
        strides = [patch_size * 2**stage for stage in range(len(depths))]
        side_step = math.lcm(*(s * math.lcm(w, k) for s, w, k in zip(strides, window_sizes, kv_strides)))
        super().__init__(embed_dims[-1], num_classes, global_pool, strides[-1], side_step, img_size)
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
        self.apply(_initialise_linear)

    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = images
        origins = torch.zeros(images.shape[0], 2, dtype=torch.int64, device=images.device)
        blocks = iter(self.blocks)
        for pixels, depth, patch_embed, pos_block in zip(
            self.pixels_a_place, self.depths, self.patch_embeds, self.pos_block
        ):
            maps, offsets = patch_embed(maps)
            origins = origins + pixels * offsets
            maps = pos_block(self._run(next(blocks), maps))
            for block in itertools.islice(blocks, depth - 1):
                maps = self._run(block, maps)
        return maps, origins


def _classifier(num_features: int, num_classes: int) -> nn.Module:
    classifier: nn.Module = nn.Linear(num_features, num_classes) if num_classes > 0 else nn.Identity()
    return classifier.apply(_initialise_linear)


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _checked_pooling(global_pool: Pooling) -> Pooling:
    if global_pool not in get_args(Pooling):
        raise ValueError(f"global_pool is {global_pool!r}: choose 'avg' or '' (none)")
    return global_pool


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}: it must be at least {least}")


def _check_heads(width: int, num_heads: int) -> None:
    if num_heads < 1 or width % num_heads:
        divisors = [number for number in range(1, width + 1) if width % number == 0]
        nearest = min(divisors, key=lambda divisor: abs(divisor - num_heads))
        raise ValueError(f"num_heads is {num_heads} for a width of {width}: it must divide the width, use {nearest}")


def _check_stages(
    embed_dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_sizes: Sequence[int],
    kv_strides: Sequence[int],
) -> None:
    _check_at_least("the number of stages (embed_dims)", len(embed_dims), 1)
    for name, values, least in (
        ("depths", depths, 1),
        ("num_heads", num_heads, 1),
        ("window_sizes", window_sizes, 2),
        ("kv_strides", kv_strides, 1),
    ):
        if len(values) != len(embed_dims):
            raise ValueError(f"{name} are {values}: give one for each of the {len(embed_dims)} stages")
        _check_at_least(f"the smallest of {name}", min(values), least)
    for width, heads in zip(embed_dims, num_heads):
        _check_heads(width, heads)
