"""BYOL, with a step of the target between two batches."""

import torch
from two_process_cases import Tensors, make_encoder, train_steps

from ssl_equi.objectives.byol import BYOL, BYOLConfig


def byol_steps(dtype: torch.dtype, *, separate_batch_norm: bool) -> Tensors:
    config = BYOLConfig(projector=(24, 16), predictor_hidden_width=20, separate_batch_norm=separate_batch_norm)
    return train_steps(
        lambda: BYOL(make_encoder(), config),
        dtype,
        steps=2,
        after_step=lambda objective: objective.update_target(0.9),
    )


CASES = {
    "byol": lambda dtype: byol_steps(dtype, separate_batch_norm=False),
    "byol_separate_batch_norm": lambda dtype: byol_steps(dtype, separate_batch_norm=True),
}
