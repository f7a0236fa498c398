"""Conditional BYOL, two steps with the target following in between."""

import torch
from two_process_cases import Tensors, make_encoder, train_steps

from ssl_equi.objectives.byol import ConditionalBYOL, ConditionalBYOLConfig


def conditional_byol_steps(dtype: torch.dtype, **changes: object) -> Tensors:
    config = ConditionalBYOLConfig(projector=(24, 24), predictor_hidden_width=20, **changes)
    return train_steps(
        lambda: ConditionalBYOL(make_encoder(), config),
        dtype,
        steps=2,
        after_step=lambda objective: objective.update_target(0.7),
    )


CASES = {
    "conditional_byol": lambda dtype: conditional_byol_steps(dtype),
    "conditional_byol_last_batch_norm": lambda dtype: conditional_byol_steps(dtype, last_batch_norm="not_affine"),
}
