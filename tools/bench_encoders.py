"""Encoders with symmetry built in against ordinary ones: multiplications and time, side by side in one run.

    python tools/bench_encoders.py --threads 1                        octic blocks and small octic ViTs, on the CPU
    python tools/bench_encoders.py --cases vit_huge --rounds 0        multiplications only
    python tools/bench_encoders.py --cases vit_large vit_huge --device cuda --batch-size 64
    python tools/bench_encoders.py --cases group_resnet --passes inference --threads 1

training: forward plus backward, in train mode. inference: forward in eval mode, without gradients; group ResNets are
timed as they train and baked to ordinary layers as well. On CUDA everything runs under autocast in bfloat16.

Transformers are compiled block by block, ours and timm's alike, and their outputs and gradients are compared with
uncompiled ones, in float32: in bfloat16 a deep network with random weights differs by its rounding alone. Every round
all encoders of a case take their turn, in reverse order every other round; a ratio is the ordinary encoder's time over
the other's in the same round, so that larger is better. On the CPU targets are for the process's CPU time, which other
work on the machine disturbs least; on CUDA for the wall clock.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded; keeps its profiler quiet

import torch
from benchmarks import Row, TrainingStep, largest_relative_difference, print_rows, row_of, wait_for, write_rows
from torch import Tensor, nn

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.cost import encoder_cost
from ssl_equi.encoders.octic.layers import OcticBlock
from ssl_equi.encoders.square.convolutions import bake
from ssl_equi.errors import UserError

Passes = Literal["training", "inference"]
CaseName = Literal[
    "block_base", "vit_tiny", "vit_small", "vit_large", "vit_huge", "group_resnet", "shift_equivariant_vit", "averaging"
]
COMPILATION_TOLERANCE = 1e-4
"""Largest difference that compiling may make in float32, relative to the largest value."""
PROFILED_STEPS = 3


@dataclass(frozen=True)
class Config:
    """What to measure, and where."""

    cases: tuple[CaseName, ...] = ("block_base", "vit_small")
    """Which encoders to compare."""
    passes: Passes = "training"
    """training: forward and backward. inference: forward."""
    batch_size: int = 8
    """Images in a step."""
    image_size: int = 224
    """Side of the images in pixels; a block sees as many tokens as patches of 16 pixels fill them, and one more."""
    rounds: int = 11
    """Timed rounds, after two that are not counted; 0 only counts multiplications."""
    compile: bool = True
    """Compile transformers block by block."""
    profile: bool = False
    """Also show which operators the time goes to."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    json: Path | None = None
    """Also write the table to this file."""


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Contestant:
    """An encoder, or a block of one; the first of a case is the ordinary one."""

    name: str
    """timm's, or what to call it."""
    make: Callable[[int], nn.Module]
    """From the image size to the module."""
    takes: Literal["images", "tokens"] = "images"
    """What goes in."""
    trains: bool = True
    """Whether it can be trained; what can't is left out of training."""
    cpu_target: float | None = None
    """How many times faster than the ordinary one it should be when it trains, in CPU time."""
    cuda_target: float | None = None
    """Likewise on CUDA, by the wall clock."""


def encoder(name: str, cpu_target: float | None = None, cuda_target: float | None = None) -> Contestant:
    """The encoder of a timm name."""
    return Contestant(name, partial(create_encoder, name), cpu_target=cpu_target, cuda_target=cuda_target)


def baked(name: str) -> Contestant:
    """A group ResNet as ordinary layers, for inference."""
    return Contestant(f"{name}, baked", lambda image_size: bake(create_encoder(name, image_size)), trains=False)


