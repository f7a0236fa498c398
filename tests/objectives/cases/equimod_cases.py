"""Both forms of EquiMod."""

import torch
from two_process_cases import Tensors, make_encoder, train_steps

from ssl_equi.objectives.equimod import EquiMod, EquiModConfig


def equimod_step(dtype: torch.dtype, **changes: object) -> Tensors:
    config = EquiModConfig(projector=(24, 24), **changes)
    return train_steps(lambda: EquiMod(make_encoder(), config), dtype)


CASES = {
    "equimod_simclr": lambda dtype: equimod_step(dtype),
    "equimod_simclr_hypernetwork": lambda dtype: equimod_step(
        dtype, predictor="hypernetwork", separate_batch_norm=True
    ),
    "equimod_vicreg": lambda dtype: equimod_step(dtype, form="vicreg"),
}
