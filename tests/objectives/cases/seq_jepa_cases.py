"""seq-JEPA without dropout, whose draws depend on the number of processes: some steps on one batch, with the target
following in between.

After these the mean cosine is far enough from zero to be compared relative to its own size.
"""

from functools import partial

import torch
from torch import Tensor
from two_process_cases import GLOBAL_BATCH, Tensors, make_encoder, train_steps

from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig

VARIANTS = {
    "seq_jepa": {},
    "seq_jepa_separate_batch_norm": {"separate_batch_norm": True},
    "seq_jepa_released_actions": {"action_statistics": "last_apart_zeros"},
    "seq_jepa_no_target": {"momentum_target": False},
    "seq_jepa_aggregator_only": {"conditioning": "aggregator"},
    "seq_jepa_no_action": {"conditioning": "none"},
}


def random_sequences(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Four views of each object, and the three actions between them."""
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(GLOBAL_BATCH, 4, 3, 8, 8, generator=generator, dtype=dtype)
    return views, torch.randn(GLOBAL_BATCH, 3, 4, generator=generator, dtype=dtype)


def seq_jepa_steps(dtype: torch.dtype, **changes: object) -> Tensors:
    config = SeqJEPAConfig(
        action_width=8, layers=2, feedforward_width=32, dropout=0.0, predictor_hidden_width=20, **changes
    )
    return train_steps(
        lambda: SeqJEPA(make_encoder(), config),
        dtype,
        random_sequences,
        steps=6,
        after_step=lambda objective: objective.update_target(0.9),
    )


CASES = {name: partial(seq_jepa_steps, **changes) for name, changes in VARIANTS.items()}
