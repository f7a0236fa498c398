"""Convolutions that commute exactly with quarter turns (C4), or with quarter turns and mirrorings (D4).

Group convolutions of Cohen and Welling, "Group Equivariant Convolutional Networks", ICML 2016, in plain PyTorch: each
layer expands its free kernel to that of one ordinary convolution. With F[h] the map of orientation h, an element g of
the group turns the image and acts on regular maps as (g F)[h] = g (F[g^-1 h]): every map is turned, and the maps change
places. A free kernel w becomes

    lifting       K[h]    = h w                (from an image)
    convolution   K[h, k] = h w[h^-1 k]        (from regular maps; k is the orientation of the input)

Regular maps are stored as [N, |G| * C, H, W], all C fields of the first element before those of the second, so that
everything pointwise, ordinary pooling and ordinary encoder interfaces take them as they are. Elements are numbered as
in `ssl_equi.encoders.square.symmetries`; those of C4 are the first four.

At equal channels |G| * C, a layer costs as many multiplications as an ordinary one and has |G| times fewer weights.
Expanding kernels is what training pays for it; `bake` expands them once.
"""

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_equi.encoders.checks import check_at_least
from ssl_equi.encoders.square.sampling import Window, check_map
from ssl_equi.encoders.square.symmetries import ELEMENTS, TURNS, act_on_image, compose, inverse
from ssl_equi.encoders.symmetric import Symmetries

GroupName = Literal["c4", "d4"]
"""C4: quarter turns. D4: quarter turns and mirrorings, the symmetries of the square."""
_SIZES: dict[str, int] = {"c4": TURNS, "d4": ELEMENTS}


def group_size(group: GroupName) -> int:
    """|G|: 4 or 8."""
    if group not in _SIZES:
        raise ValueError(f"group is {group!r}: choose {' or '.join(repr(name) for name in get_args(GroupName))}")
    return _SIZES[group]


def square_group(group: GroupName) -> Symmetries:
    """What an encoder of this group says of its symmetries."""
    return Symmetries(group, range(group_size(group)), act_on_image)


def check_element(group: GroupName, element: Any) -> None:
    """Raises ValueError unless the group has an element of this number; a float would be a turn by degrees."""
    if not isinstance(element, int) or not 0 <= element < group_size(group):
        raise ValueError(f"element is {element}: {group} has the elements 0..{group_size(group) - 1}")


def act_on_regular_stack(group: GroupName, g: int, stack: Tensor) -> Tensor:
    """(g F)[h] = F[g^-1 h] for what has no places: F of shape [N, |G| * C, ...], blocks of C for each element."""
    check_element(group, g)
    size = group_size(group)
    if stack.ndim < 2 or stack.shape[1] % size:
        raise ValueError(f"stack has shape {tuple(stack.shape)}: {group} acts on [N, {size} * C, ...]")
    sources = [compose(inverse(g), h) for h in range(size)]
    return stack.unflatten(1, (size, -1))[:, sources].flatten(1, 2)


def act_on_regular_maps(group: GroupName, g: int, maps: Tensor) -> Tensor:
    """(g F)[h] = g (F[g^-1 h]) for square maps F of shape [N, |G| * C, S, S]."""
    return act_on_image(g, act_on_regular_stack(group, g, maps))


