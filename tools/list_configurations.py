"""Writes docs/configurations.md: what each named configuration follows, where it differs, and what of it is compared.

    PYTHONPATH=. python tools/list_configurations.py                   in a clone; seconds on one core
    PYTHONPATH=. python tools/list_configurations.py --out page.md

The page is made from `ssl_equi/training/provenance.py`, the recipes and `tests/references`; every comparison that it
lists is made, and one that fails ends the tool.
"""

import importlib
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.training.provenance import SOURCES, provenance_of
from tests.references.comparison import configuration, differences, random_batch, small_objective, unlike
from tests.references.table import REFERENCES, Reference

ROOT = Path(__file__).parent.parent
WIDTH = 80

INTRODUCTION = """\
# Named configurations

What each configuration of each recipe reproduces, where it knowingly differs,
and what of its loss is compared. `--help` behind a recipe's name and a
configuration's says the same of one, with all of its options. This page is
written by `PYTHONPATH=. python tools/list_configurations.py` from
`ssl_equi/training/provenance.py`, the recipes and `tests/references`, and a
test holds it to them.

## What the columns mean

**follows**: whose settings these are, of data, views, encoder, loss and
training. "paper" means the text of a paper, "release" the code that its authors
published; where the two differ, there is often a configuration for each. "own"
means settings of this project. What a paper doesn't state is taken from its
release, if there is one.

**departures**: where a configuration knowingly differs from what it follows, as
numbers of the [list below](#known-departures).

**terms**, **gradients**, **norms**: what is compared with a second, independent
version of the same loss, in `tests/references`, written in plain PyTorch from
the papers and from descriptions of released code, without an import of this
package. From the same weights and the same batch, in float64 and in training
mode, these agree to 1e-9, relative where a number is above 1: the loss, this
many of its terms and monitors, the gradients of this many weights, and the
running statistics of this many batch norms (of MoCo also the queue after the
step). Encoders are replaced by a small one with a batch norm, and layers are
narrow, but as many as in the configuration; dropout is off. In turn, a change
on one side only must be noticed: of each weight of the network, and of each
option of the loss but for widths. So a temperature, the weight of a term, a
batch norm or which views share a call can't change unseen. How weights start,
data, augmentations, encoders and optimisers have tests of their own.

**Settings of the loss**, below each table, are those of the second version,
which reads none of the package's. "All views at once" and "view by view" say
which images share a call of a network, and so the statistics of its batch
norms. Heads are written as their layers, in groups between `|`: `linear+bias`
and `linear` have a bias or none, `norm` is a batch norm, `norm-affine` one
without scale and shift. Widths are left out. Other words are the arguments of
the functions in `tests/references`, which explain them.

## Compared with the authors' own classes

On 2026-11-27, at commit 83c7a3f, the losses of the package were compared once
with the classes that the authors released, with equal weights and batches, in
float64 on a CPU. 1,012 comparisons (losses, each term, gradients by tensor)
agree to 1e-9, and 58 in which one side was changed on purpose differ, as they
must. These agreed: SIE with all its predictors, biases and ablations, rotation
alone and with colour, at small sizes and with the authors' ResNet-18 over two
steps of Adam; VICReg; seq-JEPA with one observed view in all three of its
modes, without actions also with three, its momentum update, and twelve whole
steps of its training with the same optimiser; E-SSL on SimSiam and Barlow
Twins, its heads and turned images; CARE's Gram term; MoCo over three steps with
its queue; EquiCaps' actions in three frames, capsules, routing and every term;
the octic transformer's layers. The comparison also found sixteen departures, in
E-SSL on SimCLR, CARE, MoCo, the octic encoder of kind "invariant", and the
methods that seq-JEPA and SIE compare with. They have been mended since; those
that lie in a loss are held by `tests/references`.
"""


@dataclass(frozen=True)
class Config:
    out: Path = ROOT / "docs" / "configurations.md"
    """The page."""


@dataclass(frozen=True)
class Compared:
    """How much of a configuration agrees with its reference."""

    terms: int
    gradients: int
    norms: int


