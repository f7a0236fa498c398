"""Both forms of EquiMod."""

from ssl_equi.objectives.equimod import EquiMod, EquiModConfig
from tests.objectives.case import Case


def equimod(**changes: object) -> Case:
    return Case(lambda encoder: EquiMod(encoder(), EquiModConfig(projector=(24, 24), **changes)), actions=(4,))


CASES = {
    "equimod_simclr": equimod(),
    "equimod_simclr_hypernetwork": equimod(predictor="hypernetwork", separate_batch_norm=True),
    "equimod_vicreg": equimod(form="vicreg"),
}
