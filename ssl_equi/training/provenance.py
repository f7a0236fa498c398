"""What each named configuration of a recipe reproduces, and where it knowingly differs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

Config = TypeVar("Config")
Basis = Literal["paper", "release", "own"]
SOURCES = {
    "Barlow Twins": "Zbontar et al., ICML 2021",
    "BYOL": "Grill et al., NeurIPS 2020",
    "CapsIE": "Everett et al., 2024",
    "CARE": "Gupta et al., ICLR 2024",
    "E-SSL": "Dangovski et al., ICLR 2022",
    "EquiCaps": "Konstantinou et al., 2025",
    "MoCo v2": "Chen et al., 2020",
    "seq-JEPA": "Ghaemi et al., NeurIPS 2025",
    "SIE": "Garrido, Najman and LeCun, ICML 2023",
    "SimSiam": "Chen and He, CVPR 2021",
    "VICReg": "Bardes, Ponce and LeCun, ICLR 2022",
}
# Departures of more than one configuration.
BF16 = "trained in bf16"
BF16_FOR_FP16 = "bf16 in place of fp16"
BF16_FOR_FLOAT32 = "bf16 in place of float32"
FRESH_DRAWS = "each epoch draws views of its own, where the released loader repeats those of the first"
JOINT_ACTIONS = "the batch norm of the action embedding sees each action of a batch once, see action_statistics"
OWN_COVARIANCE = "the covariance of an incomplete batch is divided by its own size less one, not by the full batch's"
OWN_PAIRS = "every chunk has a pair of augmentations of its own, as in the paper"
UNSHUFFLED = "batches are not shuffled between processes, whose batch norms see the global batch"


@dataclass(frozen=True)
class Provenance:
    """Where the settings of a configuration come from.

    Attributes:
        basis: what is followed where the two differ: the text of a paper, or the code that its authors released; own
            for settings of this project.
        source: whose settings these are, one of `SOURCES`; empty for own ones.
        departures: what is known to differ from the basis.
    """

    basis: Basis
    source: str = ""
    departures: tuple[str, ...] = ()


OWN = Provenance("own")


def reproduces(
    basis: Literal["paper", "release"], source: str, *departures: str
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    """Marks a function that makes a configuration as following a paper of `SOURCES` or its released code."""
    assert source in SOURCES, source

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
    return f"It follows {followed} of {provenance.source} ({SOURCES[provenance.source]}).{known}"
