"""Phase 7: octic vision transformers against the dense one: steps, their kernels, ways to compile, single products."""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import bench_encoders
import torch
from benchmarks import wait_for
from measurements import Phase, Value, run_phase
from steps import COMPILING_SECONDS, freed_afterwards, memory, products
from torch import Tensor

from ssl_equi.runtime.cuda_graphs import CapturedFunction

DENSE, OCTIC, HYBRID = (f"{kind}vit_large_patch16_224" for kind in ("", "octic_", "hybrid_octic_"))
VIT_BATCH = 64
ROUNDS, STEPS_PER_ROUND = 3, 5
WARM_UP_STEPS = 4  # a CUDA graph is captured in one of them

COMPILERS: dict[str, dict[str, Any]] = {
    "graphs": {"mode": "reduce-overhead"},
    "combined loops": {"options": {"combo_kernels": True}},
}
"""Other ways to compile than the package's."""
KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "splitk", "cublas", "bmm", "mm"),
    "loops": ("triton_", "cpp_fused", "compiled"),
    "copies": ("memcpy", "memset", "copy", "cat", "fill"),
}
"""Parts of kernels' names, in small letters, by what they do; the first that fits counts."""


def transformers(phase: Phase) -> tuple[bench_encoders.Config, dict[str, bench_encoders.Contestant]]:
    """Sizes, and the encoders by name; with `quick` tiny ones under the names of the large ones."""
    case: bench_encoders.CaseName = "vit_tiny" if phase.quick else "vit_large"
    size, batch = (32, 2) if phase.quick else (224, VIT_BATCH)
    config = bench_encoders.Config(cases=(case,), batch_size=batch, image_size=size, device=phase.device)
    return config, {c.name.replace("vit_tiny", "vit_large"): c for c in bench_encoders.CASES[case]}


# ---------------------------------------------------------------- steps


def measure_steps(phase: Phase) -> None:
    """Compiled in bf16, with the kernels of a step, and how many times faster than the dense one."""
    config, contestants = transformers(phase)
    for name in (DENSE, HYBRID, OCTIC):
        work = partial(images_per_second, phase, contestants[name], config, {}, shown_kernels=12)
        phase.measure(f"{name}: compiled", "images/s", work, None, COMPILING_SECONDS)
    for name, target in ((HYBRID, ">= 1.3"), (OCTIC, ">= 1.7")):
        compare(phase, name, "compiled", target)


def measure_compilers(phase: Phase) -> None:
    """The same compiled in other ways, one at a time."""
    config, contestants = transformers(phase)
    for compiler, options in COMPILERS.items():
        for name in (HYBRID, OCTIC, DENSE):
            work = partial(images_per_second, phase, contestants[name], config, options)
            phase.measure(f"{name}: {compiler}", "images/s", work, None, COMPILING_SECONDS)
            compare(phase, name, compiler)


def measure_captured(phase: Phase) -> None:
    """The same with a step as one CUDA graph, which a slow host launches at once."""
    config, contestants = transformers(phase)
    for name in (HYBRID, OCTIC, DENSE):
        work = partial(images_per_second, phase, contestants[name], config, {}, captured=not phase.quick)
        phase.measure(f"{name}: one graph", "images/s", work, None, COMPILING_SECONDS)
        compare(phase, name, "one graph")


def measure_large_batches(phase: Phase) -> None:
    """Twice the images a step: half as many launches an image."""
    config, contestants = transformers(phase)
    large = replace(config, batch_size=2 * config.batch_size)
    for name in (DENSE, HYBRID, OCTIC):
        work = partial(images_per_second, phase, contestants[name], large, {})
        phase.measure(f"{name}: compiled, twice the batch", "images/s", work, None, COMPILING_SECONDS)


def compare(phase: Phase, name: str, compiler: str, target: str | None = None) -> None:
    """How many times faster an encoder is than the dense one, as the package compiles it."""
    rate, dense = phase.value_of(f"{name}: {compiler}"), phase.value_of(f"{DENSE}: compiled")
    if rate is not None and dense is not None:
        how = "" if compiler == "compiled" else f", {compiler}"
        phase.measure(f"{name} over {DENSE}{how}", "times", partial(float, rate / dense), target)


