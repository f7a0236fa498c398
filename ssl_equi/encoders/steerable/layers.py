"""Layers that commute with turns by other angles than 90 degrees too, as well as pixels allow.

Kernels are linear combinations of a basis of those that commute with a group of `ssl_equi.encoders.steerable.groups`.
The library escnn solves for that basis and samples it on the pixels, once when a layer is made; after that, each layer
is plain PyTorch, and the basis is neither learnt nor stored with the weights. Quarter turns only move pixels, so they
stay exact for every group that has them; for other turns the error is that of sampling.

A kernel of angular frequency m varies as cos(m phi) around its centre. Square pixels look alike after a quarter turn,
so sampling confuses m with m - 4. That takes 2 to -2, a frequency that kernels have as well, and the orientations of
fields follow the pixels instead of the image; 1 only goes to -3. So kernels have frequencies up to 1, unless asked
otherwise: with random weights, in networks of 10 layers, features then follow turns by 45 degrees 3 times (c8) or 2
times (so2) more closely.
"""

import functools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_equi.encoders.checks import check_at_least
from ssl_equi.encoders.square.sampling import Window, check_map
from ssl_equi.encoders.steerable.escnn_import import import_escnn
from ssl_equi.encoders.steerable.groups import SteerableGroup, steerable_group

Input = Literal["image", "fields"]
"""Of a convolution: colour channels, which do not mix when the image turns, or fields."""

BLUR_TAPS = (1, 5, 10, 10, 5, 1)
"""Binomial: close to a Gaussian with a standard deviation of 1.1 pixels, and so nearly the same in all directions."""
BLUR_PADDING = 2


class SteerableConvolution(nn.Module):
    """A convolution of stride 1 that keeps the side of maps: [N, in_channels, h, w] to [N, out_channels, h, w].

    Args:
        group: "c8", "so2", ..., see `ssl_equi.encoders.steerable.groups`.
        takes: "image": in_fields are colour channels. "fields": each has `channels_per_field` channels.
        max_frequency: largest angular frequency of kernels, whose side is odd.

    Attributes:
        weight: [out_fields, in_fields, B], coefficients of the B kernels of the basis, with variance such that the
            expected squared length of the kernel of an output channel is 2 (He et al. 2015).
    """

    basis: Tensor

    def __init__(
        self, group: str, takes: Input, in_fields: int, out_fields: int, kernel_size: int, max_frequency: int = 1
    ) -> None:
        super().__init__()
        size = steerable_group(group).channels_per_field
        check_at_least(1, in_fields=in_fields, out_fields=out_fields)
        check_at_least(0, max_frequency=max_frequency)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: steerable kernels have an odd side, use {kernel_size | 1}")
        self.group, self.takes, self.kernel_size = group, takes, kernel_size
        self.in_fields, self.out_fields = in_fields, out_fields
        self.in_channels = in_fields * (1 if takes == "image" else size)
        self.out_channels = out_fields * size
        basis = kernel_basis(group, takes, kernel_size, max_frequency)
        self.weight = nn.Parameter(torch.empty(out_fields, in_fields, len(basis)))
        self.register_buffer("basis", basis.to(self.weight, copy=True), persistent=False)
        nn.init.normal_(self.weight, std=(2 * size / (in_fields * len(basis))) ** 0.5)

    def expanded_weight(self) -> Tensor:
        """The kernel of the ordinary convolution, [out_channels, in_channels, k, k]."""
        with torch.autocast(self.weight.device.type, enabled=False):
            kernel = (self.weight.flatten(0, 1) @ self.basis.flatten(1)).view(
                self.out_fields, self.in_fields, *self.basis.shape[1:]
            )
        side = self.kernel_size
        return kernel.permute(2, 0, 3, 1, 4).reshape(self.out_channels, self.in_channels, side, side)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or maps.shape[1] != self.in_channels:
            raise ValueError(f"maps have shape {tuple(maps.shape)}: this layer takes [N, {self.in_channels}, h, w]")
        return F.conv2d(maps, self.expanded_weight(), padding=self.kernel_size // 2)

    def baked(self) -> nn.Conv2d:
        """The ordinary convolution with the expanded kernel."""
        padding = self.kernel_size // 2
        plain = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, padding=padding, bias=False, device="meta"
        )
        plain.weight = nn.Parameter(self.expanded_weight().detach())
        return plain

    def extra_repr(self) -> str:
        return f"{self.group}, {self.takes}, {self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"


