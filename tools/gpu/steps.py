"""Phase 3: training steps on inputs that lie on the GPU: what each of its means is worth, methods, views.

A figure is images per second, from the median of some rounds of steps; what an encoder alone multiplies gives TFLOP/s.
"""

import contextlib
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import bench_encoders
import torch
import torch.nn.functional as F
from benchmarks import TrainingStep, random_views, seconds_in_turns, wait_for
from ceilings import PRODUCT
from measurements import Phase, Value, run_phase
from recipe_loops import load_recipe
from torch import Tensor, nn

from ssl_equi.data.batch import ViewBatch
from ssl_equi.encoders.compiling import compile_networks
from ssl_equi.encoders.cost import cost_by_name
from ssl_equi.training.devices import prepare_for_device, use_channels_last
from ssl_equi.training.optimisation import make_optimizer, parameter_groups
from ssl_equi.views.makers import views

RATE = 1e-4
MOMENTUM = 0.99
ROUNDS, STEPS_PER_ROUND = 3, 5
MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Means:
    """What of a GPU's means a step uses; `as_runs` are those that every run has."""

    bf16: bool = True
    channels_last: bool = False
    cudnn_benchmark: bool = False
    fused: bool = False
    compiled: bool = False
    as_runs: bool = False


AS_RUNS, COMPILED = Means(as_runs=True), Means(as_runs=True, compiled=True)
OF_SIE = {
    "float32, none of a GPU's means": Means(bf16=False),
    "bf16": Means(),
    "bf16, channels-last alone": Means(channels_last=True),
    "bf16, cuDNN's benchmark alone": Means(cudnn_benchmark=True),
    "bf16, fused optimiser alone": Means(fused=True),
    "bf16, compiled alone": Means(compiled=True),
    "bf16, as it runs": AS_RUNS,
    "bf16, as it runs, compiled": COMPILED,
}


def plain_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=RATE)


def training_step(objective: nn.Module, inputs: tuple[Tensor | None, ...], means: Means, device: str) -> TrainingStep:
    """A method's step with Adam; a momentum target follows."""
    torch.backends.cudnn.benchmark = means.cudnn_benchmark
    if not (means.channels_last or means.as_runs):  # views come in channels-last memory, which cuDNN follows
        inputs = tuple(None if values is None else values.contiguous() for values in inputs)
    if means.as_runs:
        prepare_for_device(objective, torch.device(device))
    elif means.channels_last:
        use_channels_last(objective)
    if means.compiled:
        compile_networks(objective)

    def fused_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return make_optimizer("adam", parameter_groups(objective.parameters(), 0.0), RATE)

    optimizer = fused_adam if means.as_runs or means.fused else plain_adam
    update = getattr(objective, "update_target", None)
    after = None if update is None else partial(update, MOMENTUM)
    return TrainingStep(objective, inputs, optimizer, device=device, bf16=means.bf16, after=after)


def images_per_second(
    phase: Phase, make: Callable[[], TrainingStep], multiplications: int | None = None, shown_kernels: int = 0
) -> Value:
    """Images per second of a step, with its peak of memory; what it holds is freed afterwards.

    Args:
        multiplications: of the encoder for an image; a step has those of the forward pass three times.
        shown_kernels: how many of the kernels that take longest are named.
    """
    torch.compiler.reset()  # code for other shapes would be taken for these, too
    with freed_afterwards(phase):
        step = make()
        views = step.inputs[0]
        assert views is not None
        images = views.shape[0] * views.shape[1]
        rounds, count = (1, 1) if phase.quick else (ROUNDS, STEPS_PER_ROUND)
        (seconds,) = seconds_in_turns({"step": step}, rounds, count).values()
        rate = images / statistics.median(seconds)
        details: dict[str, Any] = {"images a step": images, "ms a step": round(1e3 * statistics.median(seconds), 2)}
        details |= memory(phase) | products(phase, rate, multiplications)
        if shown_kernels:
            details |= largest_shares(step, shown_kernels)
        return Value(rate, details)


def largest_shares(step: TrainingStep, shown: int) -> dict[str, float | str]:
    """Shares of the kernels (on a CPU, the operators) that take longest in a step."""
    try:
        rows = bench_encoders.profile_rows("step", step, shown)
    except RuntimeError as error:  # the step's time is known, and stands without them
        return {"profile": f"failed: {error}"[:200]}
    return {row["name"].removesuffix(", step"): round(row["ratio"], 3) for row in rows}


