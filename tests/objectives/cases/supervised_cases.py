"""The supervised ceiling, which is also given labels."""

import torch
from torch import Tensor
from two_process_cases import GLOBAL_BATCH, make_encoder, random_pairs, train_steps

from ssl_equi.objectives.supervised import Supervised, SupervisedConfig


def labelled_pairs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (*random_pairs(dtype), torch.randint(5, (GLOBAL_BATCH,)))


CASES = {
    "supervised": lambda dtype: train_steps(
        lambda: Supervised(make_encoder(), SupervisedConfig(num_classes=5, hidden=(24, 24))),
        dtype,
        labelled_pairs,
    ),
}
