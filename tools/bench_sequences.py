"""What a training step of seq-JEPA costs beside one of SIE with the same encoder and as many objects.

    python tools/bench_sequences.py                                       M = 1 and 3, a minute or two on a CPU
    python tools/bench_sequences.py --device cuda --bf16 --batch-size 512 --steps-per-round 20

A step is forward, backward, optimiser and, for seq-JEPA, the move of its target, on normalised random images that lie
on the device; making views is timed by bench_views. Both methods have their published sizes. SIE sees two views of an
object, seq-JEPA M observed ones and the one to predict: the target of a ratio is a tenth above that of the views,
1.1 (M + 1) / 2. The view to predict takes no backward pass, which pays for the transformer. In each round every method
takes its turn, in reverse order every other round; a ratio is that of one round.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from benchmarks import Row, TrainingStep, print_rows, random_views, seconds_in_turns, step_cost_rows, write_rows
from torch import Tensor, nn

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.encoders import create_encoder
from ssl_equi.errors import UserError
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.objectives.sie import SIE, SIEConfig

BASE = "SIE"
ALLOWANCE = 1.1  # over the ratio of views


@dataclass(frozen=True)
class Config:
    """What to measure, and where."""

    encoder: str = "resnet18"
    """Any timm name."""
    image_size: int = 128
    """Side of the views in pixels; 128 in seq-JEPA's comparisons on 3DIEBench."""
    batch_size: int = 8
    """Objects in a step, of all methods."""
    observed_views: tuple[int, ...] = (1, 3)
    """Numbers M of views that seq-JEPA observes, before the one that it predicts."""
    steps_per_round: int = 1
    """Steps of each method in a round."""
    rounds: int = 9
    """Rounds."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the steps run."""
    bf16: bool = False
    """Run under autocast in bfloat16."""
    sie: SIEConfig = field(default_factory=SIEConfig)
    """Sizes of SIE."""
    seq_jepa: SeqJEPAConfig = field(default_factory=SeqJEPAConfig)
    """Sizes of seq-JEPA."""
    json: Path | None = None
    """Also write the figures to this file."""


def name_of(observed: int) -> str:
    return f"seq-JEPA M={observed}"


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=4e-4, weight_decay=1e-3)


def make_steps(config: Config) -> dict[str, TrainingStep]:
    """SIE's step on two views of each object, and seq-JEPA's on M + 1 for each M.

    Raises:
        UserError: an M below 1.
    """
    if not config.observed_views or min(config.observed_views) < 1:
        raise UserError(f"--observed-views is {config.observed_views}: give numbers from 1 up, such as 1 3")
    torch.manual_seed(0)
    size, device = config.batch_size, config.device

    def encoder() -> nn.Module:
        return create_encoder(config.encoder, config.image_size)

    def inputs(number: int, *action_shape: int) -> tuple[Tensor, Tensor]:
        views = random_views(size, number, config.image_size, device)
        return views, F.normalize(torch.randn(action_shape, device=device), dim=-1)

    sie = SIE(encoder(), config.sie)
    pairs = inputs(2, size, config.sie.action_dim)
    steps = {BASE: TrainingStep(sie, pairs, adamw, device=device, bf16=config.bf16)}
    for observed in config.observed_views:
        objective = SeqJEPA(encoder(), config.seq_jepa)
        sequences = inputs(observed + 1, size, observed, config.seq_jepa.action_dim)
        after = partial(objective.update_target, 0.996)
        step = TrainingStep(objective, sequences, adamw, device=device, bf16=config.bf16, after=after)
        steps[name_of(observed)] = step
    return steps


def measure(config: Config, steps: dict[str, TrainingStep]) -> list[Row]:
    """Ratios of step times over SIE's in the same round, and the times."""
    seconds = seconds_in_turns(steps, config.rounds, config.steps_per_round)
    targets = {name_of(observed): ALLOWANCE * (observed + 1) / 2 for observed in config.observed_views}
    return step_cost_rows(seconds, BASE, targets)


def main(config: Config) -> None:
    rows = measure(config, make_steps(config))
    title = f"{config.encoder}, {config.batch_size} objects, {config.image_size} px, {config.device}"
    print_rows(title, rows, ["{:,.0f}" if "milliseconds" in row["name"] else "{:.2f}" for row in rows])
    write_rows(config.json, rows, config.device)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
