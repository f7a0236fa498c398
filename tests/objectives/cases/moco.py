"""MoCo, with a step of the target and of the queue between two batches."""

from ssl_equi.objectives.moco import MoCo, MoCoConfig
from tests.objectives.case import SIZE, Case


def moco(symmetric: bool = False, **changes: object) -> Case:
    """Only the symmetric loss shows view 2 to the encoder."""
    config = MoCoConfig(queue_size=4 * SIZE, projector=(24, 16), symmetric=symmetric, **changes)
    encoded = 2 if symmetric else 1
    return Case(
        lambda encoder: MoCo(encoder(), config),
        encoded=encoded,
        has_encoder_features=symmetric,
        steps=2,
        momentum=0.9,
    )


CASES = {
    "moco": moco(),
    "moco_symmetric": moco(symmetric=True),
    "moco_separate_batch_norm": moco(symmetric=True, separate_batch_norm=True),
}
