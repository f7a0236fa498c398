"""Layers of shift-equivariant vision transformers: each commutes with circular shifts of its map.

Whatever lies on a grid is anchored to the content first, see `ssl_equi.encoders.shifts.polyphase`.
"""

from timm.models.twins import Block as WindowOrSubsampledBlock
from torch import Tensor, nn

from ssl_equi.encoders.shifts.polyphase import anchor, shift_back
from ssl_equi.encoders.timm_interface import as_maps, as_tokens


class AnchoredPatches(nn.Module):
    """One token for each patch of the anchored map, [N, in_chans, H, W] -> [N, out_chans, H / p, W / p]."""

    def __init__(self, in_chans: int, out_chans: int, patch_size: int, normalise: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        # Merging normalises before the convolution, not after it: normalised tokens all have the same energy, so that
        # anchoring what comes out would choose by rounding errors.
        self.norm: nn.Module = nn.LayerNorm(in_chans, eps=1e-6) if normalise else nn.Identity()
        self.proj = nn.Conv2d(in_chans, out_chans, patch_size, stride=patch_size)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens, and the place [N, 2] on the given map where the first patch begins."""
        anchored, offsets = anchor(maps, self.patch_size)
        return self.proj(self.norm(anchored.movedim(1, -1)).movedim(-1, 1)), offsets


class PositionalConvolution(nn.Module):
    """Adds to each token a weighted sum of its 3 x 3 neighbourhood, channel by channel, around the edges too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", groups=channels)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.proj(maps)


class AnchoredBlock(nn.Module):
    """A block of Twins whose windows, or patches of keys and values, are anchored: maps to maps of the same shape.

    Chu et al. (NeurIPS 2021, arXiv:2104.13840). Tokens attend to each other within windows, or, with a window_size of
    1, to ones sub-sampled with the stride kv_stride.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        window_size: int = 1,
        kv_stride: int = 1,
    ) -> None:
        super().__init__()
        self.period = max(window_size, kv_stride)
        self.block = WindowOrSubsampledBlock(
            channels, num_heads, mlp_ratio, drop_path=drop_path, sr_ratio=kv_stride, ws=window_size
        )

    def forward(self, maps: Tensor) -> Tensor:
        size = tuple(maps.shape[2:])
        if self.period == 1:
            return as_maps(self.block(as_tokens(maps), size), size)
        anchored, offsets = anchor(maps, self.period)
        # Shifted back, so that the block moves no token.
        return shift_back(as_maps(self.block(as_tokens(anchored), size), size), offsets)
