"""AugSelf around SimCLR and around a base with a momentum target."""

import torch
from torch import nn
from two_process_cases import Tensors, make_encoder, train_steps

from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig


def augself_steps(dtype: torch.dtype, base_class: type[nn.Module], base_config: object) -> Tensors:
    return train_steps(
        lambda: AugSelf(base_class(make_encoder(), base_config), AugSelfConfig(hidden=(24, 24))),
        dtype,
        steps=2,
        after_step=lambda objective: objective.update_target(0.7),
    )


CASES = {
    "augself_simclr": lambda dtype: augself_steps(dtype, SimCLR, SimCLRConfig(projector=(24, 24))),
    "augself_byol": lambda dtype: augself_steps(dtype, BYOL, BYOLConfig(projector=(24, 24), predictor_hidden_width=20)),
}
