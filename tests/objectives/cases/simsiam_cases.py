"""SimSiam."""

import torch
from two_process_cases import Tensors, make_encoder, train_steps

from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig


def simsiam_step(dtype: torch.dtype, **changes: object) -> Tensors:
    config = SimSiamConfig(projector=(24, 16), predictor_hidden_width=8, **changes)
    return train_steps(lambda: SimSiam(make_encoder(), config), dtype)


CASES = {
    "simsiam": lambda dtype: simsiam_step(dtype),
    "simsiam_separate_batch_norm": lambda dtype: simsiam_step(
        dtype, last_batch_norm="affine", separate_batch_norm=True
    ),
}
