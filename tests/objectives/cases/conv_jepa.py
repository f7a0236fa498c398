"""Conv-JEPA on three observed views, with the target following in between."""

from ssl_equi.objectives.conv_jepa import ConvJEPA, ConvJEPAConfig
from tests.objectives.case import Case


def conv_jepa(**changes: object) -> Case:
    config = ConvJEPAConfig(projector=(24, 16), predictor_hidden_width=20, action_width=8, **changes)
    return Case(
        lambda encoder: ConvJEPA(encoder(), config),
        views=4,
        actions=(3, 2),
        encoded=3,
        steps=6,
        momentum=0.9,
        same_batch=True,
    )


CASES = {
    "conv_jepa": conv_jepa(),
    "conv_jepa_sum_separate_batch_norm": conv_jepa(reduction="sum", separate_batch_norm=True),
}
