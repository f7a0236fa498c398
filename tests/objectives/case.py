"""A small objective with its inputs. Those in cases/, one file per method, are what `test_every_objective` and the
processes of `test_distributed` try."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import Objective

SIZE = 12  # objects of a batch; of 2 and 4 processes, each has equally many
SIDE = 8  # of an image
Inputs = dict[str, Tensor]
MakeEncoder = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """How an objective is made and called.

    Attributes:
        make: from what makes encoders of images of 8 x 8 pixels.
        views: of each object.
        actions: shape of an object's; () for an objective that takes none.
        more: further inputs of a batch of so many objects, of a type.
        encoded: how many of the views, from the first on, the output's features are of.
        has_encoder_features, ignores_actions, in_bfloat16: what not all objectives do; the last is to work with all
            weights and images in bfloat16.
        takes_any_encoder: whether `make` uses the encoder that it is given.
        steps, momentum: of the training that processes are compared on, and of its target.
        same_batch: its steps are on one batch, so that the mean cosine is far enough from zero to be compared relative
            to its own size.
    """

    make: Callable[[MakeEncoder], Objective]
    views: int = 2
    actions: tuple[int, ...] = ()
    more: Callable[[int, torch.Generator, torch.dtype], Inputs] = lambda *_: {}
    encoded: int = 2
    has_encoder_features: bool = True
    ignores_actions: bool = False
    in_bfloat16: bool = True
    takes_any_encoder: bool = True
    steps: int = 1
    momentum: float | None = None
    same_batch: bool = False

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float32, size: int = SIZE) -> Inputs:
        """By the names of the objective's arguments. Each view is the object, moved by the action that leads to it, and
        some noise."""
        generator = torch.Generator().manual_seed(67 + seed)  # 67: batches on which float32 is far from its tolerance
        directions = torch.randn(self.actions[-1] if self.actions else 0, 3 * SIDE * SIDE, generator=generator)
        objects = torch.randn(size, 1, 3 * SIDE * SIDE, generator=generator)
        views = objects + 0.5 * torch.randn(size, self.views, 3 * SIDE * SIDE, generator=generator)
        inputs = {}
        if self.actions:
            actions = nn.functional.normalize(torch.randn(size, *self.actions, generator=generator), dim=-1)
            moves = (actions @ directions).reshape(size, -1, 3 * SIDE * SIDE)
            views[:, 1:] += moves.cumsum(dim=1)
            inputs["actions"] = actions.to(dtype)
        inputs["views"] = views.unflatten(2, (3, SIDE, SIDE)).to(dtype)
        return inputs | self.more(size, generator, dtype)


def all_cases() -> dict[str, Case]:
    """Of the dictionaries CASES of every file in cases/."""
    cases: dict[str, Case] = {}
    for path in sorted((Path(__file__).parent / "cases").glob("*.py")):
        found = importlib.import_module(f"tests.objectives.cases.{path.stem}").CASES
        assert not cases.keys() & found.keys(), f"{path} names a case that exists already"
        cases |= found
    return cases


def in_turn(cases: Mapping[Any, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes one test of a check's first argument in all cases; what fails says in which of them, and all are tried.

    As many parameters of a test are one test each, which every worker has to collect: for cheap checks of dozens of
    cases that takes longer than they do. Further arguments of the check are fixtures.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def test(**fixtures: Any) -> None:
            errors: list[BaseException] = []
            for name, case in cases.items():
                try:
                    check(case, **fixtures)
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"in the case {name}")
                    errors.append(error)
            if errors:
                raise BaseExceptionGroup(f"{len(errors)} of {len(cases)} cases fail", errors)

        test.__name__, test.__module__, test.__doc__ = check.__name__, check.__module__, check.__doc__
        _, *further = inspect.signature(check).parameters.values()
        test.__signature__ = inspect.Signature(further)  # type: ignore[attr-defined]
        return test

    return decorate
