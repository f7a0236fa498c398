"""What a training step costs: the online probes and the wait for data, and what E-SSL and CARE add to their base.

    python tools/bench_step.py                          both, some minutes on two CPU cores
    python tools/bench_step.py --measure loop --device cuda --loop.batch-size 1024 --loop.encoder resnet18
    python tools/bench_step.py --measure methods --device cuda --methods.encoder resnet50 --methods.batch-size 256
    python tools/bench_step.py --measure probe_pass     what features of both views would cost MoCo
    python tools/bench_step.py --measure busy           beside busy programs, with and without bounded spinning
    python tools/bench_step.py --measure setup          the embedded SIE on a CPU, with and without what runs set up
    python tools/bench_step.py --measure published      SIE's ResNet-18 on a CPU, over a plain reading of the paper
    python tools/bench_step.py --measure action_gain    what it costs to see whether actions are used
    python tools/bench_step.py --measure operators      how many operators a step of each recipe gives to a GPU

loop: trains SIE on the embedded set, step by step. Rounds alternate between steps with and without online probes, so
that a busy machine slows both. Shares are of the time of a step without probes; data wait is the share of the loop
that the loader made it wait.

methods: a step is forward, backward and optimiser on normalised random images that lie on the device; making views is
timed by bench_views. SimCLR is the base of all. In each round every method takes its turn, in reverse order every other
round; a ratio is that of one round. Counting pixels alone, E-SSL with four rotations at 96 pixels costs 1 + 4 * 96^2 /
(2 * 224^2) = 1.37 times SimCLR at 224, CARE with two further passes twice as much.

probe_pass: MoCo's online encoder sees view 1 only, and so do the online probes. Ratios are those of steps of MoCo, and
of CARE on MoCo, over the same with one more pass of view 2 without gradient, whose features would be for probes alone.

busy: SIE's loop in processes of its own, alone and beside programs that each want a core all the time. Processes with
the settings of `ssl_equi.runtime.before_torch` take turns with processes that have OpenMP's own; a ratio is that of one
turn of both.

setup and published: the forms of SIE's step in sie_forms.py, a process each, which take turns. A ratio of time is that
of a round of both, and of their shortest rounds, which a busy machine disturbs least; one of memory, of the peaks with
weights, moments, gradients and all that a step allocates.

action_gain: steps of recipes as they are by default, on random views, which measure `action_gain` or don't, taking
turns. Runs measure it at the steps that they log, so the share of a step is a `log_every`-th of what one costs more.

operators: what launches a kernel or a copy in a step of each recipe's loop, as it is by default but for 16 objects a
step, and with augmented views. Needs no GPU; see step_operators.py for what counts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent))

import torch
from benchmarks import (
    MIB,
    Row,
    TrainingStep,
    print_rows,
    random_views,
    row_of,
    seconds_in_turns,
    step_cost_rows,
    wait_for,
    write_rows,
)
from recipe_steps import GainConfig, measure_action_gain
from sie_forms import Form, Sizes
from step_operators import OperatorsConfig, measure_operators
from torch import Tensor, nn

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import normalise_views
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.evaluation.online import OnlineProbes
from ssl_equi.geometry.rotations import relative_quat
from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.objectives.care import CARE, CAREConfig
from ssl_equi.objectives.essl import ESSL, ESSLConfig
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.runtime.before_torch import HUGE_PAGES, SPINNING

TARGET_PROBE_SHARE = 0.02
BASE = "SimCLR"
TARGETS = {"E-SSL": 1.4, "CARE, two passes": 1.15, "CARE, four passes": None}


@dataclass(frozen=True)
class LoopConfig:
    """Sizes of SIE's training loop."""

    batch_size: int = 64
    """Objects in a step, two views each."""
    encoder: str = "strided_cnn_tiny"
    """Any timm name."""
    projector_width: int = 1024
    """Width of SIE's two projectors together."""
    steps_per_round: int = 20
    """Steps in a round; probes train on every fourth."""
    rounds: int = 9
    """Rounds of each kind."""


