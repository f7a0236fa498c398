"""Capsules: groups of units with an activation (is the entity there?) and a pose (how does it stand?).

A head as in EquiCaps (Konstantinou et al. 2025, arXiv:2506.09895): a convolution makes primary capsules of a feature
map, and one layer of self-routing (Hahn, Pyeon and Kim, "Self-Routing Capsule Networks", NeurIPS 2019), whose window is
the whole map, makes K capsules of them.

Self-routing does not iterate. With i the input capsules of a window (one for each of its positions and capsules), j the
output capsules, a_i activations and p_i poses:

    votes        u_ij   = W1_ij p_i
    routing      c_ij   = softmax_j(W2_i p_i + b2_i)_j
    activations  act_j  = sum_i a_i c_ij / sum_i a_i
    poses        pose_j = sum_i a_i c_ij u_ij / sum_i a_i c_ij
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssl_equi.encoders.checks import check_at_least

GATED_BYTES = 2**28
"""At most, of the gated inputs that a GPU computes at once."""


class _GatedProduct(torch.autograd.Function):
    """out[j, n, c, v] = sum over q and i of weight[j, v, q, i] * gates[j, n, i] * inputs[n, c, q, i].

    From inputs [N, C, Q, I], contiguous, gates [J, N, I] and weight [J, V, Q, I] to [J, N, C, V]; it can be
    differentiated once.
    """

    # On the CPU one output capsule after another, both ways: all gated inputs at once take J times the memory.
    # Elsewhere, where launches count, as many at once as `GATED_BYTES` hold.

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, gates, weight)
        if inputs.device.type != "cpu":
            return _gated_products(inputs, gates, weight)
        samples, columns = inputs.shape[:2]
        products = [
            (inputs * gates_j[:, None, None]).view(samples * columns, -1) @ weight_j.flatten(1).T
            for gates_j, weight_j in zip(gates, weight, strict=True)
        ]
        return torch.stack(products).unflatten(1, (samples, columns))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, gates, weight = ctx.saved_tensors
        if inputs.device.type != "cpu":
            return _gated_product_gradients(gradient.flatten(1, 2), inputs, gates, weight)
        inputs_gradient = torch.zeros_like(inputs)
        gates_gradient, weight_gradient = torch.empty_like(gates), torch.empty_like(weight)
        gradient = gradient.flatten(1, 2)
        rows = gradient.shape[1]
        for j in range(weight.shape[0]):
            gates_j = gates[j, :, None, None]
            weight_gradient[j] = (gradient[j].T @ (inputs * gates_j).view(rows, -1)).view_as(weight[j])
            gated_gradient = (gradient[j] @ weight[j].flatten(1)).view_as(inputs)
            gates_gradient[j] = (gated_gradient * inputs).sum(dim=(1, 2))
            inputs_gradient.addcmul_(gated_gradient, gates_j)
        return inputs_gradient, gates_gradient, weight_gradient


def _gated_products(inputs: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
    """The product, some output capsules at once."""
    products = [_gated(inputs, gates[block]).bmm(weight[block].flatten(2).mT) for block in _blocks(inputs, len(weight))]
    return (products[0] if len(products) == 1 else torch.cat(products)).unflatten(1, inputs.shape[:2])


def _gated_product_gradients(
    gradient: Tensor, inputs: Tensor, gates: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs, gates and weight, from the gradient [J, N * C, V], some output capsules at once."""
    of_inputs, of_gates, of_weight = [], [], []
    for block in _blocks(inputs, len(weight)):
        of_weight.append(gradient[block].mT.bmm(_gated(inputs, gates[block])).view_as(weight[block]))
        of_gated = gradient[block].bmm(weight[block].flatten(2)).unflatten(1, inputs.shape[:2]).view(-1, *inputs.shape)
        of_gates.append((of_gated * inputs).sum(dim=(2, 3)))
        of_inputs.append((of_gated * gates[block][:, :, None, None]).sum(dim=0))
    if len(of_inputs) == 1:
        return of_inputs[0], of_gates[0], of_weight[0]
    return torch.stack(of_inputs).sum(dim=0), torch.cat(of_gates), torch.cat(of_weight)


def _gated(inputs: Tensor, gates: Tensor) -> Tensor:
    """[J, N * C, Q * I]: the inputs [N, C, Q, I] times the gates [J, N, I]."""
    return (inputs * gates[:, :, None, None]).flatten(1, 2).flatten(2)


