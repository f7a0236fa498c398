"""Barlow Twins."""

from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from tests.objectives.case import Case


def barlow_twins(**changes: object) -> Case:
    return Case(lambda encoder: BarlowTwins(encoder(), BarlowTwinsConfig(projector=(24, 24), **changes)))


CASES = {
    "barlow_twins": barlow_twins(),
    "barlow_twins_separate_batch_norm": barlow_twins(separate_batch_norm=True),
}
