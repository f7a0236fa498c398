"""The supervised ceiling, which is also given labels."""

import torch

from ssl_equi.objectives.supervised import Supervised, SupervisedConfig
from tests.objectives.case import Case, Inputs


def labels(size: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    return {"labels": torch.randint(5, (size,), generator=generator)}


CASES = {
    "supervised": Case(
        lambda encoder: Supervised(encoder(), SupervisedConfig(num_classes=5, hidden=(24, 24))),
        actions=(4,),
        more=labels,
    ),
}