class SingleBlock(nn.Module):
    """One block in a list, as encoders have them."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks[0](tokens)


BLOCK_WIDTH, BLOCK_HEADS = 768, 12


def dense_block(image_size: int) -> nn.Module:
    from timm.models.vision_transformer import Block

    return SingleBlock(Block(BLOCK_WIDTH, BLOCK_HEADS, qkv_bias=True))


def octic_block(image_size: int) -> nn.Module:
    return SingleBlock(OcticBlock(BLOCK_WIDTH, BLOCK_HEADS))


CASES: dict[CaseName, list[Contestant]] = {
    "block_base": [
        Contestant("Block", dense_block, takes="tokens"),
        Contestant("OcticBlock", octic_block, takes="tokens", cpu_target=3.0),
    ],
    "vit_tiny": [
        encoder("vit_tiny_patch16_224"),
        encoder("octic_vit_tiny_patch16_224"),
        encoder("hybrid_octic_vit_tiny_patch16_224"),
    ],
    "vit_small": [
        encoder("vit_small_patch16_224"),
        encoder("octic_vit_small_patch16_224", cpu_target=2.2),
        encoder("hybrid_octic_vit_small_patch16_224", cpu_target=1.35),
    ],
    "vit_large": [
        encoder("vit_large_patch16_224"),
        encoder("octic_vit_large_patch16_224"),
        encoder("hybrid_octic_vit_large_patch16_224", cuda_target=1.4),
    ],
    "vit_huge": [
        Contestant("vit_huge_patch16_224", partial(create_encoder, "vit_huge_patch14_224", patch_size=16)),
        encoder("octic_vit_huge_patch16_224"),
        encoder("hybrid_octic_vit_huge_patch16_224", cuda_target=1.4),
    ],
    "group_resnet": [
        encoder("resnet18"),
        encoder("c4_resnet18"),
        encoder("d4_resnet18"),
        baked("c4_resnet18"),
        baked("d4_resnet18"),
    ],
    "shift_equivariant_vit": [encoder("vit_small_patch16_224"), encoder("shift_equivariant_vit_small_patch16_224")],
    "averaging": [
        encoder("resnet18"),
        Contestant(
            "resnet18, averaged over quarter turns", partial(create_encoder, "group_averaged", backbone="resnet18")
        ),
    ],
}


# ---------------------------------------------------------------- one step


class Step:
    """A step of one contestant, on random inputs that stay the same."""

    def __init__(self, contestant: Contestant, config: Config) -> None:
        torch.manual_seed(0)
        self.device, self.training = config.device, config.passes == "training"
        self.module = contestant.make(config.image_size).to(config.device).train(self.training)
        self.inputs = random_inputs(contestant, config).to(config.device)
        self.inputs.requires_grad_(self.training and contestant.takes != "images")
        self.output_gradients: Tensor | None = None
        self.bf16 = config.device.startswith("cuda")

    def run(self) -> Tensor:
        """Forward, and backward if it trains; returns the outputs and leaves the gradients."""
        for tensor in (self.inputs, *self.module.parameters()):
            tensor.grad = None
        with torch.set_grad_enabled(self.training), torch.autocast("cuda", torch.bfloat16, enabled=self.bf16):
            outputs: Tensor = self.module(self.inputs)
        if self.training:
            if self.output_gradients is None:
                self.output_gradients = torch.randn_like(outputs)
            outputs.backward(self.output_gradients)
        return outputs

    def results(self) -> dict[str, Tensor]:
        """Outputs and gradients of all parameters of one step."""
        results = {"outputs": self.run().detach().float().flatten()}
        gradients = [parameter.grad.flatten() for parameter in self.module.parameters() if parameter.grad is not None]
        return results | {"gradients": torch.cat(gradients)} if gradients else results

    def compile_blocks(self, **options: Any) -> bool:
        """Compiles block by block, with options of `torch.compile`; returns whether there are blocks."""
        blocks = getattr(self.module, "blocks", None)
        for block in blocks or ():
            block.compile(**options)
        return blocks is not None

    def compilation_difference(self) -> float:
        """Largest relative difference that compiling makes in float32.

        Raises:
            RuntimeError: it is too large.
        """
        precision, self.bf16 = self.bf16, False
        try:
            with torch.compiler.set_stance("force_eager"):
                eager = self.results()
            difference = largest_relative_difference(eager, self.results())
        finally:
            self.bf16 = precision
        if not difference <= COMPILATION_TOLERANCE:
            raise RuntimeError(f"compiling changes results by {difference:.1e}, more than {COMPILATION_TOLERANCE:.0e}")
        return difference


def random_inputs(contestant: Contestant, config: Config) -> Tensor:
    if contestant.takes == "images":
        return torch.randn(config.batch_size, 3, config.image_size, config.image_size)
    return torch.randn(config.batch_size, 1 + (config.image_size // 16) ** 2, BLOCK_WIDTH)


class Seconds(NamedTuple):
    """Of one step: wall clock, and CPU time of all threads of the process."""

    wall: float
    cpu: float


def seconds_of(step: Step) -> Seconds:
    """Times one step."""
    wait_for(step.device)
    wall, cpu = time.perf_counter(), time.process_time()
    step.run()
    wait_for(step.device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def seconds_in_turns(steps: dict[str, Step], rounds: int) -> dict[str, list[Seconds]]:
    """One figure of each a round, after two rounds that are not counted."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in steps}
    for round_number in range(rounds + 2):
        for name in list(steps) if round_number % 2 == 0 else list(reversed(steps)):
            seconds[name].append(seconds_of(steps[name]))
    return {name: values[2:] for name, values in seconds.items()}


