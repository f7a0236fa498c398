"""Runs a recipe's own loop in this process for some steps, and looks on at every step."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from accelerate.state import AcceleratorState

from ssl_equi.cli import parse_command_line
from ssl_equi.data.batch import ViewBatch
from ssl_equi.training.pretraining import Pretraining
from ssl_equi.training.run import Run

RECIPES = Path(__file__).parents[2] / "recipes"
NEVER = str(10**9)

StepWatcher = Callable[[int, ViewBatch], None]


def load_recipe(name: str) -> ModuleType:
    """recipes/NAME.py as a module."""
    specification = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def configured(recipe: ModuleType, arguments: Sequence[str]) -> Any:
    """The configuration of a command line: perhaps a name, then options."""
    named = arguments and not arguments[0].startswith("-")
    name = arguments[0] if named else next(iter(recipe.CONFIGS))
    default = recipe.CONFIGS[name]()
    return parse_command_line(type(default), "", default, list(arguments[1:] if named else arguments))


def run_loop(
    recipe: ModuleType,
    config: Any,
    on_step: StepWatcher = lambda step, batch: None,
    with_ending: bool = False,
) -> None:
    """Calls the recipe's `main`.

    Args:
        on_step: called with the step and its batch before each step's work, when all of the step before is queued.
        with_ending: exports and probes at the end.
    """
    plain = Run.batches

    def watched(run: Run, *arguments: Any, **options: Any) -> Iterator[tuple[int, ViewBatch]]:
        for step, batch in plain(run, *arguments, **options):
            on_step(step, batch)
            yield step, batch

    AcceleratorState._reset_state(reset_partial_state=True)  # of a loop that ran before in this process
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(Run, "batches", watched))
        if not with_ending:
            patches.enter_context(mock.patch.object(Pretraining, "finish", lambda pretraining: pretraining.run.close()))
        recipe.main(config)
