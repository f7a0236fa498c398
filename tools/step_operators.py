"""Counts the operators that a training step of a recipe gives to a GPU; needs no GPU.

Small steps take a GPU less time than the host takes to launch them, so their number is what they cost. An operator is
an ATen operator beneath autograd that works on a tensor of the device: it launches at least one kernel or copy. Left
out are views (transpose, slices, detach), which launch nothing, allocations without a value, and what the host computes
for itself, such as the parameters of augmentations. A fused optimiser, or a call for a list of tensors (`_foreach_*`),
is one operator.

The recipe's own loop runs on PyTorch's device `meta`, which has shapes and no values: the code takes the ways that it
takes on a GPU, in which no step needs to know a value, forwards and backwards.
"""

import contextlib
import functools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from benchmarks import Row, launches, row_of
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_equi.data.batch import ViewBatch
from ssl_equi.errors import UserError
from ssl_equi.objectives.base import Objective
from ssl_equi.runtime import cuda_graphs
from ssl_equi.training import run
from ssl_equi.training.ending import Ending
from ssl_equi.training.pretraining import Pretraining
from ssl_equi.training.processes import Processes
from ssl_equi.training.run import Run

sys.path.insert(0, str(Path(__file__).parent / "gpu"))

from recipe_loops import NEVER, configured, load_recipe, run_loop

aten = torch.ops.aten
DEVICE = torch.device("meta")
FUSED_OPTIMISERS = {aten._fused_adam_, aten._fused_adamw_, aten._fused_sgd_}
COUNTED_STEP = 1
"""The second: the optimiser has its moments, nothing is logged, and the online probes, which train in every fourth
step, do nothing. Of captured steps it is the one after, the first that follows the capture."""
PHASES = ("batch", "views", "forward", "backward", "optimiser", "target")
"""batch: copies to the device. views: from it to what the objective is given. target: what follows the optimiser. Of
captured steps, the optimiser's phase has the graph, and the copies of what it is given."""
AUGMENTED = ("--views.source", "augmented")
WITH_ACTIONS = (*AUGMENTED, "--actions", "augmentation")
RECIPES = (
    "sie", "equicaps", "capsie", "seq_jepa", "seq_jepa_saccades", "conv_jepa", "essl", "care", "equimod", "sen",
    "conditional_byol", "augself", "simclr", "moco", "byol", "simsiam", "barlow_twins", "vicreg", "vicreg_traj",
    "supervised",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, ...]] = {name: (name,) for name in RECIPES} | {
    "sie, augmented": ("sie", *WITH_ACTIONS),
    "seq_jepa, augmented": ("seq_jepa", "--views.preset", "seq_jepa", *WITH_ACTIONS),
    "simclr, augmented": ("simclr", *AUGMENTED),
    "byol, augmented": ("byol", *AUGMENTED),
    "sie, captured": ("sie", "--cuda-graph"),
    "byol, captured": ("byol", "--cuda-graph"),
    "equicaps, captured": ("equicaps", "--cuda-graph"),
    "seq_jepa, captured": ("seq_jepa", "--cuda-graph"),
    "simclr, captured": ("simclr", "--cuda-graph"),
}
"""Recipes as they are by default, some with augmented views, and some as CUDA graphs: name and options."""


@dataclass(frozen=True)
class OperatorsConfig:
    """Whose steps are counted, and how large they are."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """Names of recipes; also NAME, augmented and NAME, captured."""
    batch_size: int = 16
    """Objects in a step."""
    data_dir: Path | None = None
    """A set in place of the embedded one."""
    largest: int = 0
    """Also prints the operators that come most often in each variant, so many of them."""


class OperatorCounter(TorchDispatchMode):
    """Counts, by phase of a step, the operators on tensors of the device while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "views"
        self.counts: dict[str, Counter[str]] = {phase: Counter() for phase in PHASES}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        there = any(tensor.device == DEVICE for tensor in tensors) or kwargs.get("device") == DEVICE
        if there and launches(operation):
            self.counts[self.phase][operation.overloadpacket.__name__] += 1
        if there and operation.overloadpacket in FUSED_OPTIMISERS:
            return None  # without values there is nothing to change
        result = operation(*args, **kwargs)
        if there and operation.overloadpacket is aten.convolution and args[0].ndim == 4:
            # As cuDNN does; the device's own shape function hands out the default layout.
            return result.contiguous(memory_format=torch.channels_last)
        return result

    @contextlib.contextmanager
    def counting_as(self, phase: str) -> Iterator[None]:
        """What happens inside belongs to this phase."""
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def watch(self, owner: type, method: str, phase: str, then: str | None = None) -> Any:
        """Lets the calls of a method belong to a phase, and what follows them to another."""
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def watched(*arguments: Any, **options: Any) -> Any:
            with self.counting_as(phase):
                result = plain(*arguments, **options)
            self.phase = then or self.phase
            return result

        return mock.patch.object(owner, method, watched)


