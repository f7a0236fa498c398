"""EquiCaps and CapsIE."""

from ssl_equi.objectives.capsie import CapsIE, CapsIEConfig
from ssl_equi.objectives.equicaps import EquiCaps, EquiCapsConfig
from tests.fakes import capsule_network
from tests.objectives.case import Case

COMMON = {"has_encoder_features": False, "in_bfloat16": False, "takes_any_encoder": False}


def equicaps(pose_side: int = 3, votes: str = "free", **options: object) -> Case:
    return Case(
        lambda _: EquiCaps(capsule_network(pose_side, votes=votes), EquiCapsConfig(**options)),
        actions=({3: 4, 4: 7}[pose_side],),
        **COMMON,
    )


CASES = {
    "equicaps_rotation": equicaps(),
    "equicaps_pose": equicaps(pose_side=4, variance_target="published"),
    "equicaps_matrix_votes": equicaps(votes="matrix", separate_batch_norm=True),
    "capsie": Case(lambda _: CapsIE(capsule_network(4), CapsIEConfig()), actions=(4,), **COMMON),
}