# ---------------------------------------------------------------- figures


def ratio_rows(contestants: Sequence[Contestant], seconds: dict[str, list[Seconds]], config: Config) -> list[Row]:
    """The first one's times over the others', then all times."""
    base, *others = contestants
    on_gpu, training = config.device.startswith("cuda"), config.passes == "training"
    rows = []
    for other in others:
        pairs = list(zip(seconds[base.name], seconds[other.name], strict=True))
        wall, cpu = ([getattr(b, clock) / getattr(o, clock) for b, o in pairs] for clock in Seconds._fields)
        title = f"{base.name} / {other.name}"
        if not on_gpu:
            rows.append(row_of(f"CPU time, {title}", cpu, other.cpu_target if training else None))
        rows.append(row_of(f"wall clock, {title}", wall, other.cuda_target if on_gpu and training else None))
    for name, values in seconds.items():
        rows.append(row_of(f"milliseconds, {name}", [1000 * value.wall for value in values]))
    return rows


def multiplication_rows(contestants: Sequence[Contestant], image_size: int) -> list[Row]:
    """How many times fewer multiplications the others' forward passes take, the limit of what time can be gained."""
    if any(contestant.takes != "images" for contestant in contestants):
        return []
    with torch.device("meta"):
        base, *others = (encoder_cost(contestant.make(image_size), image_size) for contestant in contestants)
    rows = []
    for contestant, other in zip(contestants[1:], others, strict=True):
        title = f"{contestants[0].name} / {contestant.name}"
        rows.append(row_of(f"multiplications, {title}", [base.multiplications / other.multiplications]))
        if other.linear:
            rows.append(row_of(f"multiplications of linear layers, {title}", [base.linear / other.linear]))
    return rows


def profile_rows(name: str, step: Step | TrainingStep, shown: int = 8) -> list[Row]:
    """The largest shares of operators in the time of a step, from 1 %: CPU time, or that of kernels on CUDA."""
    on_gpu = step.device.startswith("cuda")
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED_STEPS):
            step.run()
        wait_for(step.device)
    microseconds: Counter[str] = Counter()
    for event in profile.key_averages():
        if not on_gpu:
            microseconds[operator_name(event.key)] += event.self_cpu_time_total
        elif event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            microseconds[operator_name(event.key)] += event.self_device_time_total
    total = sum(microseconds.values())
    shares = [(operator, value / total) for operator, value in microseconds.most_common(shown)]
    return [row_of(f"share of {operator}, {name}", [share]) for operator, share in shares if share > 0.01]


def operator_name(event: str) -> str:
    """Loops that torch.compile wrote under one name; kernels without their template arguments."""
    if event.startswith(("## Call CompiledFxGraph", "triton_", "cpp_fused")):
        return "compiled loops"
    return event.removeprefix("aten::").split("<")[0]


def measure(case: CaseName, config: Config) -> list[Row]:
    """All rows of a case."""
    contestants = [contestant for contestant in CASES[case] if contestant.trains or config.passes == "inference"]
    rows = multiplication_rows(contestants, config.image_size)
    if config.rounds == 0:
        return rows
    torch.compiler.reset()  # code made for other shapes would be taken for these, too, and be slower
    steps = {contestant.name: Step(contestant, config) for contestant in contestants}
    for name, step in steps.items():
        if config.compile and step.compile_blocks():
            row = row_of(f"difference, compiled {name}", [step.compilation_difference()], COMPILATION_TOLERANCE)
            rows.append(row)
    rows += ratio_rows(contestants, seconds_in_turns(steps, config.rounds), config)
    if config.profile:
        for name, step in steps.items():
            rows += profile_rows(name, step)
    return rows


FORMATS = {"difference": "{:.0e}", "milliseconds": "{:,.1f}", "share": "{:.1%}"}


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rows: list[Row] = []
    failed: list[str] = []
    for case in config.cases:
        try:
            found = measure(case, config)
        except RuntimeError as error:  # compiling changes its results, or it doesn't fit into memory
            print(f"{case} failed: {error}\n", flush=True)
            failed.append(case)
            continue
        title = f"{case}, {config.passes}, {config.batch_size} images of {config.image_size} px, {config.device}"
        print_rows(title, found, [FORMATS.get(re.split("[ ,]", row["name"])[0], "{:.2f}") for row in found])
        rows += [{**row, "name": f"{case}: {row['name']}"} for row in found]
        write_rows(config.json, rows, config.device)  # after each case: the large ones take long
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above: the figures of the other cases stand")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
