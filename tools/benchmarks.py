"""What the benchmark scripts share: time, peak memory and launches of a piece of work, timed training steps, rows of
figures, the machine they were measured on, the JSON file.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

MIB = 2**20


class Row(TypedDict):
    """One figure: the median of its measurements, their range, and what it should reach (None: nothing)."""

    name: str
    ratio: float
    low: float
    high: float
    target: float | None


def row_of(name: str, values: Sequence[float], target: float | None = None) -> Row:
    """The row of some measurements."""
    return {"name": name, "ratio": statistics.median(values), "low": min(values), "high": max(values), "target": target}


def wait_for(device: str) -> None:
    """Until all that was queued on a GPU is done; `device` is cpu or cuda."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


Work = Callable[[], object]


def seconds_of(work: Work, device: str) -> float:
    """Wall clock of one call."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def peak_bytes(work: Work, device: str) -> int:
    """Highest sum of live tensors that one call allocates, what it returns included; what was there before is not.

    On CUDA from the allocator's statistics; on the CPU by replaying the allocations and frees that torch's profiler
    records, so scratch space inside the BLAS library is not counted.
    """
    if device.startswith("cuda"):
        wait_for(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = work()
        wait_for(device)
        del results
        return torch.cuda.max_memory_allocated() - before

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        results = work()
    del results
    kineto_results = profile.profiler.kineto_results
    live, peak = 0, 0
    changes = [event for event in kineto_results.events() if event.name() == "[memory]"]
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


aten = torch.ops.aten
ALLOCATES = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view,
}  # fmt: skip


def launches(operation: Any) -> bool:
    """Whether an ATen operator on tensors of a GPU starts a kernel or a copy there: all but views and allocations."""
    aliases = [result.alias_info for result in operation._schema.returns]
    is_view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    return not is_view and operation.overloadpacket not in ALLOCATES


class Cost(NamedTuple):
    """What a piece of work costs: wall clock of some calls, and peak memory of one."""

    seconds: list[float]
    bytes: int


def costs_in_turns(works: Mapping[str, Work], rounds: int, device: str) -> dict[str, Cost]:
    """Costs of pieces of work that take turns, after one round of each that is not counted."""
    memory = {name: peak_bytes(work, device) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, device))
    return {name: Cost(seconds[name][1:], memory[name]) for name in works}


class Targets(NamedTuple):
    """What a better form should reach against a plain one: ratios of time and memory, and how equal they must be."""

    time: float
    memory: float
    difference: float


def comparison_rows(subject: str, costs: Mapping[str, Cost], difference: float, targets: Targets) -> list[Row]:
    """The rows of two costs, the plain form's first: ratios of time, one a round, and of memory; the difference."""
    (plain_name, plain), (better_name, better) = costs.items()
    ratios = [theirs / own for theirs, own in zip(plain.seconds, better.seconds, strict=True)]
    pair = f"{plain_name} / {better_name}"
    return [
        row_of(f"{subject} time, {pair}", ratios, targets.time),
        row_of(f"{subject} peak memory, {pair}", [plain.bytes / better.bytes], targets.memory),
        row_of(f"{subject} largest relative difference", [difference], targets.difference),
    ]


def largest_relative_difference(plain: Mapping[str, Tensor], better: Mapping[str, Tensor]) -> float:
    """Largest absolute difference over the largest plain value, the worst of all tensors."""
    return max(float((better[name] - plain[name]).abs().max() / plain[name].abs().max()) for name in plain)


def print_comparison(title: str, costs: Mapping[str, Cost], rows: Sequence[Row]) -> None:
    """The table of two costs and of their `comparison_rows`, 80 columns wide."""
    table = Table(title=title)
    for heading in ("forward + backward", *costs, "ratio (range)", "target"):
        table.add_column(heading, justify="left" if heading == "forward + backward" else "right")
    time_row, memory_row, difference_row = rows
    table.add_row(
        "time",
        *(f"{statistics.median(cost.seconds) * 1e3:.1f} ms" for cost in costs.values()),
        f"{time_row['ratio']:.1f} ({time_row['low']:.1f}-{time_row['high']:.1f})",
        f">= {time_row['target']:g}",
    )
    table.add_row(
        "peak memory",
        *(f"{cost.bytes / MIB:.1f} MiB" for cost in costs.values()),
        f"{memory_row['ratio']:.1f}",
        f">= {memory_row['target']:g}",
    )
    table.add_row("relative difference", "", "", f"{difference_row['ratio']:.1e}", f"<= {difference_row['target']:.0e}")
    Console(width=80).print(table)


