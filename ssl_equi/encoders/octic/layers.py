"""Transformer layers that commute with the eight symmetries of the square.

Octic vision transformers (Nordström, Edstedt, Kahl and Bökman 2025, arXiv:2505.15441): a linear layer that commutes
with the group mixes only values of the same irreducible representation, which takes 12 C C' multiplications and 8 C C'
weights where a dense layer of widths 8 C and 8 C' takes 64 C C' of each. The formulation here is our own: two stored
tensors, steerable kernels and positions made from free ones, and one norm over the whole token.

Layers take and return tokens [B, N, D] (see `octic_features`), but for a linear layer, which returns `OcticFeatures`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.encoders.checks import check_heads, check_square_images
from ssl_equi.encoders.octic.features import (
    OcticFeatures,
    bias_gradient,
    check_octic_width,
    features_to_regular,
    regular_to_tokens,
    steerable_maps,
    tokens_to_regular,
)
from ssl_equi.encoders.square.symmetries import ELEMENTS
from ssl_equi.encoders.timm_interface import as_tokens

DENSE_STD = 0.02
"""Standard deviation of the weights of a dense layer in a vision transformer."""


class OcticLinear(nn.Module):
    """Any linear map of octic features that commutes with the group.

    Of width in_features = 8 C to out_features = 8 C'; a bias is added to A1, the only values that may get a constant.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        check_octic_width("in_features", in_features)
        check_octic_width("out_features", out_features)
        self.in_features, self.out_features = in_features, out_features
        channels_in, channels_out = in_features // 8, out_features // 8
        self.weight_ones = nn.Parameter(torch.empty(4, channels_out, channels_in))
        self.weight_twos = nn.Parameter(torch.empty(2 * channels_out, 2 * channels_in))
        self.bias = nn.Parameter(torch.empty(channels_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights such that outputs vary as those of a dense layer of the same width do."""
        # A value is a sum over an eighth (E: a quarter) of the inputs, so that its weights are as much larger.
        for weight, share in ((self.weight_ones, 8), (self.weight_twos, 4)):
            std = DENSE_STD * share**0.5
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, tokens: Tensor) -> OcticFeatures:
        """Width 8 C to width 8 C'."""
        weight_ones, weight_twos, *bias = self._weights()
        features = OcticFeatures.from_tokens(tokens.to(weight_ones.dtype))
        ones = torch.bmm(features.ones.flatten(1, 2), weight_ones.transpose(1, 2)).unflatten(1, tokens.shape[:2])
        twos = torch.bmm(features.twos.flatten(1, 2), weight_twos.t().expand(2, -1, -1)).unflatten(1, tokens.shape[:2])
        return OcticFeatures(ones, twos, *bias)

    def _weights(self) -> list[Tensor]:
        """Weights, and a bias [4, C'] if there is one, in the precision of the products."""
        weights: list[Tensor] = [self.weight_ones, self.weight_twos]
        if self.bias is not None:
            zero = torch.zeros_like(self.bias)
            weights.append(torch.stack([self.bias, zero, zero, zero]))
        kind, dtype = self.weight_ones.device.type, self.weight_ones.dtype
        # Asking is an error for meta tensors, and autocast leaves float64 as it is.
        if kind == "meta" or dtype == torch.float64 or not torch.is_autocast_enabled(kind):
            return weights
        # All are converted at once, by one kernel.
        together = torch.cat([weight.flatten() for weight in weights]).to(torch.get_autocast_dtype(kind))
        return [part.view_as(weight) for part, weight in zip(together.split([w.numel() for w in weights]), weights)]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class OcticScale(nn.Module):
    """A learned factor for each irreducible representation and channel; the two rows of E share theirs."""

    def __init__(self, dim: int, init: float = 1.0) -> None:
        super().__init__()
        check_octic_width("dim", dim)
        # One vector, so that an optimiser that spares biases and norms from weight decay spares it.
        self.weight = nn.Parameter(torch.full((dim * 3 // 4,), init))

    def forward(self, tokens: Tensor) -> Tensor:
        ones, twos = self.weight.tensor_split((len(self.weight) * 2 // 3,))
        return tokens * torch.cat([ones, twos, twos])


class OcticRMSNorm(OcticScale):
    """Root mean square norm over the whole token, then a learned factor for each representation and channel.

    Zhang and Sennrich 2019, arXiv:1910.07467, without the group.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim)
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        # The group acts by orthogonal matrices, which leave the root mean square as it is.
        values = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        factor = torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + self.eps)
        return super().forward((values * factor).to(tokens.dtype))


class _RegularGELU(torch.autograd.Function):
    """GELU of the eight values of the regular representation; keeps nothing but its input."""

    # The backward pass is written out so that it reads and writes every value once, and leaves tokens behind.

    @staticmethod
    def forward(ctx: Any, ones: Tensor, twos: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(ones, twos, bias)
        return regular_to_tokens([F.gelu(values) for values in features_to_regular(OcticFeatures(ones, twos, bias))])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        # A copy, so that compiled code does not take what follows for what the forward pass computed, and store that.
        kind = torch.promote_types(gradient.dtype, torch.float32)
        ones, twos, bias = ctx.saved_tensors
        features = OcticFeatures(ones.to(kind, copy=True), twos.to(kind, copy=True), bias)
        pairs = zip(tokens_to_regular(gradient), features_to_regular(features))
        products = [torch.ops.aten.gelu_backward(g.to(kind), value).to(gradient.dtype) for g, value in pairs]
        ones, twos, _ = OcticFeatures.from_tokens(regular_to_tokens(products))
        # torch.compile takes no other tuple for the gradients: it makes zeros of one with names.
        return ones, twos, None if bias is None else bias_gradient(ones)


class OcticGELU(nn.Module):
    """GELU of every value of the regular representation, which the group permutes."""

    def forward(self, features: OcticFeatures) -> Tensor:
        if features.ones.is_cuda:
            return _RegularGELU.apply(*features)
        return regular_to_tokens([F.gelu(values) for values in features_to_regular(features)])


class OcticDropPath(nn.Module):
    """Drops a residual branch for a share `rate` of images, all their values at once (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, tokens: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return tokens
        # bernoulli_ would take the rate as a constant: torch.compile would make code for each block of a trunk.
        kept = torch.rand(tokens.shape[0], 1, 1, device=tokens.device) >= self.rate
        return tokens * (kept.to(tokens.dtype) / (1 - self.rate))


class OcticAttention(nn.Module):
    """Self-attention; a head takes the same channels of every representation, so num_heads divides D / 8."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        check_octic_width("dim", dim)
        check_heads(dim, num_heads, step=ELEMENTS)
        self.num_heads = num_heads
        self.qkv = OcticLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = OcticLinear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        ones, twos, _ = self.qkv(tokens).with_bias()
        # [R, B, N, 3 heads c] -> [3, B, heads, N, R c], of R = 4 representations and of the 2 rows of E.
        heads = [
            part.unflatten(-1, (3, self.num_heads, -1)).permute(3, 1, 4, 2, 0, 5).flatten(-2) for part in (ones, twos)
        ]
        # The group acts on queries and keys by orthogonal matrices, so their inner products stay.
        queries, keys, values = torch.cat(heads, dim=-1).unbind(0)
        ones, twos = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).chunk(2, dim=-1)
        # Back, [B, N, heads, R c] -> [B, N, R heads c].
        joined = [part.unflatten(-1, (rows, -1)).transpose(2, 3).flatten(2) for part, rows in ((ones, 4), (twos, 2))]
        return self.proj(torch.cat(joined, dim=-1)).to_tokens()


class OcticMlp(nn.Module):
    """Linear, GELU, linear, with a width between them that is a multiple of 8."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        check_octic_width(f"the hidden width of a perceptron (mlp_ratio times {dim})", hidden_dim)
        self.fc1 = OcticLinear(dim, hidden_dim)
        self.act = OcticGELU()
        self.fc2 = OcticLinear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens))).to_tokens()


class OcticBlock(nn.Module):
    """Attention and multi-layer perceptron, each after a norm and beside a shortcut; arguments as of timm's block."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = OcticRMSNorm(dim)
        self.attn = OcticAttention(dim, num_heads, qkv_bias)
        self.ls1 = nn.Identity() if init_values is None else OcticScale(dim, init_values)
        self.norm2 = OcticRMSNorm(dim)
        self.mlp = OcticMlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if init_values is None else OcticScale(dim, init_values)
        self.drop_path = OcticDropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens))))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))


class OcticPatchEmbed(nn.Module):
    """Images [B, in_chans, S, S] to tokens [B, N, D] of their patches, row by row, by one convolution.

    `grid_size` is that of images of side `img_size`; images of other sizes are taken as well. Patches may have an even
    or an odd side; embed_dim is D.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        check_octic_width("embed_dim", embed_dim)
        _check_divisible(img_size, patch_size)
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.weight = nn.Parameter(torch.empty(embed_dim // 8, in_chans, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(embed_dim // 8))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches of an image of (height, width) pixels."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def forward(self, images: Tensor) -> Tensor:
        check_square_images(images, self.weight.shape[1], lambda side: nearest_side(side, self.patch_size[0]))
        _check_divisible(images.shape[2], self.patch_size[0])
        bias = F.pad(self.bias, (0, 7 * len(self.bias)))
        maps = F.conv2d(images, steerable_maps(self.weight), bias, stride=self.patch_size)
        return as_tokens(maps).contiguous()


def positions(table: Tensor, side: int) -> Tensor:
    """What tells tokens where they are: a free table of positions [C, s, s] as tokens [1, side * side, D]."""
    # Resized while it is still free, so that the result is exactly steerable at any side.
    return as_tokens(steerable_maps(resized_table(table, side)).unsqueeze(0)).contiguous()


def resized_table(table: Tensor, side: int) -> Tensor:
    """A free table of positions [C, s, s] as one of another side, [C, side, side]."""
    if table.shape[-1] == side:
        return table
    free = table.to(torch.promote_types(table.dtype, torch.float32)).unsqueeze(0)
    free = F.interpolate(free, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return free[0].to(table.dtype)


def _check_divisible(img_size: int, patch_size: int) -> None:
    if img_size < 1 or img_size % patch_size:
        nearest = nearest_side(img_size, patch_size)
        raise ValueError(
            f"the image size is {img_size}: patches of {patch_size} x {patch_size} pixels must fill it, use {nearest}"
        )


def nearest_side(img_size: int, patch_size: int) -> int:
    """The side nearest to this one that patches fill."""
    return max(patch_size, patch_size * round(img_size / patch_size))
