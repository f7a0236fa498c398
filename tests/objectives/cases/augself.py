"""AugSelf around SimCLR and around a base with a momentum target."""

from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from tests.objectives.case import Case


def augself(base: type[SimCLR] | type[BYOL], config: object) -> Case:
    return Case(
        lambda encoder: AugSelf(base(encoder(), config), AugSelfConfig(hidden=(24, 24))),
        actions=(4,),
        has_encoder_features=False,
        steps=2,
        momentum=0.7,
    )


CASES = {
    "augself_simclr": augself(SimCLR, SimCLRConfig(projector=(24, 24))),
    "augself_byol": augself(BYOL, BYOLConfig(projector=(24, 24), predictor_hidden_width=20)),
}
