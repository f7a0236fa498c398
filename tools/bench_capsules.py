"""Self-routing without votes in memory against the broadcast form: time, memory, agreement of forward plus backward.

    OMP_NUM_THREADS=1 python tools/bench_capsules.py --threads 1    # 32 capsules, batch 32, a map of 8 x 8
    python tools/bench_capsules.py --device cuda --batch-size 256 --json capsules.json

The broadcast form multiplies the vote matrices of all input capsules with their poses in one broadcast matrix product,
as the released code of EquiCaps does: torch then copies the weights for every sample. The batched form
(`ssl_equi.encoders.capsules.layers.SelfRouting`) sums weighted votes without forming them. Both have the same weights.

Time: wall clock of forward plus backward, broadcast and batched in turn, one ratio a round; median and range are shown.
Memory: highest sum of live tensors allocated during one forward plus backward, gradients included, weights and
inputs (equal for both) not. On CUDA from the allocator's statistics; on the CPU by replaying the allocations and
frees that torch's profiler records, so scratch space inside the BLAS library is not counted.
Difference: largest absolute difference over the largest broadcast value, the worst of outputs and all gradients.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded; keeps its profiler quiet

import torch
import tyro
from benchmarks import (
    Targets,
    comparison_rows,
    costs_in_turns,
    largest_relative_difference,
    print_comparison,
    write_rows,
)
from torch import Tensor

from ssl_equi.encoders.capsules.layers import Capsules, SelfRouting, Votes


@dataclass(frozen=True)
class Config:
    batch_size: int = 32
    """Images a step."""
    capsules: int = 32
    """Input capsules a position, and output capsules; 32 in EquiCaps."""
    pose_side: int = 3
    """Poses are matrices of this side; 3 or 4 in EquiCaps."""
    map_side: int = 8
    """The window is a map of this side; 8 for images of 256 pixels and a ResNet."""
    votes: Votes = "free"
    """free: as in EquiCaps. matrix: left multiplication."""
    rounds: int = 5
    """Timed rounds, after one that is not counted."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    json: Path | None = None
    """Also write the table to this file."""


@dataclass(frozen=True)
class Problem:
    """The layer, its input, the gradients of its outputs, and the weights of the broadcast form.

    With I input capsules and J output capsules: votes [I, J * d * d, d * d] (free) or [I, J, d, d] (matrix), routing
    [I, J, d * d] and bias [I, J].
    """

    layer: SelfRouting
    capsules: Capsules
    output_gradients: tuple[Tensor, Tensor]
    broadcast_weights: tuple[Tensor, Tensor, Tensor]


def broadcast_weights(layer: SelfRouting) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of the layer's weights with the input capsules (capsule, then place) first."""
    votes = layer.vote_weight.detach().permute(3, 4, 0, 1, 2).flatten(0, 1)
    votes = votes.flatten(1, 2) if layer.votes == "free" else votes
    routing = layer.routing_weight.detach().flatten(0, 1).transpose(1, 2)
    bias = layer.routing_bias.detach().flatten(0, 1)
    return tuple(
        weight.clone(memory_format=torch.contiguous_format).requires_grad_() for weight in (votes, routing, bias)
    )


def broadcast_routing(problem: Problem) -> Capsules:
    """Self-routing with the votes of all pairs of capsules, [B, I, J, d, d]."""
    votes_weight, routing_weight, bias = problem.broadcast_weights
    side, outputs = problem.layer.pose_side, problem.layer.num_out
    activations = problem.capsules.activations.flatten(1).unsqueeze(2)
    poses = problem.capsules.poses.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    vectors = poses.flatten(2).unsqueeze(3)
    if problem.layer.votes == "free":
        votes = (votes_weight @ vectors).view(*vectors.shape[:2], outputs, side, side)
    else:
        votes = votes_weight @ poses.unsqueeze(2)
    gates = activations * torch.softmax((routing_weight @ vectors).squeeze(3) + bias, dim=2)
    received = gates.sum(dim=1)
    shares = (gates / received.unsqueeze(1))[..., None, None]
    return Capsules(received / activations.sum(dim=1), (shares * votes).sum(dim=1))


def broadcast_forward_backward(problem: Problem) -> dict[str, Tensor]:
    """Outputs and gradients of one step; the gradients of the weights are laid out as the layer's."""
    step = forward_backward(lambda: broadcast_routing(problem), problem, problem.broadcast_weights)
    layer, (height, width) = problem.layer, problem.layer.kernel_size
    places = (layer.num_in, height * width)
    values = layer.vote_weight.shape[1]
    votes = step["votes gradient"].view(*places, layer.num_out, values, -1)
    return step | {
        "votes gradient": votes.permute(2, 3, 4, 0, 1),
        "routing gradient": step["routing gradient"].transpose(1, 2).unflatten(0, places),
        "bias gradient": step["bias gradient"].unflatten(0, places),
    }


def batched_forward_backward(problem: Problem) -> dict[str, Tensor]:
    """Outputs and gradients of one step of the layer."""
    layer = problem.layer
    weights = (layer.vote_weight, layer.routing_weight, layer.routing_bias)

    def route() -> Capsules:
        activations, poses = layer(problem.capsules)
        return Capsules(activations[..., 0, 0], poses[..., 0, 0])

    return forward_backward(route, problem, weights)


def forward_backward(
    route: Callable[[], Capsules], problem: Problem, weights: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Tensor]:
    outputs = route()
    gradients = torch.autograd.grad(outputs, (*problem.capsules, *weights), problem.output_gradients)
    names = ("activations", "poses", "votes", "routing", "bias")
    return {
        "output activations": outputs.activations.detach(),
        "output poses": outputs.poses.detach(),
        **{f"{name} gradient": gradient for name, gradient in zip(names, gradients, strict=True)},
    }


def make_problem(config: Config) -> Problem:
    torch.manual_seed(0)
    batch, number, side, size = config.batch_size, config.capsules, config.pose_side, (config.map_side,) * 2
    layer = SelfRouting(number, number, side, size, votes=config.votes)
    torch.nn.init.normal_(layer.routing_weight)  # zero at the start of training
    layer = layer.to(config.device)
    capsules = Capsules(torch.rand(batch, number, *size), torch.randn(batch, number, side, side, *size))
    return Problem(
        layer=layer,
        capsules=Capsules(*(tensor.to(config.device).requires_grad_() for tensor in capsules)),
        output_gradients=(
            torch.randn(batch, number).to(config.device),
            torch.randn(batch, number, side, side).to(config.device),
        ),
        broadcast_weights=broadcast_weights(layer),
    )


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    problem = make_problem(config)
    works = {
        "broadcast": lambda: broadcast_forward_backward(problem),
        "batched": lambda: batched_forward_backward(problem),
    }
    difference = largest_relative_difference(works["broadcast"](), works["batched"]())
    costs = costs_in_turns(works, config.rounds, config.device)
    rows = comparison_rows("self-routing", costs, difference, Targets(time=3.0, memory=5.0, difference=1e-5))
    title = (
        f"{config.capsules} capsules, poses {config.pose_side} x {config.pose_side}, {config.votes} votes, "
        f"map {config.map_side} x {config.map_side}, B={config.batch_size}, {config.device}"
    )
    print_comparison(title, costs, rows)
    write_rows(config.json, rows, config.device)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