def memory(phase: Phase) -> dict[str, float]:
    """The most that was allocated since `freed_afterwards` began."""
    return {} if phase.quick else {"peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2)}


def products(phase: Phase, rate: float, multiplications: int | None) -> dict[str, float]:
    """TFLOP/s of the encoder, and their share in the product that phase 0 measured."""
    if multiplications is None:
        return {}
    tflops = rate * 6 * multiplications / 1e12
    ceiling = phase.value_of(PRODUCT, phase=0)
    return {"TFLOP/s": round(tflops, 1)} | ({} if ceiling is None else {"of the ceiling": round(tflops / ceiling, 3)})


@contextlib.contextmanager
def freed_afterwards(phase: Phase) -> Iterator[None]:
    """Counts peak memory from here; on a CPU nothing is compiled, which takes longer there than the rest together."""
    if not phase.quick:
        torch.cuda.reset_peak_memory_stats()
    stance = "force_eager" if phase.quick else "default"
    try:
        with torch.compiler.set_stance(stance):
            yield
    finally:
        gc.collect()
        if not phase.quick:
            torch.cuda.empty_cache()


# ---------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """A recipe's objective at a size, with random inputs of the right shapes."""

    recipe: str
    configuration: str
    image_size: int
    objects: int
    views: int = 2
    actions: tuple[int, ...] = (4,)
    preset: str | None = None
    """Whose augmentations, if not the configuration's."""

    def config(self, quick: bool) -> Any:
        """As named, or with `quick` the recipe's first, which is small."""
        recipe = load_recipe(self.recipe)
        if quick:
            return replace(next(iter(recipe.CONFIGS.values()))(), image_size=32)
        return replace(recipe.CONFIGS[self.configuration](), image_size=self.image_size)

    def step(self, means: Means, phase: Phase) -> TrainingStep:
        """Its training step."""
        config, objects = self.config(phase.quick), 4 if phase.quick else self.objects
        objective = load_recipe(self.recipe).build(config)
        views = random_views(objects, self.views, config.image_size, phase.device)
        inputs: tuple[Tensor | None, ...] = (views,)
        if self.actions:
            inputs = (views, F.normalize(torch.randn(objects, *self.actions, device=phase.device), dim=-1))
        return training_step(objective, inputs, means, phase.device)

    def multiplications(self, phase: Phase) -> int:
        """Of the encoder for an image."""
        config = self.config(phase.quick)
        return cost_by_name(config.encoder, config.image_size, **config.encoder_arguments).multiplications


SIE_256 = Method("sie", "paper", 256, 512)
SIE_128 = Method("sie", "paper", 128, 512)
EQUICAPS_256 = Method("equicaps", "paper", 256, 256)
SEQ_JEPA_128 = Method("seq_jepa", "threediebench", 128, 512, views=4, actions=(3, 4))
AS_THEY_RUN: list[tuple[str, Method, Means, str | None]] = [
    ("SIE 128 px: as it runs", SIE_128, AS_RUNS, ">= 27000"),
    ("EquiCaps 256 px: as it runs", EQUICAPS_256, AS_RUNS, None),
    ("seq-JEPA 128 px, M = 3: as it runs", SEQ_JEPA_128, AS_RUNS, ">= 40000"),
]
ALSO_COMPILED: list[tuple[str, Method, Means, str | None]] = [
    ("SIE 128 px: as it runs, compiled", SIE_128, COMPILED, ">= 45000"),
    ("seq-JEPA 128 px, M = 3: as it runs, compiled", SEQ_JEPA_128, COMPILED, ">= 55000"),
    ("EquiCaps 256 px: as it runs, compiled", EQUICAPS_256, COMPILED, ">= 9000"),
]
SIMCLR_224 = Method("simclr", "imagenet", 224, 128, actions=())
MOCO_224 = Method("moco", "imagenet", 224, 128, actions=())
SIMCLR_64 = Method("simclr", "threediebench", 64, 256, actions=(), preset="simclr_imagenet")
AUGMENTED = (
    ("SimCLR", "ResNet-50 224 px", SIMCLR_224), ("MoCo", "ResNet-50 224 px", MOCO_224),
    ("SimCLR", "ResNet-18 64 px", SIMCLR_64),
)  # fmt: skip


COMPILING_SECONDS = 40.0  # with less left, what is compiled is not begun


def measure_sie(phase: Phase, setups: Iterable[str]) -> None:
    """SIE at 256 pixels with some of the setups."""
    multiplications = SIE_256.multiplications(phase)
    for name in setups:
        means = OF_SIE[name]
        target = {"bf16, as it runs": ">= 7500", "bf16, as it runs, compiled": ">= 12000"}.get(name)
        work = partial(images_per_second, phase, partial(SIE_256.step, means, phase), multiplications)
        if means == COMPILED:
            work = partial(work, shown_kernels=10)
        needs_seconds = COMPILING_SECONDS if means.compiled else 8
        phase.measure(f"SIE 256 px: {name}", "images/s", work, target, needs_seconds)


def measure_methods(phase: Phase, methods: Iterable[tuple[str, Method, Means, str | None]]) -> None:
    """Other methods, each with its target."""
    for title, method, means, target in methods:
        work = partial(images_per_second, phase, partial(method.step, means, phase))
        phase.measure(title, "images/s", work, target, COMPILING_SECONDS if means.compiled else 8)


def measure_augmented(phase: Phase, compiled: bool = False) -> None:
    """Steps of SimCLR and MoCo on views that are there, and how long making such views takes."""
    for title, encoder, method in AUGMENTED:
        size, how = f"{method.image_size} px", ", compiled" if compiled else ""
        step = f"{title} {encoder}: as it runs"
        views, share = (f"{title} {size}: {what}{how}" for what in ("augmented views", "share of augmentation"))
        phase.measure(step, "images/s", partial(images_per_second, phase, partial(method.step, AS_RUNS, phase)))
        work = partial(views_per_second, phase, method, compiled)
        phase.measure(views, "images/s", work, None, COMPILING_SECONDS if compiled else 2)
        step_rate, views_rate = phase.value_of(step), phase.value_of(views)
        if step_rate is not None and views_rate is not None:
            phase.measure(share, "", partial(float, step_rate / (step_rate + views_rate)), "<= 0.15")


def views_per_second(phase: Phase, method: Method, compiled: bool) -> Value:
    """How many augmented views a second a recipe makes of uint8 images that lie on the device.

    Where queueing takes as long as the whole, the host's work is what counts, otherwise the GPU's.
    """
    config = method.config(phase.quick)
    objects, side = 4 if phase.quick else method.objects, config.image_size * 8 // 7
    options = replace(config.views, source="augmented", preset=method.preset or config.views.preset)
    config = replace(config, views=options, batch_size=objects, compile=compiled)
    data: Any = SimpleNamespace(
        name="random", mean_rgb=MEAN_RGB, std_rgb=STD_RGB, train=SimpleNamespace(num_views=1)
    )  # fmt: skip
    process: Any = SimpleNamespace(rank=0, world_size=1)
    make_views = views(config, data, process)
    none = torch.zeros(objects, dtype=torch.int64)
    images = torch.randint(256, (objects, 1, side, side, 3), dtype=torch.uint8)
    latents = torch.zeros(objects, 1, 0)
    batch = ViewBatch(images, latents, None, none, none, none.unsqueeze(1)).to(phase.device)
    queueing, whole = [], []
    for step in range(3 if phase.quick else 12):
        wait_for(phase.device)
        started = time.perf_counter()
        make_views(batch, step)
        queueing.append(time.perf_counter() - started)
        wait_for(phase.device)
        whole.append(time.perf_counter() - started)
    seconds = statistics.median(whole[2:])
    details = {"views": 2 * objects, "ms": round(1e3 * seconds, 2)}
    details["ms to queue them"] = round(1e3 * statistics.median(queueing[2:]), 2)
    return Value(2 * objects / seconds, details | host_waits(phase, partial(make_views, batch, 12)))


def host_waits(phase: Phase, work: Callable[[], object]) -> dict[str, int]:
    """How often the host waits for the GPU in a call, if there is one."""
    if phase.quick:
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    return {"host waits": sum("called a synchronizing" in str(warning.message) for warning in caught)}


def run(phase: Phase) -> None:
    """What runs are like first, then what each of their means is worth."""
    as_it_runs, as_it_runs_compiled = [name for name in OF_SIE if OF_SIE[name].as_runs]
    *eager, compiled_alone = [name for name in OF_SIE if not OF_SIE[name].as_runs]
    measure_sie(phase, [as_it_runs])
    measure_methods(phase, AS_THEY_RUN)
    measure_augmented(phase)
    measure_sie(phase, [*eager, as_it_runs_compiled])
    measure_methods(phase, ALSO_COMPILED)
    measure_augmented(phase, compiled=True)
    measure_sie(phase, [compiled_alone])


if __name__ == "__main__":
    run_phase(run)
