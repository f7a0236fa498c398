"""VICReg, with too few dimensions for covariances from products of samples; SIE's cases have enough."""

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from tests.objectives.case import Case

CASES = {"vicreg": Case(lambda encoder: VICReg(encoder(), VICRegConfig(projector=(24, 24, 16))))}
