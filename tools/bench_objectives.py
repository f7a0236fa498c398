"""What E-SSL and CARE cost over the objective that they extend.

    python tools/bench_objectives.py                                  ResNet-18, 8 images of 224 pixels, minutes
    python tools/bench_objectives.py --device cuda --encoder resnet50 --batch-size 256 --bf16 True --json cost.json

A step is forward, backward and optimiser on normalised random images that lie on the device: making views is timed
elsewhere. SimCLR is the base of all. In each round every method takes its turn, in reverse order every other round, so
that a busy machine slows all of them; a ratio is that of one round. Counting pixels alone, E-SSL with four rotations at
96 pixels costs 1 + 4 * 96^2 / (2 * 224^2) = 1.37 times SimCLR at 224, CARE with two further passes twice as much.
"""

import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.care import CARE, CAREConfig
from ssl_equi.objectives.essl import ESSL, ESSLConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig

BASE = "SimCLR"
TARGETS = {"E-SSL": 1.4, "CARE, two passes": 1.15, "CARE, four passes": None}
WARMUP_STEPS = 2


@dataclass(frozen=True)
class Config:
    """Sizes of the step and length of the measurement."""

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
    device: str = "cpu"
    """cpu or cuda."""
    json: Path | None = None
    """Also write the figures to this file."""


class Step:
    """One method's training step on fixed inputs."""

    def __init__(self, objective: nn.Module, inputs: tuple[Tensor | None, ...], config: Config) -> None:
        self.config = config
        self.objective = objective.to(config.device)
        self.inputs = inputs
        self.optimizer = torch.optim.SGD(self.objective.parameters(), lr=1e-3, momentum=0.9)

    def run(self) -> None:
        with torch.autocast(self.config.device, dtype=torch.bfloat16, enabled=self.config.bf16):
            output = self.objective(*self.inputs)
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, count: int) -> float:
        """Mean time of a step."""
        started = time.perf_counter()
        for _ in range(count):
            self.run()
        if self.config.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count


def random_views(config: Config, number: int, side: int) -> Tensor:
    """[B, number, 3, side, side] in channels-last memory, as batches of images arrive."""
    views = torch.randn(config.batch_size, number, side, side, 3, device=config.device)
    return views.permute(0, 1, 4, 2, 3)


def make_steps(config: Config) -> dict[str, Step]:
    def base() -> SimCLR:
        return SimCLR(create_encoder(config.encoder, config.image_size), SimCLRConfig(projector=config.projector))

    torch.manual_seed(0)
    views, shared_views = (random_views(config, 2, config.image_size) for _ in range(2))
    small_views = random_views(config, 4, config.small_size)
    elements = torch.arange(4, device=config.device).repeat(config.batch_size, 1)
    essl = ESSLConfig(hidden_widths=config.projector, relu_after_last_hidden=False)
    four_passes = CAREConfig(chunk_size=config.chunk_size)
    two_passes = CAREConfig(chunk_size=config.chunk_size, reuse_views=True)
    return {
        BASE: Step(base(), (views,), config),
        "E-SSL": Step(ESSL(base(), essl), (views, None, small_views, elements), config),
        "CARE, two passes": Step(CARE(base(), two_passes), (views,), config),
        "CARE, four passes": Step(CARE(base(), four_passes), (views, None, shared_views), config),
    }


def measure(config: Config) -> list[dict]:
    steps = make_steps(config)
    for step in steps.values():
        step.seconds(WARMUP_STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(config.rounds):
        names = list(steps) if round_number % 2 == 0 else list(reversed(steps))
        for name in names:
            seconds[name].append(steps[name].seconds(config.steps_per_round))
    rows = []
    for name, target in TARGETS.items():
        ratios = [method / base for method, base in zip(seconds[name], seconds[BASE], strict=True)]
        rows.append({"name": f"{name} / {BASE}", "target": target, **summary(ratios)})
    for name in steps:
        milliseconds = [1000 * value for value in seconds[name]]
        rows.append({"name": f"milliseconds, {name}", "target": None, **summary(milliseconds)})
    return rows


def summary(values: list[float]) -> dict[str, float]:
    return {"ratio": statistics.median(values), "low": min(values), "high": max(values)}


def main(config: Config) -> None:
    rows = measure(config)
    sizes = f"{config.encoder}, {config.batch_size} images of {config.image_size} and {config.small_size} pixels"
    table = Table(title=f"Training steps, {sizes}, {config.device}", width=80)
    for header in ("", "median", "range", "target"):
        table.add_column(header, justify="left" if not header else "right")
    for row in rows:
        style = "{:,.1f}" if row["name"].startswith("milliseconds") else "{:.2f}"
        low, high = style.format(row["low"]), style.format(row["high"])
        target = "" if row["target"] is None else style.format(row["target"])
        table.add_row(row["name"], style.format(row["ratio"]), f"{low} - {high}", target)
    Console(width=80).print(table)
    if config.json is not None:
        machine = {
            "device": torch.cuda.get_device_name() if config.device == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        config.json.write_text(json.dumps({"rows": rows, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
