"""Factored against naive hypernetwork predictor: time, memory and agreement of forward plus backward.

    python tools/bench_predictor.py                      # B=256, D=1024, 4-column actions; about a minute on 2 cores
    python tools/bench_predictor.py --device cuda --json predictor.json

The naive predictor builds the matrix W(q) of every sample, [B, D, D], as the released SIE code does. The factored one
(`ssl_equi.objectives.predictors.Hypernetwork`) gives the same result without it. Both have the same weights.

Time: wall clock of forward plus backward, naive and factored in turn, one ratio a round; median and range are shown.
Memory: highest sum of live tensors allocated during one forward plus backward, gradients included, weights and
inputs (equal for both) not. On CUDA from the allocator's statistics; on the CPU by replaying the allocations and
frees that torch's profiler records, so scratch space inside the BLAS library is not counted.
Difference: largest absolute difference over the largest naive value, the worst of output and all gradients.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded; keeps its profiler quiet

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssl_equi.benchmarks import row_of, write_rows
from ssl_equi.objectives.predictors import Hypernetwork

MIB = 2**20


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


def seconds(predict: Predict, problem: Problem) -> float:
    synchronise(problem)
    start = time.perf_counter()
    forward_backward(predict, problem)
    synchronise(problem)
    return time.perf_counter() - start


def synchronise(problem: Problem) -> None:
    if problem.embedding.is_cuda:
        torch.cuda.synchronize()


def peak_bytes(predict: Predict, problem: Problem) -> int:
    """Highest sum of live allocations made during one step."""
    if problem.embedding.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        forward_backward(predict, problem)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        results = forward_backward(predict, problem)
    del results
    live, peak = 0, 0
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def largest_relative_difference(problem: Problem) -> float:
    naive = forward_backward(naive_prediction, problem)
    factored = forward_backward(factored_prediction, problem)
    return max(float((factored[k] - naive[k]).abs().max() / naive[k].abs().max()) for k in naive)


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    problem = make_problem(config)
    difference = largest_relative_difference(problem)
    naive_bytes, factored_bytes = (peak_bytes(predict, problem) for predict in (naive_prediction, factored_prediction))
    naive_s, factored_s = [], []
    for _ in range(config.rounds + 1):
        naive_s.append(seconds(naive_prediction, problem))
        factored_s.append(seconds(factored_prediction, problem))
    naive_s, factored_s = naive_s[1:], factored_s[1:]  # the first round warms up caches and allocators
    time_ratios = [naive / factored for naive, factored in zip(naive_s, factored_s, strict=True)]
    memory_ratio = naive_bytes / factored_bytes

    rows = [
        row_of("predictor time, naive / factored", time_ratios, target=10.0),
        row_of("predictor peak memory, naive / factored", [memory_ratio], target=50.0),
        row_of("predictor largest relative difference", [difference], target=1e-4),
    ]
    console = Console(width=80)
    table = Table(title=f"B={config.batch_size}, D={config.dim}, A={config.action_dim}, {config.device}")
    for heading in ("forward + backward", "naive", "factored", "ratio (range)", "target"):
        table.add_column(heading, justify="left" if heading == "forward + backward" else "right")
    table.add_row(
        "time",
        f"{statistics.median(naive_s) * 1e3:.1f} ms",
        f"{statistics.median(factored_s) * 1e3:.1f} ms",
        f"{rows[0]['ratio']:.1f} ({rows[0]['low']:.1f}-{rows[0]['high']:.1f})",
        ">= 10",
    )
    table.add_row(
        "peak memory",
        f"{naive_bytes / MIB:.0f} MiB",
        f"{factored_bytes / MIB:.1f} MiB",
        f"{memory_ratio:.1f}",
        ">= 50",
    )
    table.add_row("relative difference", "", "", f"{difference:.1e}", "<= 1e-4")
    console.print(table)
    write_rows(config.json, rows, config.device)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