@dataclass(frozen=True)
class MethodsConfig:
    """Sizes of the steps of SimCLR, E-SSL and CARE."""

    encoder: str = "resnet18"
    """Any timm name."""
    batch_size: int = 8
    """Images in a step, two views each."""
    image_size: int = 224
    """Side of the base's views in pixels."""
    small_size: int = 96
    """Side of E-SSL's rotated views in pixels."""
    projector: tuple[int, ...] = (2048, 2048, 128)
    """Widths of SimCLR's projector; E-SSL's head has the same hidden layers, as on ImageNet."""
    chunk_size: int = 8
    """CARE: images that share augmentations."""
    steps_per_round: int = 2
    """Steps of each method in a round."""
    rounds: int = 9
    """Rounds."""
    bf16: bool = False
    """Run under autocast in bfloat16."""


@dataclass(frozen=True)
class BusyConfig:
    """What the loop runs beside; its sizes are those of loop."""

    programs: tuple[int, ...] = (0, 2)
    """Numbers of other programs that want a core each."""
    turns: int = 3
    """Processes of each kind beside each number of programs."""


@dataclass(frozen=True)
class FormsConfig:
    """How the forms of SIE's step are compared."""

    steps_per_round: int = 2
    """Steps of each form in a round."""
    rounds: int = 9
    """Rounds, after one that is not counted."""
    setup: Sizes = field(default_factory=Sizes)
    """Sizes for setup; the defaults are the embedded configuration's."""
    published: Sizes = field(default_factory=lambda: Sizes("sie_resnet18", 64, 64, (2048, 2048, 2048)))
    """Sizes for published; the default has the paper's widths, with smaller views and fewer objects."""


@dataclass(frozen=True)
class Config:
    """What to measure, and where."""

    measure: Literal[
        "both", "loop", "methods", "probe_pass", "busy", "setup", "published", "action_gain", "operators"
    ] = "both"
    """loop: online probes and waiting for data. methods: E-SSL and CARE over their base. both: these two. probe_pass:
    MoCo without a pass of its encoder for the probes, over MoCo with one. busy: the loop beside other programs. setup:
    SIE's step without and with what runs set up. published: SIE's step as in the paper, over that of runs. action_gain:
    steps that measure whether actions are used. operators: how many a step gives to a GPU."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Sizes of SIE's training loop."""
    methods: MethodsConfig = field(default_factory=MethodsConfig)
    """Sizes of the steps that are compared."""
    busy: BusyConfig = field(default_factory=BusyConfig)
    """What the loop runs beside."""
    forms: FormsConfig = field(default_factory=FormsConfig)
    """Sizes of setup and published, which run on the CPU."""
    gain: GainConfig = field(default_factory=GainConfig)
    """Whose steps measure the gain of their actions."""
    operators: OperatorsConfig = field(default_factory=OperatorsConfig)
    """Whose steps are counted."""
    device: str = "cpu"
    """cpu or cuda."""
    json: Path | None = None
    """Also write the figures to this file."""


# ---------------------------------------------------------------- the loop


class LoopStep:
    """One training step of SIE, and its online probes."""

    def __init__(self, config: LoopConfig, data: DataSource, device: str) -> None:
        torch.manual_seed(0)
        self.data, self.device = data, device
        width = config.projector_width
        encoder = create_encoder(config.encoder, data.train.image_size[0])
        self.objective = SIE(encoder, SIEConfig(projector=(width, width, width))).to(device)
        self.optimizer = torch.optim.Adam(self.objective.parameters(), lr=1e-3)
        parts = self.objective.parts
        self.probes = OnlineProbes(parts["all"].stop, parts, len(data.train.class_names), device=device)

    def run(self, batch: ViewBatch, with_probes: bool) -> None:
        batch = batch.to(self.device)
        assert batch.quat_xyzw is not None
        actions = relative_quat(*batch.quat_xyzw.unbind(1))
        output = self.objective(normalise_views(batch.images, self.data.mean_rgb, self.data.std_rgb), actions)
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if with_probes:
            self.probes.update(output.features, batch.labels, batch.quat_xyzw)