def images_per_second(
    phase: Phase,
    contestant: bench_encoders.Contestant,
    config: bench_encoders.Config,
    compiler: dict[str, Any],
    shown_kernels: int = 0,
    captured: bool = False,
) -> Value:
    """Images per second of steps that are queued without a wait in between, as runs do it, with peak and TFLOP/s."""
    torch.compiler.reset()
    with freed_afterwards(phase):
        step = bench_encoders.Step(contestant, config)
        step.compile_blocks(**compiler)
        if captured:
            step.run = CapturedFunction(step.run, phase.device)  # type: ignore[method-assign]
        for _ in range(0 if phase.quick else WARM_UP_STEPS):
            step.run()
        rounds, count = (1, 1) if phase.quick else (ROUNDS, STEPS_PER_ROUND)
        seconds = [seconds_a_step(step, count) for _ in range(rounds)]
        queueing, whole = (statistics.median(values) for values in zip(*seconds))
        with torch.device("meta"):
            cost = bench_encoders.encoder_cost(contestant.make(config.image_size), config.image_size)
        details = {"ms a step": round(1e3 * whole, 2), "ms to queue a step": round(1e3 * queueing, 2)} | memory(phase)
        details |= products(phase, config.batch_size / whole, cost.multiplications)
        if shown_kernels:
            details |= kernels(step, shown_kernels)
        return Value(config.batch_size / whole, details)


def seconds_a_step(step: bench_encoders.Step, count: int) -> tuple[float, float]:
    """What queueing a step takes the host, and what a step takes in all; where they are equal the host is the limit."""
    wait_for(step.device)
    started = time.perf_counter()
    for _ in range(count):
        step.run()
    queued = time.perf_counter() - started
    wait_for(step.device)
    return queued / count, (time.perf_counter() - started) / count


def kernels(step: bench_encoders.Step, shown: int) -> dict[str, Any]:
    """How many kernels a step launches (on a CPU: operators), what they take by kind, and the longest ones."""
    on_gpu = step.device.startswith("cuda")
    kinds = torch.profiler.ProfilerActivity
    try:
        with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU]) as profile:
            step.run()
            wait_for(step.device)
    except RuntimeError as error:  # the step's time is known, and stands without them
        return {"profile": f"failed: {error}"[:200]}
    milliseconds: Counter[str] = Counter()
    launches = 0
    for event in profile.key_averages():
        if not on_gpu:
            milliseconds[event.key] += event.self_cpu_time_total / 1e3
        elif event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            milliseconds[event.key] += event.self_device_time_total / 1e3
        else:
            continue
        launches += event.count
    by_kind: Counter[str] = Counter()
    for name, value in milliseconds.items():
        by_kind[kind_of(name)] += value
    longest = {f"ms of {name[:70]}": round(value, 3) for name, value in milliseconds.most_common(shown)}
    totals = {f"ms of {kind}": round(value, 2) for kind, value in by_kind.most_common()}
    return {"kernels a step": launches, "ms of all kernels": round(milliseconds.total(), 2)} | totals | longest


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "others")


# ---------------------------------------------------------------- single products


def measure_products(phase: Phase) -> None:
    """The first linear layer of an octic block's perceptron: ways to multiply, each in bf16, forward and backward.

    As it is: four products of width C and two of width 2 C, on slices of tokens. The others: on contiguous copies, as
    if they cost nothing; as four products of width 2 C, a third more multiplications; with the sums over tokens that
    weights' gradients are split into eight, since few blocks of the GPU would share them otherwise.
    """
    tokens, width = (64, 16) if phase.quick else (VIT_BATCH * 197, 128)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, device=phase.device).to(torch.bfloat16)

    x, gradient = values(tokens, 8 * width), values(tokens, 32 * width)
    ones, twos = values(4, width, 4 * width), values(1, 2 * width, 8 * width).expand(2, -1, -1)
    layouts = {"slices": slices, "contiguous": lambda *given: [part.contiguous() for part in slices(*given)]}
    for layout, split in layouts.items():
        pairs = list(zip(split(x), split(gradient), (ones, twos)))
        time_products(phase, f"octic linear layer, {layout}", pairs)
    x_pairs, gradient_pairs = (part.unflatten(1, (4, -1)).transpose(0, 1) for part in (x, gradient))
    wide = values(4, 2 * width, 8 * width)
    time_products(phase, "octic linear layer, four products of blocks", [(x_pairs, gradient_pairs, wide)])
    dense = values(1, 8 * width, 32 * width)
    time_products(phase, "dense linear layer", [(x.unsqueeze(0), gradient.unsqueeze(0), dense)])


