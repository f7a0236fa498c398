"""MoCo, with a step of the target and of the queue between two batches."""

import torch
from two_process_cases import GLOBAL_BATCH, Tensors, make_encoder, train_steps

from ssl_equi.objectives.moco import MoCo, MoCoConfig


def moco_steps(dtype: torch.dtype, **changes: object) -> Tensors:
    config = MoCoConfig(queue_size=4 * GLOBAL_BATCH, projector=(24, 16), **changes)
    return train_steps(
        lambda: MoCo(make_encoder(), config),
        dtype,
        steps=2,
        after_step=lambda objective: objective.update_target(0.9),
    )


CASES = {
    "moco": lambda dtype: moco_steps(dtype),
    "moco_symmetric": lambda dtype: moco_steps(dtype, symmetric=True),
    "moco_separate_batch_norm": lambda dtype: moco_steps(dtype, symmetric=True, separate_batch_norm=True),
}
