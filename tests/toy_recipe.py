"""A recipe whose steps take milliseconds, for tests of runs: in the test's process, or as a script.

As a script it stops for `TOY_PAUSE` seconds in each step, so that there is time for signals, and from step
`TOY_FULL_DISK` on its first process can write no checkpoint.
"""

import dataclasses
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_equi.cli import run_recipe
from ssl_equi.data.batch import ViewBatch
from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.options import Count
from ssl_equi.training.config import RunConfig
from ssl_equi.training.run import Run

SCRIPT_STEPS = 100


@dataclasses.dataclass(frozen=True)
class ToyConfig(RunConfig):
    width: int = 4
    log_every: Count = 1
    save_every: Count = 5


class ToyLoader:
    """Batches that depend on the step alone."""

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]:
        step = start_step
        while True:
            generator = torch.Generator().manual_seed(step)
            images = torch.randint(0, 255, (4, 2, 3, 3, 3), dtype=torch.uint8, generator=generator)
            yield ViewBatch(
                images=images,
                latents=torch.zeros(4, 2, 7),
                quat_xyzw=torch.zeros(4, 2, 4),
                labels=torch.zeros(4, dtype=torch.int64),
                object_indices=torch.arange(4),
                view_indices=torch.zeros(4, 2, dtype=torch.int64),
            )
            step += 1


class ToyObjective(nn.Module):
    """A loss with dropout (so that the random generator matters) and batch norm (so that buffers do)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(27, width), nn.BatchNorm1d(width), nn.Dropout(0.3))
        self.poison = 0.0

    def forward(self, images: Tensor) -> ObjectiveOutput:
        features = self.encoder(images.flatten(0, 1).flatten(1).float() / 255)
        covariance = features.square().mean() + self.poison
        loss = covariance + features.mean()
        return ObjectiveOutput(loss=loss, terms={"covariance": covariance.detach()}, features=features.detach())


EachStep = Callable[[int, ToyObjective], None]


def train_toy(run: Run, total_steps: int, each_step: EachStep) -> None:
    torch.manual_seed(run.config.seed)
    objective = ToyObjective(getattr(run.config, "width", 4))
    model = run.prepare(objective, lambda module: torch.optim.AdamW(module.parameters(), lr=0.05))
    start = run.resume()
    for step, batch in run.batches(ToyLoader(), start, total_steps):
        each_step(step, objective)
        output = model(batch.images)
        run.backward(output)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.log(step, output, learning_rate=0.05)


def loss_lines(folder: Path) -> list[str]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if json.loads(line)["event"] == "loss"]


def main(config: ToyConfig) -> None:
    run = Run(config, "toy")
    pause, full_at = float(os.environ.get("TOY_PAUSE", "0")), int(os.environ.get("TOY_FULL_DISK", "-1"))

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def each_step(step: int, objective: ToyObjective) -> None:
        time.sleep(pause)
        if step == full_at and run.processes.is_main:
            os.fsync = full_disk

    train_toy(run, SCRIPT_STEPS, each_step)
    with run.ending():
        run.processes.say("ended")


if __name__ == "__main__":
    run_recipe(main, {"toy": ToyConfig}, "A toy.")