def slices(tokens: Tensor) -> list[Tensor]:
    """Ones [4, M, C] and twos [2, M, 2 C] of [M, 8 C]."""
    ones, twos = tokens.chunk(2, dim=1)
    return [ones.unflatten(1, (4, -1)).transpose(0, 1), twos.unflatten(1, (2, -1)).transpose(0, 1)]


def time_products(phase: Phase, name: str, triples: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Microseconds of the forward pass and of both gradients, of all (inputs, gradients, weights) together."""
    works: dict[str, Callable[[], object]] = {
        "forward": lambda: [torch.bmm(x, weight) for x, _, weight in triples],
        "inputs' gradients": lambda: [torch.bmm(gradient, weight.mT) for _, gradient, weight in triples],
        "weights' gradients": lambda: [torch.bmm(x.mT, gradient) for x, gradient, _ in triples],
        "weights' gradients, split": lambda: [split_product(x, gradient, 8) for x, gradient, _ in triples],
    }

    def work() -> Value:
        details = {title: round(1e6 * median_seconds(once, phase), 1) for title, once in works.items()}
        return Value(sum(value for title, value in details.items() if not title.endswith("split")), details)

    phase.measure(name, "us", work)


def split_product(x: Tensor, gradient: Tensor, parts: int) -> Tensor:
    """The sum over tokens in parts: one batched product of contiguous inputs, of slices one for each batch."""
    if x.is_contiguous() and gradient.is_contiguous():
        pieces = [values.unflatten(1, (parts, -1)).flatten(0, 1) for values in (x, gradient)]
        return torch.bmm(pieces[0].mT, pieces[1]).unflatten(0, (len(x), parts)).sum(dim=1)
    pairs = zip(x, gradient)
    return torch.stack([torch.bmm(*_pieces(one, other, parts)).sum(dim=0) for one, other in pairs])


def _pieces(x: Tensor, gradient: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    return x.unflatten(0, (parts, -1)).mT, gradient.unflatten(0, (parts, -1))


def median_seconds(once: Callable[[], object], phase: Phase) -> float:
    """Of one call among many in a queue."""
    count, seconds = (1, []) if phase.quick else (20, [])
    for _ in range(4):
        wait_for(phase.device)
        started = time.perf_counter()
        for _ in range(count):
            once()
        wait_for(phase.device)
        seconds.append((time.perf_counter() - started) / count)
    return statistics.median(seconds[1:])


# ---------------------------------------------------------------- results


def measure_compilation(phase: Phase) -> None:
    """Whether compiling changes the results of the same transformers in float32."""
    config, contestants = transformers(phase)
    small = replace(config, batch_size=max(2, config.batch_size // 8))
    limit = f"<= {bench_encoders.COMPILATION_TOLERANCE:g}"
    for name in (HYBRID, OCTIC, DENSE):
        work = partial(compilation_difference, phase, contestants[name], small)
        phase.measure(f"{name}: difference by compiling, float32", "", work, limit, COMPILING_SECONDS)


def compilation_difference(phase: Phase, contestant: bench_encoders.Contestant, config: bench_encoders.Config) -> float:
    torch.compiler.reset()
    with freed_afterwards(phase):
        step = bench_encoders.Step(contestant, config)
        step.compile_blocks()
        return step.compilation_difference()


def run(phase: Phase) -> None:
    measure_steps(phase)
    measure_captured(phase)
    measure_products(phase)
    measure_compilers(phase)
    measure_large_batches(phase)
    measure_compilation(phase)


if __name__ == "__main__":
    run_phase(run)