@functools.cache
def kernel_basis(group: str, takes: Input, kernel_size: int, max_frequency: int) -> Tensor:
    """Kernels from one field (or colour channel) to one field that commute with the group, each of squared length 1.

    Float32 [B, channels_per_field, channels_in, k * k] on the CPU; whoever changes the tensor changes it for all.
    """
    known = steerable_group(group)
    escnn = import_escnn()
    with torch.device("cpu"), torch.no_grad():
        if known.order is None:
            space = escnn.gspaces.rot2dOnR2(-1, maximum_frequency=2 * (known.channels_per_field // 2))
            field = space.fibergroup.bl_regular_representation(known.channels_per_field // 2)
        else:
            space = escnn.gspaces.rot2dOnR2(known.order)
            field = space.regular_repr
        incoming = space.trivial_repr if takes == "image" else field
        types = [escnn.nn.FieldType(space, [representation]) for representation in (incoming, field)]
        # escnn's own choice of radii; kernels at radius r have frequencies up to 2 r and max_frequency.
        layer = escnn.nn.R2Conv(
            *types,
            kernel_size,
            bias=False,
            initialize=False,  # its own initialisation takes seconds
            frequencies_cutoff=lambda radius: min(2 * radius, max_frequency),
        )
        (expansion,) = layer.basisexpansion.children()  # one field to one field: a single block
        basis = expansion(torch.eye(layer.basisexpansion.dimension()))
        basis = _exact_under_quarter_turns(known, takes, basis.view(*basis.shape[:3], kernel_size, kernel_size))
        return (basis / basis.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)).flatten(3)


def _exact_under_quarter_turns(group: SteerableGroup, takes: Input, basis: Tensor) -> Tensor:
    """The mean of kernels [B, out, in, k, k] over the quarter turns (or half turns) that the group has."""
    # They already commute with these up to rounding. Sums of a few float32 numbers in float64 have no rounding, so that
    # afterwards what a quarter turn exchanges is equal to the bit, and stays so in every precision.
    turns = 4 if group.order is None else math.gcd(group.order, 4)
    total = torch.zeros_like(basis, dtype=torch.float64)
    for turn in range(turns):
        angle_deg = 360 * turn // turns
        # A quarter turn's action on a field: places and signs, nothing in between.
        matrix = group.act_on_stack(angle_deg, torch.eye(group.channels_per_field, dtype=torch.float64)).round().T
        moved = torch.rot90(basis.double(), angle_deg // 90, dims=(-2, -1))
        moved = torch.einsum("jk,bkiyx->bjiyx", matrix, moved)
        if takes == "fields":
            moved = torch.einsum("jk,bokyx->bojyx", matrix, moved)
        total += moved
    return (total / turns).float()


class MixedBlocks(nn.Module):
    """A constant matrix [j, k] times maps [N, k * C, h, w], to [N, j * C, h, w].

    With `fourier_values()`, [16, 7], from fields of so2 to their values at 16 orientations.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        # Not stored with the weights: whoever makes the layer knows it.
        self.register_buffer("matrix", matrix.to(torch.get_default_dtype()), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        blocks = maps.unflatten(1, (self.matrix.shape[1], -1))
        return (self.matrix @ blocks.flatten(2)).view(maps.shape[0], -1, *maps.shape[2:])


class AntialiasedPooling(nn.Module):
    """Blurs every channel of maps of even side and keeps every second pixel: [N, C, h, w] to [N, C, h/2, w/2].

    Binomial weights over 6 x 6 pixels; Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019.
    """

    taps: Tensor

    def __init__(self, name: str = "antialiased pooling") -> None:
        super().__init__()
        self.window = antialiased_window(name)
        taps = torch.tensor(BLUR_TAPS, dtype=torch.get_default_dtype())
        self.register_buffer("taps", torch.outer(taps, taps) / taps.sum() ** 2, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        check_map(self.window, maps.shape[2], maps.shape[3])
        channels = maps.shape[1]
        weight = self.taps.expand(channels, 1, *self.taps.shape)
        return F.conv2d(maps, weight, stride=self.window.stride, padding=self.window.padding, groups=channels)


def antialiased_window(name: str) -> Window:
    """The window of `AntialiasedPooling`."""
    return Window(name, len(BLUR_TAPS), stride=2, padding=BLUR_PADDING)