def _blocks(inputs: Tensor, num_out: int) -> list[slice]:
    at_once = max(1, GATED_BYTES // inputs.nbytes)
    return [slice(start, start + at_once) for start in range(0, num_out, at_once)]


gated_product: Callable[[Tensor, Tensor, Tensor], Tensor] = _GatedProduct.apply

Votes = Literal["free", "matrix"]
VotesInit = Literal["scale_preserving", "released"]
EPSILON = 1e-6  # sums of activations are not divided by less


class Capsules(NamedTuple):
    """Capsules of a batch: on a map of h x w positions, or one set an image where the head has taken the map away."""

    activations: Tensor
    """[N, K, h, w], or [N, K]."""
    poses: Tensor
    """[N, K, d, d, h, w], or [N, K, d, d]."""


class PrimaryCapsules(nn.Module):
    """Capsules of a feature map: convolution without bias and batch norm; a sigmoid on the activations only.

    `num_capsules` is K, per position, and `pose_side` d: poses are d x d matrices.
    """

    def __init__(
        self,
        in_channels: int,
        num_capsules: int,
        pose_side: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
    ) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels, num_capsules=num_capsules, pose_side=pose_side)
        self.num_capsules, self.pose_side = num_capsules, pose_side
        # EquiCaps has one convolution for activations and one for poses; both in one is the same, and faster.
        channels = num_capsules * (1 + pose_side * pose_side)
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, feature_map: Tensor) -> Capsules:
        """[N, C, h, w] to activations [N, K, h', w'] in (0, 1) and poses [N, K, d, d, h', w']."""
        activations, poses = self.norm(self.conv(feature_map)).tensor_split([self.num_capsules], dim=1)
        poses = poses.unflatten(1, (self.num_capsules, self.pose_side, self.pose_side))
        return Capsules(torch.sigmoid(activations), poses)