def time_round(step: LoopStep, batches: Iterator[ViewBatch], count: int, with_probes: bool) -> tuple[float, float]:
    """Seconds a step without the wait for data, and seconds of waiting a step."""
    started, waited = time.perf_counter(), 0.0
    for _ in range(count):
        batch = next(batches)
        waited += batch.seconds_waited
        step.run(batch, with_probes)
    wait_for(step.device)
    return (time.perf_counter() - started - waited) / count, waited / count


def measure_loop(config: LoopConfig, device: str) -> list[Row]:
    """Shares of a step of SIE, and its speed."""
    data = open_data("3diebench-p", None, "test", 64)
    step = LoopStep(config, data, device)
    plain, probed, waits = [], [], []
    with stored_loader(data.train, global_batch_size=config.batch_size, seed=0) as loader:
        batches = loader.batches()
        time_round(step, batches, 5, with_probes=True)  # warms up
        for _ in range(config.rounds):
            for seconds, with_probes in ((plain, False), (probed, True)):
                busy, waited = time_round(step, batches, config.steps_per_round, with_probes)
                seconds.append(busy)
                waits.append(waited / (busy + waited))
    shares = [with_probes / without - 1 for without, with_probes in zip(plain, probed, strict=True)]
    return [
        row_of("online probes, share of a step", shares, TARGET_PROBE_SHARE),
        row_of("waiting for data, share of the loop", waits),
        row_of("images a second", [2 * config.batch_size / seconds for seconds in plain]),
        row_of("milliseconds a step", [1000 * seconds for seconds in plain]),
    ]


# ---------------------------------------------------------------- the methods


def make_steps(config: MethodsConfig, device: str) -> dict[str, TrainingStep]:
    """A step of each method, all on the same views."""

    def base() -> SimCLR:
        return SimCLR(create_encoder(config.encoder, config.image_size), SimCLRConfig(projector=config.projector))

    def step(objective: nn.Module, *inputs: Tensor | None) -> TrainingStep:
        return TrainingStep(objective, inputs, momentum_sgd, device=device, bf16=config.bf16)

    torch.manual_seed(0)
    views, shared_views = (random_views(config.batch_size, 2, config.image_size, device) for _ in range(2))
    small_views = random_views(config.batch_size, 4, config.small_size, device)
    elements = torch.arange(4, device=device).repeat(config.batch_size, 1)
    essl = ESSLConfig(hidden_widths=config.projector, relu_after_last_hidden=False)
    four_passes = CAREConfig(chunk_size=config.chunk_size)
    two_passes = CAREConfig(chunk_size=config.chunk_size, reuse_views=True)
    return {
        BASE: step(base(), views),
        "E-SSL": step(ESSL(base(), essl), views, None, small_views, elements),
        "CARE, two passes": step(CARE(base(), two_passes), views),
        "CARE, four passes": step(CARE(base(), four_passes), views, None, shared_views),
    }


def momentum_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def measure_methods(config: MethodsConfig, device: str) -> list[Row]:
    """Ratios of step times over the base's in the same round, and the times."""
    seconds = seconds_in_turns(make_steps(config, device), config.rounds, config.steps_per_round)
    return step_cost_rows(seconds, BASE, TARGETS)


# ---------------------------------------------------------------- MoCo, and a pass for the probes


class MoCoWithProbePass(MoCo):
    """MoCo whose online encoder also sees view 2, for nothing but its features."""

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        with torch.no_grad():
            self.encoder(views[:, 1])
        return super().forward(views, actions)


