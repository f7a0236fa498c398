"""VICReg-Traj on three views, with a weight at which the trajectory counts."""

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.objectives.vicreg_traj import VICRegTraj, VICRegTrajConfig
from tests.objectives.case import Case


def vicreg_traj(**changes: object) -> Case:
    config = VICRegConfig(projector=(24, 24), **changes)
    return Case(
        lambda encoder: VICRegTraj(VICReg(encoder(), config), VICRegTrajConfig(weight=5.0)),
        views=3,
        encoded=3,
        has_encoder_features=False,
    )


CASES = {"vicreg_traj": vicreg_traj(), "vicreg_traj_separate_batch_norm": vicreg_traj(separate_batch_norm=True)}