class _GraphOfOne:
    """In place of `cuda_graphs.CudaGraph`: launching it is one operator."""

    def __init__(self, device: torch.device) -> None: ...

    def run(self, call: Callable[[], Any]) -> Any:
        return call()

    def capture(self, call: Callable[[], Any]) -> Any:
        return call()

    def replay(self) -> None:
        torch.zeros((), device=DEVICE)


class _CountedError(Exception):
    """Ends the loop after the step that was counted."""


def count_operators(variant: str, config: OperatorsConfig = OperatorsConfig()) -> dict[str, Counter[str]]:
    """The operators of one step, by phase: name and number.

    Raises:
        UserError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"--operators.variants has {variant!r}: choose from {'; '.join(VARIANTS)}")
    counter = OperatorCounter()
    name, *options = VARIANTS[variant]
    counted_step = COUNTED_STEP + ("--cuda-graph" in options)

    def on_step(step: int, batch: ViewBatch) -> None:
        counter.phase = "views"
        if step == counted_step:
            for counts in counter.counts.values():
                counts.clear()
        elif step > counted_step:
            raise _CountedError

    recipe = load_recipe(name)
    data = [] if config.data_dir is None else ["--data-dir", str(config.data_dir)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(runs_on_meta())
        for owner, method, phase, then in (
            (ViewBatch, "to", "batch", None),
            (Objective, "__call__", "forward", None),
            (Run, "backward", "backward", None),
            (Pretraining, "train_step", "optimiser", "target"),
        ):
            stack.enter_context(counter.watch(owner, method, phase, then))
        stack.enter_context(counter)
        arguments = [
            *options, *data, "--batch-size", str(config.batch_size), "--epochs", "4", "--log-every", NEVER,
            "--save-every", NEVER, "--loader-threads", "1", "--out", f"{folder}/run",
        ]  # fmt: skip
        with contextlib.suppress(_CountedError):
            run_loop(recipe, configured(recipe, arguments), on_step)
            raise AssertionError(f"{variant} ended before step {counted_step + 1}")
    return counter.counts


@contextlib.contextmanager
def runs_on_meta() -> Iterator[None]:
    """Lets runs take the device `meta`, and leave out what comes after the last step."""
    start = Run.__init__

    def start_on_meta(started: Run, *arguments: Any) -> None:
        start(started, *arguments)
        started.device = started.processes.device = DEVICE

    supported = _foreach_utils._get_fused_kernels_supported_devices()
    with (
        mock.patch.object(Run, "__init__", start_on_meta),
        mock.patch.object(Accelerator, "device", DEVICE),
        mock.patch.object(run, "check_cuda_graph", lambda *_: None),
        mock.patch.object(cuda_graphs, "CudaGraph", _GraphOfOne),
        mock.patch.object(cuda_graphs, "ORDINARY_CALLS", 1),
        mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()),  # it doesn't know the device
        mock.patch.object(Ending, "check", lambda ending: None),
        mock.patch.object(Processes, "say", lambda processes, message: None),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: [*supported, DEVICE.type]),
    ):
        yield


def measure_operators(config: OperatorsConfig) -> list[Row]:
    """Counts and prints; returns a row for the step of each variant, and one for each of its phases."""
    title = f"operators that a step launches, {config.batch_size} objects"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("", *PHASES, "step"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    rows, largest = [], []
    for variant in config.variants:
        operators = count_operators(variant, config)
        counts = {phase: of_phase.total() for phase, of_phase in operators.items()}
        table.add_row(variant, *(str(count or "") for count in counts.values()), str(sum(counts.values())))
        rows.append(row_of(f"{variant}, step", [sum(counts.values())]))
        rows += [row_of(f"{variant}, {phase}", [count]) for phase, count in counts.items()]
        for phase, of_phase in operators.items():
            named = ", ".join(f"{number} {name}" for name, number in of_phase.most_common(config.largest))
            largest += [f"{variant}, {phase}: {named}"] if named else []
    console = Console(width=80)
    console.print(table)
    for line in largest:
        console.print(line)
    return rows