class SelfRouting(nn.Module):
    """One layer of self-routing between capsules on maps; its weights are shared over output positions.

    All is computed in at least float32, also under autocast, and so are the results. An output capsule that gets
    nothing has pose 0, and a window without any activation gives activations 1 / num_out.

    Args:
        num_in, num_out: input and output capsules per position.
        pose_side: d; poses are d x d matrices.
        kernel_size, stride, padding: of the window, as in a convolution; what is padded has activation 0 and pose 0.
        votes: "free": W1_ij maps the d * d numbers of a pose linearly in any way, as in EquiCaps. "matrix": W1_ij is a
            d x d matrix that multiplies the pose from the left; whatever multiplies all poses from the right then
            passes through the votes, and through the layer as far as the routing stays the same.
        routing_std: standard deviation of W2 at the start. At 0, as in EquiCaps, all images have the same activations
            1 / num_out, from which training departs slowly.
        votes_init: scale_preserving draws W1 from a normal distribution of variance 1 / Q, so that a vote is as large
            as the pose it is made from. released is how EquiCaps starts: uniform with variance 2 / (num_out * V * Q),
            so that votes are sqrt(num_out * V / 2) times smaller (12 times for 32 capsules of 3 x 3).

    Attributes:
        vote_weight: W1, [num_out, V, Q, num_in, window], with V = Q = d * d (free) or d (matrix).
        routing_weight, routing_bias: W2, [num_in, window, d * d, num_out], and b2, [num_in, window, num_out].
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        pose_side: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        votes: Votes = "free",
        routing_std: float = 0.0,
        votes_init: VotesInit = "scale_preserving",
    ) -> None:
        super().__init__()
        check_at_least(0, routing_std=routing_std, padding=padding)
        if votes not in get_args(Votes):
            raise ValueError(f"votes is {votes!r}: choose 'free' or 'matrix'")
        if votes_init not in get_args(VotesInit):
            raise ValueError(f"votes_init is {votes_init!r}: choose 'scale_preserving' or 'released'")
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        check_at_least(1, num_in=num_in, num_out=num_out, pose_side=pose_side)
        check_at_least(1, kernel_height=height, kernel_width=width, stride=stride)
        self.num_in, self.num_out, self.pose_side = num_in, num_out, pose_side
        self.kernel_size, self.stride, self.padding, self.votes = (height, width), stride, padding, votes
        window, pose_size = height * width, pose_side * pose_side
        vote_size = pose_size if votes == "free" else pose_side
        self.vote_weight = nn.Parameter(torch.empty(num_out, vote_size, vote_size, num_in, window))
        self.routing_weight = nn.Parameter(torch.zeros(num_in, window, pose_size, num_out))
        self.routing_bias = nn.Parameter(torch.zeros(num_in, window, num_out))
        if votes_init == "scale_preserving":
            nn.init.normal_(self.vote_weight, std=vote_size**-0.5)
        else:
            bound = math.sqrt(6 / (num_out * vote_size * vote_size))
            nn.init.uniform_(self.vote_weight, -bound, bound)
        if routing_std > 0:
            nn.init.normal_(self.routing_weight, std=routing_std)

    def forward(self, capsules: Capsules) -> Capsules:
        """Activations [N, num_in, h, w] and poses [N, num_in, d, d, h, w] to those of the num_out capsules.

        The new activations of a position are not negative and sum to 1.
        """
        self._check(capsules)
        with torch.autocast(capsules.poses.device.type, enabled=False):
            activations, poses = (_full_precision(tensor) for tensor in capsules)
            positions = (activations.shape[0], *self._output_size(activations))
            windows = self._windows(poses.flatten(1, 3)).unflatten(1, (self.num_in, -1))
            new_activations, new_poses = self._route(self._windows(activations), windows)
        return Capsules(
            new_activations.unflatten(0, positions).permute(0, 3, 1, 2),
            new_poses.unflatten(0, positions).permute(0, 3, 4, 5, 1, 2),
        )

    def _route(self, activations: Tensor, poses: Tensor) -> Capsules:
        """The output capsules [R, num_out] of R windows, from activations [R, K, X] and poses [R, K, d * d, X]."""
        # Large tensors have the K * X input capsules as their innermost dimension: twice as fast as other orders.
        routing_weight, routing_bias, vote_weight = (
            _full_precision(weight) for weight in (self.routing_weight, self.routing_bias, self.vote_weight)
        )
        activations = activations.flatten(1)
        poses = poses.transpose(1, 2).flatten(2).contiguous()
        logits = torch.baddbmm(
            routing_bias.flatten(0, 1).unsqueeze(1), poses.permute(2, 0, 1), routing_weight.flatten(0, 1)
        )
        routing = torch.softmax(logits, dim=2).permute(2, 1, 0).contiguous()
        gates = activations * routing
        received = gates.sum(dim=2).T
        total = activations.sum(dim=1, keepdim=True)
        # A window without activations would divide by 0: its output capsules share what is missing from a sum of 1.
        safe_total = total.clamp(min=EPSILON)
        missing_share = (1 - total / safe_total) / self.num_out
        poses = poses.unflatten(1, (self.pose_side, self.pose_side))
        if self.votes == "free":
            weighted_votes = gated_product(poses.flatten(1, 2).unsqueeze(1), gates, vote_weight.flatten(3))
            weighted_votes = weighted_votes.view(*received.T.shape, self.pose_side, self.pose_side).transpose(0, 1)
        else:  # all columns of a pose are multiplied by the same matrix
            columns = poses.transpose(1, 2).contiguous()
            weighted_votes = gated_product(columns, gates, vote_weight.flatten(3)).permute(1, 0, 3, 2)
        return Capsules(
            received / safe_total + missing_share,
            weighted_votes / received.clamp(min=EPSILON)[..., None, None],
        )

    def _windows(self, maps: Tensor) -> Tensor:
        """[N, C, h, w] to the windows of all output positions, [N * positions, C, window]."""
        if self.padding == 0 and maps.shape[2:] == self.kernel_size:  # a head's only window, without a copy
            return maps.flatten(2)
        windows = F.unfold(maps, self.kernel_size, padding=self.padding, stride=self.stride)
        return windows.transpose(1, 2).flatten(0, 1).unflatten(1, (maps.shape[1], -1))

    def _output_size(self, maps: Tensor) -> tuple[int, int]:
        height, width = (
            (size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip(maps.shape[2:], self.kernel_size, strict=True)
        )
        return height, width

    def _check(self, capsules: Capsules) -> None:
        activations, poses = capsules
        side = self.pose_side
        if activations.ndim != 4 or activations.shape[1] != self.num_in:
            raise ValueError(
                f"activations have shape {tuple(activations.shape)}: this layer takes [N, {self.num_in}, h, w]"
            )
        samples, _, height, width = activations.shape
        if poses.shape != (samples, self.num_in, side, side, height, width):
            raise ValueError(
                f"poses have shape {tuple(poses.shape)}: with activations {tuple(activations.shape)} this layer takes "
                f"[N, {self.num_in}, {side}, {side}, h, w]"
            )
        if min(self._output_size(activations)) < 1:
            raise ValueError(
                f"the window of {self.kernel_size} is larger than the map of {height} x {width} with padding "
                f"{self.padding}: make the window smaller or the map larger"
            )


class CapsuleHead(nn.Module):
    """Primary capsules of a feature map, and one self-routing layer over all of it: EquiCaps' projector.

    Args:
        in_channels, map_size: of the feature map, with (height, width), of which the weights have as many.
        num_capsules: K, of both layers; 32 in the paper.
        pose_side: d; 3 in the paper for rotations, 4 for rigid motions. Any from 1 up works.
        votes, routing_std, votes_init: see `SelfRouting`; "free", 0 and "released" in the paper.
    """

    def __init__(
        self,
        in_channels: int,
        map_size: tuple[int, int],
        num_capsules: int = 32,
        pose_side: int = 3,
        votes: Votes = "free",
        routing_std: float = 0.0,
        votes_init: VotesInit = "scale_preserving",
    ) -> None:
        super().__init__()
        self.in_channels, self.map_size = in_channels, map_size
        self.primary = PrimaryCapsules(in_channels, num_capsules, pose_side)
        self.routing = SelfRouting(
            num_capsules, num_capsules, pose_side, map_size, votes=votes, routing_std=routing_std, votes_init=votes_init
        )

    def forward(self, feature_map: Tensor) -> Capsules:
        """[N, C, h, w] to activations [N, K], which sum to 1, and poses [N, K, d, d]."""
        if feature_map.shape[1:] != (self.in_channels, *self.map_size):
            raise ValueError(
                f"the feature map has shape {tuple(feature_map.shape)}, but this head was built for "
                f"[N, {self.in_channels}, {self.map_size[0]}, {self.map_size[1]}]: give images of that size"
            )
        activations, poses = self.routing(self.primary(feature_map))
        return Capsules(activations.flatten(1), poses[..., 0, 0])


def _full_precision(tensor: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
