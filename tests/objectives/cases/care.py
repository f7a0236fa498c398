"""CARE on SimCLR: two chunks of the global batch per process, and views of their own or the base's views again."""

import torch

from ssl_equi.objectives.care import CARE, CAREConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from tests.objectives.case import SIDE, Case, Inputs


def shared_views(size: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    return {"shared_views": torch.randn(size, 2, 3, SIDE, SIDE, generator=generator).to(dtype)}


def care(separate_batch_norm: bool = False, **options: object) -> Case:
    base = SimCLRConfig(projector=(24, 24), separate_batch_norm=separate_batch_norm)
    config = CAREConfig(weight=5.0, chunk_size=3, **options)
    return Case(
        lambda encoder: CARE(SimCLR(encoder(), base), config),
        more=(lambda *_: {}) if config.reuse_views else shared_views,
        has_encoder_features=False,
    )


CASES = {
    "care_four_passes": care(),
    "care_four_passes_shared_statistics": care(separate_statistics=False),
    "care_separate_batch_norm": care(separate_batch_norm=True),
    "care_two_passes": care(reuse_views=True),
}