class Timed(Protocol):
    """What can be timed."""

    def seconds(self, count: int) -> float:
        """Mean time of a step."""


class TrainingStep:
    """A method's training step on inputs that stay the same: forward, backward, optimiser, and what follows them.

    Args:
        objective: module whose output has a `loss`; it is moved to the device.
        inputs: its arguments, on the device.
        make_optimizer: from the objective's parameters to their optimiser.
        device: cpu or cuda.
        bf16: runs the forward pass under autocast in bfloat16.
        after: called at the end of every step, such as to move a momentum target.
    """

    def __init__(
        self,
        objective: nn.Module,
        inputs: tuple[Tensor | None, ...],
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        device: str,
        bf16: bool = False,
        after: Callable[[], object] | None = None,
    ) -> None:
        self.inputs, self.device, self.bf16, self.after = inputs, device, bf16, after
        self.objective = objective.to(device)
        self.optimizer = make_optimizer(parameter for parameter in objective.parameters() if parameter.requires_grad)

    def run(self) -> None:
        """One step."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.objective(*self.inputs)
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.after is not None:
            self.after()

    def seconds(self, count: int) -> float:
        """Mean time of a step."""
        wait_for(self.device)
        started = time.perf_counter()
        for _ in range(count):
            self.run()
        wait_for(self.device)
        return (time.perf_counter() - started) / count


def random_views(batch_size: int, number: int, side: int, device: str) -> Tensor:
    """[B, number, 3, side, side] in channels-last memory, as batches of images arrive."""
    views = torch.randn(batch_size, number, side, side, 3, device=device)
    return views.permute(0, 1, 4, 2, 3)


def seconds_in_turns(steps: Mapping[str, Timed], rounds: int, steps_per_round: int) -> dict[str, list[float]]:
    """Seconds a step of each method, one figure a round, after two steps of each that are not counted.

    In each round every method takes its turn, in reverse order every other round, so that a busy machine slows all.
    """
    for step in steps.values():
        step.seconds(2)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds):
        names = list(steps) if round_number % 2 == 0 else list(reversed(steps))
        for name in names:
            seconds[name].append(steps[name].seconds(steps_per_round))
    return seconds


def step_cost_rows(seconds: Mapping[str, Sequence[float]], base: str, targets: Mapping[str, float | None]) -> list[Row]:
    """For each method of `targets`, the ratios of its seconds over the base's in the same round; then all times."""
    rows = [
        row_of(f"{name} / {base}", [own / theirs for own, theirs in zip(seconds[name], seconds[base])], target)
        for name, target in targets.items()
    ]
    return rows + [row_of(f"milliseconds, {name}", [1000 * s for s in values]) for name, values in seconds.items()]


def machine_of(device: str) -> dict[str, str | int]:
    """What the figures were measured on; `device` is cpu or cuda."""
    on_gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_rows(title: str, rows: Sequence[Row], formats: Sequence[str]) -> None:
    """A table of 80 columns; `formats` has a format such as "{:.2f}" for each row."""
    table = Table(title=title, width=80)
    for header in ("", "median", "range", "target"):
        table.add_column(header, justify="left" if not header else "right")
    for row, style in zip(rows, formats, strict=True):
        target = "" if row["target"] is None else style.format(row["target"])
        between = f"{style.format(row['low'])} - {style.format(row['high'])}"
        table.add_row(row["name"], style.format(row["ratio"]), between, target)
    Console(width=80).print(table)


def write_rows(file: Path | None, rows: Sequence[Row], device: str) -> None:
    """Writes {"rows": [...], "machine": {...}}, unless there is no file to write."""
    if file is not None:
        file.write_text(json.dumps({"rows": list(rows), "machine": machine_of(device)}, indent=1) + "\n")
