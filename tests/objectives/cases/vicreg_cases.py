"""VICReg, with too few dimensions for covariances from products of samples; SIE's cases have enough."""

from two_process_cases import make_encoder, train_steps

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig

CASES = {
    "vicreg": lambda dtype: train_steps(lambda: VICReg(make_encoder(), VICRegConfig(projector=(24, 24, 16))), dtype),
}