def measure_probe_pass(config: MethodsConfig, device: str) -> list[Row]:
    """Ratios of steps without over steps with the pass in the same round, and the times."""

    def step(objective_class: type[MoCo], with_care: bool) -> TrainingStep:
        encoder = create_encoder(config.encoder, config.image_size)
        moco = objective_class(encoder, MoCoConfig(queue_size=64 * config.batch_size, projector=config.projector))
        objective = CARE(moco, CAREConfig(chunk_size=config.chunk_size)) if with_care else moco
        inputs = (views, None, shared_views) if with_care else (views,)
        return TrainingStep(objective, inputs, momentum_sgd, device=device, bf16=config.bf16)

    torch.manual_seed(0)
    views, shared_views = (random_views(config.batch_size, 2, config.image_size, device) for _ in range(2))
    steps = {
        f"{name}{end}": step(objective_class, with_care)
        for name, with_care in (("MoCo", False), ("CARE on MoCo", True))
        for end, objective_class in (("", MoCo), (" and pass", MoCoWithProbePass))
    }
    seconds = seconds_in_turns(steps, config.rounds, config.steps_per_round)
    of_moco, of_care = (step_cost_rows(seconds, f"{name} and pass", {name: 1.0}) for name in ("MoCo", "CARE on MoCo"))
    return [of_care[0], *of_moco]  # the times are in both


# ---------------------------------------------------------------- a busy machine


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Other programs that want a core each, all the time."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def images_per_second_of_a_process(config: LoopConfig, spinning: dict[str, str]) -> float:
    """SIE's loop in a process whose environment says how threads wait."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", *SPINNING)}
    sizes = ("batch_size", "encoder", "projector_width", "steps_per_round", "rounds")
    options = [text for name in sizes for text in (f"--loop.{name.replace('_', '-')}", str(getattr(config, name)))]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "loop.json"
        command = [sys.executable, __file__, "--measure", "loop", *options, "--json", str(report)]
        subprocess.run(command, env=environment | spinning, check=True, stdout=subprocess.DEVNULL)
        rows = json.loads(report.read_text())["rows"]
    return next(row["ratio"] for row in rows if row["name"] == "images a second")


def measure_busy(loop: LoopConfig, config: BusyConfig) -> list[Row]:
    """Images per second with bounded spinning over those with OpenMP's own, and both, per number of other programs."""
    rows: list[Row] = []
    for count in config.programs:
        with busy_programs(count):
            turns = [
                (images_per_second_of_a_process(loop, {}), images_per_second_of_a_process(loop, SPINNING))
                for _ in range(config.turns)
            ]
        beside = f"beside {count} programs"
        rows.append(row_of(f"bounded / OpenMP's own, {beside}", [bounded / own for own, bounded in turns]))
        rows.append(row_of(f"images per second, OpenMP's own, {beside}", [own for own, _ in turns]))
        rows.append(row_of(f"images per second, bounded, {beside}", [bounded for _, bounded in turns]))
    return rows


# ---------------------------------------------------------------- forms of SIE's step


