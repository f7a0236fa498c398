"""What each named configuration of a recipe reproduces, and where it knowingly differs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

Config = TypeVar("Config")
Basis = Literal["paper", "release", "own"]


@dataclass(frozen=True)
class Provenance:
    """Where the settings of a configuration come from.

    Attributes:
        basis: what is followed where the two differ: the text of a paper, or the code that its authors released; own
            for settings of this project.
        source: paper and venue, or empty.
        departures: what is known to differ from the basis.
    """

    basis: Basis
    source: str = ""
    departures: tuple[str, ...] = ()


OWN = Provenance("own")


def reproduces(
    basis: Literal["paper", "release"], source: str, *departures: str
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    """Marks a function that makes a configuration as following a paper or its released code."""

    def mark(configuration: Callable[[], Config]) -> Callable[[], Config]:
        configuration.provenance = Provenance(basis, source, departures)  # type: ignore[attr-defined]
        return configuration

    return mark


def provenance_of(configuration: Callable[[], object]) -> Provenance:
    """What `reproduces` says of a configuration; settings that it says nothing of are the project's own."""
    return getattr(configuration, "provenance", OWN)


def describe(configuration: Callable[[], object]) -> str:
    """The provenance in a sentence or two, for the help of a recipe."""
    provenance = provenance_of(configuration)
    if provenance.basis == "own":
        return "Its settings are this project's own."
    followed = "the paper" if provenance.basis == "paper" else "the released code"
    known = f" Known departures: {'; '.join(provenance.departures)}." if provenance.departures else ""
    return f"It follows {followed} of {provenance.source}.{known}"
