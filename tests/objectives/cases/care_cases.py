"""CARE on SimCLR: two chunks of the global batch a process, and views of their own or the base's views again."""

import torch
from torch import Tensor
from two_process_cases import Tensors, make_encoder, random_pairs, train_steps

from ssl_equi.objectives.care import CARE, CAREConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig


class CAREOfTwoPairs(CARE):
    """CARE whose shared views come second, as the harness passes its inputs."""

    def forward(self, views: Tensor, shared_views: Tensor | None = None):
        return super().forward(views, None, shared_views)


def random_shared_pairs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return random_pairs(dtype)[0], random_pairs(dtype)[0]


def care_step(dtype: torch.dtype, separate_batch_norm: bool = False, **options: object) -> Tensors:
    config = CAREConfig(weight=5.0, chunk_size=3, **options)

    def make() -> CARE:
        base = SimCLRConfig(projector=(24, 24), separate_batch_norm=separate_batch_norm)
        return CAREOfTwoPairs(SimCLR(make_encoder(), base), config)

    two_passes = config.reuse_views
    return train_steps(make, dtype, lambda dtype: random_shared_pairs(dtype)[: 1 if two_passes else 2])


CASES = {
    "care_four_passes": lambda dtype: care_step(dtype),
    "care_four_passes_shared_statistics": lambda dtype: care_step(dtype, separate_statistics=False),
    "care_separate_batch_norm": lambda dtype: care_step(dtype, separate_batch_norm=True),
    "care_two_passes": lambda dtype: care_step(dtype, reuse_views=True),
}
