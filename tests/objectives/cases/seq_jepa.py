"""seq-JEPA without dropout, whose draws depend on the number of processes, with the target following in between."""

from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from tests.objectives.case import Case


def seq_jepa(**changes: object) -> Case:
    config = SeqJEPAConfig(
        action_width=8, layers=2, feedforward_width=32, dropout=0.0, predictor_hidden_width=20, **changes
    )
    return Case(
        lambda encoder: SeqJEPA(encoder(), config),
        views=4,
        actions=() if config.conditioning == "none" else (3, 4),
        encoded=3,
        in_bfloat16=False,
        steps=6,
        momentum=0.9,
        same_batch=True,
    )


CASES = {
    "seq_jepa": seq_jepa(),
    "seq_jepa_separate_batch_norm": seq_jepa(separate_batch_norm=True),
    "seq_jepa_released_actions": seq_jepa(action_statistics="last_apart_zeros"),
    "seq_jepa_no_target": seq_jepa(momentum_target=False),
    "seq_jepa_aggregator_only": seq_jepa(conditioning="aggregator"),
    "seq_jepa_no_action": seq_jepa(conditioning="none"),
}