class FormProcess:
    """A form of SIE's step in a process of its own."""

    def __init__(self, form: Form, sizes: Sizes, steps_per_round: int) -> None:
        script = str(Path(__file__).with_name("sie_forms.py"))
        command = [sys.executable, script, "--form", form, "--steps-per-round", str(steps_per_round)]
        for name, value in asdict(sizes).items():
            values = value if isinstance(value, tuple) else (value,)
            command += [f"--sizes.{name.replace('_', '-')}", *map(str, values)]
        environment = os.environ | {HUGE_PAGES: "1" if form == "as_runs" else "0"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peak_bytes = int(self._answer())

    def seconds(self) -> float:
        """Mean time of a step in one round."""
        assert self.process.stdin is not None
        print("round", file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def measure_forms(slower: Form, sizes: Sizes, config: FormsConfig, targets: tuple[float, float | None]) -> list[Row]:
    """Ratios of a form's time and memory over those of the step that runs have, and what both are."""
    seconds: dict[Form, list[float]] = {slower: [], "as_runs": []}
    processes: dict[Form, FormProcess] = {}
    try:
        for form in seconds:
            processes[form] = FormProcess(form, sizes, config.steps_per_round)
        for _ in range(config.rounds + 1):
            for form, process in processes.items():
                seconds[form].append(process.seconds())
    finally:
        for process in processes.values():
            process.end()
    return form_rows(
        slower,
        {form: values[1:] for form, values in seconds.items()},
        {form: process.peak_bytes for form, process in processes.items()},
        2 * sizes.batch_size,
        targets,
    )


def form_rows(
    slower: Form,
    seconds: dict[Form, list[float]],
    peaks: dict[Form, int],
    images: int,
    targets: tuple[float, float | None],
) -> list[Row]:
    """The rows of two forms' rounds and peaks of memory; targets are of time and of memory."""
    pair = f"{slower} / as_runs"
    ratios = [theirs / own for theirs, own in zip(seconds[slower], seconds["as_runs"], strict=True)]
    return [
        row_of(f"time, {pair}", ratios, targets[0]),
        row_of(f"shortest rounds, {pair}", [min(seconds[slower]) / min(seconds["as_runs"])], targets[0]),
        row_of(f"peak memory, {pair}", [peaks[slower] / peaks["as_runs"]], targets[1]),
        *(row_of(f"images per second, {form}", [images / s for s in values]) for form, values in seconds.items()),
        *(row_of(f"peak memory in MiB, {form}", [peak / MIB]) for form, peak in peaks.items()),
    ]


def main(config: Config) -> None:
    rows: list[Row] = []
    if config.measure in ("both", "loop"):
        found = measure_loop(config.loop, config.device)
        title = f"SIE, {config.loop.encoder}, {config.loop.batch_size} pairs a step, {config.device}"
        print_rows(title, found, ["{:.1%}" if "share" in row["name"] else "{:,.0f}" for row in found])
        rows += found
    if config.measure in ("both", "methods"):
        sizes = config.methods
        found = measure_methods(sizes, config.device)
        title = f"{sizes.encoder}, {sizes.batch_size} x 2 views of {sizes.image_size} px, {config.device}"
        print_rows(title, found, ["{:,.0f}" if "milliseconds" in row["name"] else "{:.2f}" for row in found])
        rows += found
    if config.measure == "probe_pass":
        sizes = config.methods
        rows = measure_probe_pass(sizes, config.device)
        title = f"{sizes.encoder}, {sizes.batch_size} x 2 views of {sizes.image_size} px, {config.device}"
        print_rows(title, rows, ["{:,.0f}" if "milliseconds" in row["name"] else "{:.2f}" for row in rows])
    if config.measure == "busy":
        rows = measure_busy(config.loop, config.busy)
        title = f"SIE, {config.loop.encoder}, {config.loop.batch_size} pairs a step, {config.device}"
        print_rows(title, rows, ["{:,.0f}" if "second" in row["name"] else "{:.2f}" for row in rows])
    if config.measure in ("setup", "published"):
        published = config.measure == "published"
        sizes = config.forms.published if published else config.forms.setup
        targets = (1.5, 2.0) if published else (1.25, None)
        rows = measure_forms("published" if published else "plain", sizes, config.forms, targets)
        title = f"SIE, {sizes.encoder}, {sizes.batch_size} x 2 views of {sizes.image_size} px, cpu"
        print_rows(title, rows, ["{:.2f}" if "/" in row["name"] else "{:,.0f}" for row in rows])
    if config.measure == "action_gain":
        rows = measure_action_gain(config.gain, config.device)
        print_rows(f"measuring whether actions are used, {config.device}", rows, ["{:.2%}"] * len(rows))
    if config.measure == "operators":
        rows = measure_operators(config.operators)
    write_rows(config.json, rows, config.device)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
