"""Training steps of recipes, as they are by default, on random views; for benchmarks of what a step costs."""

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from benchmarks import Row, TrainingStep, random_views, row_of, seconds_in_turns
from torch import Tensor, nn

from ssl_equi.training.config import RunConfig
from ssl_equi.training.devices import prepare_for_device
from ssl_equi.training.optimisation import optimizer_of

RECIPES = Path(__file__).parents[1] / "recipes"
PREDICTING = ("sie", "equimod", "sen", "conditional_byol", "capsie", "equicaps", "seq_jepa", "conv_jepa")
"""Recipes whose objectives predict with an action."""
TARGET_GAIN_SHARE = 0.02


@dataclass(frozen=True)
class GainConfig:
    """Whose steps measure the gain of their actions."""

    recipes: tuple[str, ...] = PREDICTING
    """Names of recipes."""
    batch_size: int | None = None
    """Objects in a step; each recipe's own when not given."""
    steps_per_round: int = 2
    """Steps of each kind in a round."""
    rounds: int = 15
    """Rounds."""


def recipe_of(name: str) -> ModuleType:
    """The script of a recipe, imported under a name of its own."""
    specification = importlib.util.spec_from_file_location(f"recipes_{name}", RECIPES / f"{name}.py")
    assert specification is not None and specification.loader is not None
    recipe = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = recipe  # where dataclasses look for the types of their fields
    specification.loader.exec_module(recipe)
    return recipe


def recipe_step(name: str, device: str, batch_size: int | None = None) -> TrainingStep:
    """A step of one of `PREDICTING`: forward, backward, optimiser, momentum target.

    Args:
        batch_size: objects; those of the recipe when None.
    """
    recipe = recipe_of(name)
    config = recipe.CONFIGS["embedded"]()
    objective = recipe.build(config)
    prepare_for_device(objective, torch.device(device))
    observed = getattr(config, "observed_views", None)  # of sequences, which have an action for each
    side = config.saccades.glimpse_size if hasattr(config, "saccades") else config.image_size
    size = batch_size or config.batch_size
    views = random_views(size, 2 if observed is None else observed + 1, side, device)
    steps = () if observed is None else (observed,)
    actions = nn.functional.normalize(torch.randn(size, *steps, objective.action_dim, device=device), dim=-1)

    def make_optimizer(_: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of(objective, config)

    inputs: tuple[Tensor, ...] = (views, actions)
    after: Any = partial(objective.update_target, 0.99)
    return TrainingStep(objective, inputs, make_optimizer, device=device, after=after)


class GainStep:
    """A step that measures the gain of its actions, or the same one without; see `seconds_in_turns`."""

    def __init__(self, step: TrainingStep, measures: bool) -> None:
        self.step, self.measures = step, measures

    def seconds(self, count: int) -> float:
        self.step.objective.measures_action_gain = self.measures  # type: ignore[assignment]
        return self.step.seconds(count)


def measure_action_gain(config: GainConfig, device: str) -> list[Row]:
    """Of each recipe, the share of a run's time that its logged steps spend on it."""
    log_every = RunConfig().log_every
    rows = []
    for name in config.recipes:
        step = recipe_step(name, device, config.batch_size)
        forms = {"without": GainStep(step, False), "with": GainStep(step, True)}
        seconds = seconds_in_turns(forms, config.rounds, config.steps_per_round)
        pairs = zip(seconds["with"], seconds["without"], strict=True)
        shares = [(measuring / plain - 1) / log_every for measuring, plain in pairs]
        rows.append(row_of(f"{name}, share of a step", shares, TARGET_GAIN_SHARE))
    return rows
