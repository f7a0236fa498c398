"""Methods train as the references do, step after step, from the same weights on.

seq-JEPA has a file of its own, for all its modes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.fakes import load_recipe
from tests.references.comparison import (
    TOLERANCE,
    configuration,
    largest_difference,
    package_losses,
    random_batch,
    reference_training,
    small_objective,
    state,
)
from tests.references.networks import Batch, Network
from tests.references.table import REFERENCES, Reference
from tests.references.training import Training

# Those that docs/results.md compares.
KEYS = (
    "sie embedded", "vicreg embedded", "equicaps embedded", "byol embedded", "simclr embedded", "essl embedded",
    "care embedded", "care two_pass",
)  # fmt: skip


def trained_briefly(key: str, steps: int) -> tuple[nn.Module, Any, list[Batch]]:
    """A small objective of a configuration, the configuration for so many steps, and their batches."""
    recipe = load_recipe(key.split()[0])
    config = replace(configuration(recipe, key), epochs=1, steps=steps, warmup_steps=steps // 4)
    return small_objective(recipe, config), config, [random_batch(REFERENCES[key], seed) for seed in range(steps)]


def reference_losses(
    reference: Reference, weights: dict[str, torch.Tensor], training: Training, batches: Iterable[Batch]
) -> Iterator[float]:
    """Changes the weights in place: each target follows the network of its name."""
    targets = [name for name in weights if name.startswith("target_")]
    leaves = {name: weight.requires_grad_(name not in targets) for name, weight in weights.items()}
    return training.losses(
        lambda batch: reference.loss(Network(leaves), batch, **reference.settings)["loss"],
        [weight for name, weight in leaves.items() if name not in targets],
        batches,
        [(leaves[name], leaves[name.removeprefix("target_")]) for name in targets],
    )


def difference(key: str, steps: int) -> float:
    objective, config, batches = trained_briefly(key, steps)
    weights = state(objective)
    theirs = list(reference_losses(REFERENCES[key], weights, reference_training(config), batches))
    ours = list(package_losses(objective, config, batches))
    trained = dict(objective.named_parameters())
    return largest_difference(ours, theirs, [(trained[name].detach(), weights[name].detach()) for name in trained])


@pytest.mark.parametrize("key", KEYS)
def test_twenty_steps_agree(key: str) -> None:
    assert difference(key, steps=20) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_two_hundred_steps_agree(key: str) -> None:
    assert difference(key, steps=200) < TOLERANCE


@pytest.mark.parametrize(("option", "value"), [("rate", 9e-4), ("momentum", 0.98), ("last_step", 20)])
def test_another_training_is_noticed(option: str, value: float) -> None:
    objective, config, batches = trained_briefly("byol embedded", steps=20)
    weights = state(objective)
    other = replace(reference_training(config), **{option: value})
    *_, theirs = reference_losses(REFERENCES["byol embedded"], weights, other, batches)
    *_, ours = package_losses(objective, config, batches)
    assert abs(ours - theirs) > 100 * TOLERANCE