def compare(recipe: ModuleType, key: str) -> Compared:
    """Compares a configuration with its reference.

    Args:
        key: of the table of references.

    Raises:
        UserError: something differs.
    """
    reference = REFERENCES[key]
    found = differences(small_objective(recipe, configuration(recipe, key)), reference, random_batch(reference))
    if different := unlike(found):
        raise UserError(f"{key} differs from its reference in {', '.join(different)}: mend one of the two first")
    return Compared(
        terms=sum(name.startswith("term ") for name in found),
        gradients=sum(name.startswith("gradient ") for name in found),
        norms=sum(name.endswith(".running_mean") for name in found),
    )


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings of a reference, separated by semicolons."""
    parts = []
    for name, value in settings.items():
        words = name.replace("_", " ")
        if name == "calls":
            parts.append(value)
        elif isinstance(value, Reference):
            parts.append(f"{words} `{value.loss.__name__}` ({in_words(value.settings)})")
        elif isinstance(value, dict):
            weights = [f"{term.replace('_', ' ')} {weight:g}" for term, weight in value.items()]
            parts.append(f"{words} {', '.join(weights)}")
        elif isinstance(value, tuple):
            parts.append(f"{words} {', '.join(f'{number:g}' for number in value)}")
        elif isinstance(value, bool):
            parts.append(f"{words} {'yes' if value else 'no'}")
        elif isinstance(value, float):
            parts.append(f"{words} {value:g}")
        else:
            shown = "none" if value is None else f"`{value}`" if "linear" in str(value) else value
            parts.append(f"{words} {shown}")
    return "; ".join(parts)


def settings_of(keys: list[str]) -> Iterator[str]:
    """A point for each group of configurations with the same loss and settings."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        recipe, name = key.split(maxsplit=1)
        reference = REFERENCES[key]
        loss = "" if reference.loss.__name__ == recipe else f"`{reference.loss.__name__}`, "
        groups.setdefault(loss + in_words(reference.settings), []).append(f"`{name}`")
    for text, names in groups.items():
        yield wrapped(f"- {', '.join(names)}: {text}.")


def wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def section(name: str, departures: list[str]) -> str:
    """What the page says of a recipe; new departures are appended to `departures`."""
    recipe = importlib.import_module(f"recipes.{name}")
    keys = [
        key for configured in recipe.CONFIGS for key in REFERENCES if key.split()[:2] == [name, configured]
    ]  # in the order of the recipe
    rows = ["| configuration | follows | departures | terms | gradients | norms |", "|---|---|---|--:|--:|--:|"]
    for key in keys:
        provenance = provenance_of(recipe.CONFIGS[key.split()[1]])
        follows = "own" if provenance.basis == "own" else f"{provenance.source}, {provenance.basis}"
        departures += [text for text in provenance.departures if text not in departures]
        numbers = ", ".join(map(str, sorted(departures.index(text) + 1 for text in provenance.departures)))
        count = compare(recipe, key)
        cells = (f"`{key.split(maxsplit=1)[1]}`", follows, numbers, count.terms, count.gradients, count.norms)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    title = (recipe.__doc__ or "").splitlines()[0]
    parts = [f"### `recipes/{name}.py`", wrapped(title).replace("\n  ", "\n"), "\n".join(rows), "Settings of the loss:"]
    return "\n\n".join([*parts, "\n".join(settings_of(keys))])


def page() -> str:
    """The whole page.

    Raises:
        UserError: a configuration differs from its reference.
    """
    departures: list[str] = []
    recipes = sorted({key.split()[0] for key in REFERENCES})
    sections = [section(name, departures) for name in recipes]
    introduction = INTRODUCTION.rstrip()
    known = "\n".join(
        textwrap.fill(f"{number}. {text}", WIDTH, subsequent_indent=" " * len(f"{number}. "), break_on_hyphens=False)
        for number, text in enumerate(departures, 1)
    )
    sources = "\n".join(f"- {name}: {source}" for name, source in SOURCES.items())
    return (
        "\n\n".join([introduction, "## By recipe", *sections, "## Known departures", known, "## Sources", sources])
        + "\n"
    )


def main(config: Config) -> None:
    config.out.write_text(page())
    print(f"wrote {config.out}")


if __name__ == "__main__":
    options = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(options))
