"""Factored against naive hypernetwork predictor: time, memory and agreement of forward plus backward.

    python tools/bench_predictor.py                      # B=256, D=1024, 4-column actions; about a minute on 2 cores
    python tools/bench_predictor.py --device cuda --json predictor.json

The naive predictor builds the matrix W(q) of every sample, [B, D, D], as the released SIE code does. The factored one
(`ssl_equi.objectives.parts.predictors.Hypernetwork`) gives the same result without it. Both have the same weights.

Time: wall clock of forward plus backward, naive and factored in turn, one ratio a round; median and range are shown.
Memory: highest sum of live tensors allocated during one forward plus backward, gradients included, weights and
inputs (equal for both) not. On CUDA from the allocator's statistics; on the CPU by replaying the allocations and
frees that torch's profiler records, so scratch space inside the BLAS library is not counted.
Difference: largest absolute difference over the largest naive value, the worst of output and all gradients.
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

from ssl_equi.objectives.parts.predictors import Hypernetwork


@dataclass(frozen=True)
class Config:
    batch_size: int = 256
    """Samples a step."""
    dim: int = 1024
    """Width of the embedding; 1024 in the SIE paper."""
    action_dim: int = 4
    """Columns of the action."""
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
    """The predictor, its inputs [B, D] and [B, A], and the gradient of its output [B, D]."""

    predictor: Hypernetwork
    embedding: Tensor
    actions: Tensor
    output_gradient: Tensor


def naive_prediction(problem: Problem) -> Tensor:
    """W(q) x with one matrix a sample, [B, D, D]."""
    matrices = problem.predictor.matrices
    matrix_per_sample = (problem.actions @ matrices.flatten(1)).unflatten(1, matrices.shape[1:])
    return torch.bmm(matrix_per_sample, problem.embedding.unsqueeze(-1)).squeeze(-1)


def factored_prediction(problem: Problem) -> Tensor:
    return problem.predictor(problem.embedding, problem.actions)


Predict = Callable[[Problem], Tensor]


def forward_backward(predict: Predict, problem: Problem) -> dict[str, Tensor]:
    """Output and gradients of one step."""
    output = predict(problem)
    inputs = (problem.embedding, problem.predictor.matrices)
    gradients = torch.autograd.grad(output, inputs, problem.output_gradient)
    return {"output": output.detach(), "embedding gradient": gradients[0], "weight gradient": gradients[1]}


def make_problem(config: Config) -> Problem:
    torch.manual_seed(0)
    embedding = torch.randn(config.batch_size, config.dim)
    actions = torch.nn.functional.normalize(torch.randn(config.batch_size, config.action_dim), dim=1)
    return Problem(
        predictor=Hypernetwork(config.dim, config.action_dim).to(config.device),
        embedding=embedding.to(config.device).requires_grad_(),
        actions=actions.to(config.device),
        output_gradient=torch.randn(config.batch_size, config.dim).to(config.device),
    )


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    problem = make_problem(config)
    works = {
        "naive": lambda: forward_backward(naive_prediction, problem),
        "factored": lambda: forward_backward(factored_prediction, problem),
    }
    difference = largest_relative_difference(works["naive"](), works["factored"]())
    costs = costs_in_turns(works, config.rounds, config.device)
    rows = comparison_rows("predictor", costs, difference, Targets(time=10.0, memory=50.0, difference=1e-4))
    title = f"B={config.batch_size}, D={config.dim}, A={config.action_dim}, {config.device}"
    print_comparison(title, costs, rows)
    write_rows(config.json, rows, config.device)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
