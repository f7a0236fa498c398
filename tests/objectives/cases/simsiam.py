"""SimSiam."""

from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig
from tests.objectives.case import Case


def simsiam(**changes: object) -> Case:
    config = SimSiamConfig(projector=(24, 16), predictor_hidden_width=8, **changes)
    return Case(lambda encoder: SimSiam(encoder(), config))


CASES = {
    "simsiam": simsiam(),
    "simsiam_separate_batch_norm": simsiam(last_batch_norm="affine", separate_batch_norm=True),
}
