"""BYOL and Conditional BYOL, with a step of the target between two batches."""

from ssl_equi.objectives.byol import BYOL, BYOLConfig, ConditionalBYOL, ConditionalBYOLConfig
from tests.objectives.case import Case


def byol(**changes: object) -> Case:
    config = BYOLConfig(projector=(24, 16), predictor_hidden_width=20, **changes)
    return Case(lambda encoder: BYOL(encoder(), config), steps=2, momentum=0.9)


def conditional_byol(**changes: object) -> Case:
    """View 2 is for the target alone."""
    config = ConditionalBYOLConfig(projector=(24, 24), predictor_hidden_width=20, **changes)
    return Case(
        lambda encoder: ConditionalBYOL(encoder(), config),
        actions=(4,),
        encoded=1,
        has_encoder_features=False,
        steps=2,
        momentum=0.7,
    )


CASES = {
    "byol": byol(),
    "byol_separate_batch_norm": byol(separate_batch_norm=True),
    "conditional_byol": conditional_byol(),
    "conditional_byol_last_batch_norm": conditional_byol(last_batch_norm="not_affine"),
}
