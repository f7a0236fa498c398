"""SEN."""

from ssl_equi.objectives.sen import SEN, SENConfig
from tests.objectives.case import Case


def sen(**changes: object) -> Case:
    return Case(lambda encoder: SEN(encoder(), SENConfig(projector=(24, 24), **changes)), actions=(4,))


CASES = {"sen": sen(), "sen_separate_batch_norm": sen(separate_batch_norm=True)}
