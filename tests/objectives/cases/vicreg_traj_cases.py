"""VICReg-Traj on three views, with a weight at which the trajectory counts."""

import torch
from torch import Tensor
from two_process_cases import GLOBAL_BATCH, Tensors, make_encoder, train_steps

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.objectives.vicreg_traj import VICRegTraj, VICRegTrajConfig


def three_views(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.randn(GLOBAL_BATCH, 3, 3, 8, 8, dtype=dtype),)


def vicreg_traj_step(dtype: torch.dtype, *, separate_batch_norm: bool) -> Tensors:
    vicreg = VICRegConfig(projector=(24, 24), separate_batch_norm=separate_batch_norm)
    return train_steps(
        lambda: VICRegTraj(VICReg(make_encoder(), vicreg), VICRegTrajConfig(weight=5.0)), dtype, three_views
    )


CASES = {
    "vicreg_traj": lambda dtype: vicreg_traj_step(dtype, separate_batch_norm=False),
    "vicreg_traj_separate_batch_norm": lambda dtype: vicreg_traj_step(dtype, separate_batch_norm=True),
}
