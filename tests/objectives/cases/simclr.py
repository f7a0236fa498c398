"""SimCLR."""

from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from tests.objectives.case import Case


def simclr(**changes: object) -> Case:
    return Case(lambda encoder: SimCLR(encoder(), SimCLRConfig(projector=(24, 24), **changes)))


CASES = {
    "simclr": simclr(),
    "simclr_last_batch_norm": simclr(last_batch_norm="affine", separate_batch_norm=True),
    "simclr_other_view": simclr(candidates="other_view"),
}
