"""VICReg."""

from two_process_cases import BatchNormEncoder, train_steps

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig

CASES = {
    "vicreg": lambda dtype: train_steps(
        lambda: VICReg(BatchNormEncoder(), VICRegConfig(projector=(24, 24, 24))), dtype
    ),
}