class _SymmetricConvolution(nn.Module):
    """What lifting and group convolution share: a free kernel, its expansion, and one ordinary convolution.

    The kernel has one block of numbers for each pair of fields; `sources` [|G|, orientations, k, k] says which of them
    stands where in the expanded kernel, the same for all pairs.
    """

    sources: Tensor

    def __init__(
        self,
        group: GroupName,
        sources: Tensor,
        in_fields: int,
        out_fields: int,
        window: Window,
        bias: bool,
    ) -> None:
        super().__init__()
        check_at_least(1, in_fields=in_fields, out_fields=out_fields)
        self.group, self.window = group, window
        self.in_fields, self.out_fields = in_fields, out_fields
        self.in_channels = sources.shape[1] * in_fields
        self.out_channels = group_size(group) * out_fields
        self.register_buffer("sources", sources, persistent=False)
        self.weight = nn.Parameter(torch.empty(out_fields, in_fields, *sources.shape[1:]))
        self.bias = nn.Parameter(torch.zeros(out_fields)) if bias else None
        nn.init.normal_(self.weight, std=(2 / (self.out_channels * window.kernel_size**2)) ** 0.5)

    def expanded_weight(self) -> Tensor:
        """The kernel of the ordinary convolution, [out_channels, in_channels, k, k]."""
        # Rows of numbers are gathered along the first dimension: several times faster than along the last.
        numbers = self.weight.flatten(2).movedim(2, 0).contiguous()
        gathered = numbers.index_select(0, self.sources.flatten()).view(*self.sources.shape, *numbers.shape[1:])
        kernel = gathered.permute(0, 4, 1, 5, 2, 3)  # element, output field, orientation, input field, k, k
        # By way of one dimension, so that the strides of sides of length 1 don't look like channels-last memory.
        return kernel.flatten().view(self.out_channels, self.in_channels, *self.sources.shape[2:])

    def expanded_bias(self) -> Tensor | None:
        """The bias of the ordinary convolution, [out_channels]."""
        return None if self.bias is None else self.bias.repeat(group_size(self.group))

    def forward(self, maps: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, h, w]; sides that break the symmetry are refused."""
        if maps.ndim != 4 or maps.shape[1] != self.in_channels:
            raise ValueError(f"maps have shape {tuple(maps.shape)}: this layer takes [N, {self.in_channels}, H, W]")
        check_map(self.window, maps.shape[2], maps.shape[3])
        stride, padding = self.window.stride, self.window.padding
        return F.conv2d(maps, self.expanded_weight(), self.expanded_bias(), stride, padding)

    def baked(self) -> nn.Conv2d:
        """The ordinary convolution with the expanded kernel."""
        window = self.window
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            window.kernel_size,
            window.stride,
            window.padding,
            bias=self.bias is not None,
            device="meta",  # nothing is drawn at random
        )
        plain.weight = nn.Parameter(self.expanded_weight().detach())
        bias = self.expanded_bias()
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach())
        return plain

    def extra_repr(self) -> str:
        return f"{self.group}, {self.in_channels}, {self.out_channels}, {self.window}, bias={self.bias is not None}"


class LiftingConvolution(_SymmetricConvolution):
    """Images [N, in_channels, H, W] to regular maps [N, |G| * fields, h, w].

    Args:
        group: "c4" or "d4".
        in_channels: colour channels.
        fields: C; the maps have |G| * C channels.
        kernel_size, stride, padding: of the square window; they must suit the size of the images, see
            `ssl_equi.encoders.square.sampling`.
        bias: one number a field.

    Attributes:
        weight: [fields, in_channels, 1, k, k], with the variance 2 / fan-out of the expanded kernel (He et al. 2015).
    """

    def __init__(
        self,
        group: GroupName,
        in_channels: int,
        fields: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> None:
        window = Window("lifting convolution", kernel_size, stride, padding)
        places = torch.arange(kernel_size**2).view(1, kernel_size, kernel_size)
        sources = torch.stack([act_on_image(h, places) for h in range(group_size(group))])
        super().__init__(group, sources, in_channels, fields, window, bias)


class GroupConvolution(_SymmetricConvolution):
    """Regular maps [N, |G| * in_fields, H, W] to regular maps [N, |G| * out_fields, h, w].

    Args:
        in_fields, out_fields: C of the input and of the output; others as of `LiftingConvolution`.

    Attributes:
        weight: [out_fields, in_fields, |G|, k, k], with the variance 2 / fan-out of the expanded kernel.
    """

    def __init__(
        self,
        group: GroupName,
        in_fields: int,
        out_fields: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> None:
        size = group_size(group)
        window = Window("group convolution", kernel_size, stride, padding)
        places = torch.arange(size * kernel_size**2).view(size, kernel_size, kernel_size)
        sources = torch.stack(
            [act_on_image(h, places[[compose(inverse(h), k) for k in range(size)]]) for h in range(size)]
        )
        super().__init__(group, sources, in_fields, out_fields, window, bias)


class OrientationBatchNorm(nn.Module):
    """Batch norm of maps [N, size * fields, h, w] whose statistics and weights all `size` blocks share."""

    def __init__(self, size: int, fields: int) -> None:
        super().__init__()
        self.size, self.fields = size, fields
        # An ordinary one, which becomes synchronised over processes as any other.
        self.norm = nn.BatchNorm2d(fields)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or maps.shape[1] != self.size * self.fields:
            raise ValueError(
                f"maps have shape {tuple(maps.shape)}: this layer takes [N, {self.size} * {self.fields}, h, w]"
            )
        blocks = (self.size, self.fields)
        if maps.is_contiguous():
            return self.norm(maps.reshape(-1, self.fields, *maps.shape[2:])).reshape(maps.shape)
        # In channels-last memory, elements and columns are neighbours: a view again, and the layout stays.
        pixels = maps.permute(0, 2, 3, 1).unflatten(3, blocks).flatten(2, 3)
        normalised = self.norm(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return normalised.unflatten(2, (-1, self.size)).flatten(3).permute(0, 3, 1, 2)

    def baked(self) -> nn.BatchNorm2d:
        """The ordinary batch norm with every field's numbers repeated for each element."""
        norm = self.norm
        plain = nn.BatchNorm2d(self.size * self.fields, norm.eps, norm.momentum)
        plain.to(norm.weight)
        tensors = {name: tensor.detach() for name, tensor in norm.state_dict().items()}
        plain.load_state_dict(
            {name: tensor.repeat(self.size) if tensor.ndim else tensor for name, tensor in tensors.items()}
        )
        return plain


class GroupBatchNorm(OrientationBatchNorm):
    """`OrientationBatchNorm` of regular maps [N, |G| * fields, h, w]."""

    def __init__(self, group: GroupName, fields: int) -> None:
        super().__init__(group_size(group), fields)


def bake(module: nn.Module) -> nn.Module:
    """A copy in eval mode in which ordinary convolutions and batch norms stand for those that keep a symmetry.

    It computes the same function, without expanding kernels at every call, and is exported (`torch.export`) and
    compiled as any convolutional network. Its weights don't learn: trained, they would lose the symmetry.

    Args:
        module: an encoder, or anything that contains layers with a method `baked`: those of this file and of
            `ssl_equi.encoders.steerable.layers`.
    """
    baked = _bake(copy.deepcopy(module)).eval()
    return baked.requires_grad_(False)


def _bake(module: nn.Module) -> nn.Module:
    baked = getattr(module, "baked", None)
    if callable(baked):
        return baked()
    for name, child in module.named_children():
        module.register_module(name, _bake(child))
    return module
