"""Conv-JEPA on three observed views, some steps on one batch with the target following in between.

After these the mean cosine is far enough from zero to be compared relative to its own size.
"""

import torch
from torch import Tensor
from two_process_cases import GLOBAL_BATCH, Tensors, make_encoder, train_steps

from ssl_equi.objectives.conv_jepa import ConvJEPA, ConvJEPAConfig


def views_and_actions(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(GLOBAL_BATCH, 4, 3, 8, 8, generator=generator, dtype=dtype)
    return views, torch.randn(GLOBAL_BATCH, 3, 2, generator=generator, dtype=dtype)


def conv_jepa_steps(dtype: torch.dtype, **changes: object) -> Tensors:
    config = ConvJEPAConfig(projector=(24, 16), predictor_hidden_width=20, action_width=8, **changes)
    return train_steps(
        lambda: ConvJEPA(make_encoder(), config),
        dtype,
        views_and_actions,
        steps=6,
        after_step=lambda objective: objective.update_target(0.9),
    )


CASES = {
    "conv_jepa": lambda dtype: conv_jepa_steps(dtype),
    "conv_jepa_sum_separate_batch_norm": lambda dtype: conv_jepa_steps(
        dtype, reduction="sum", separate_batch_norm=True
    ),
}
