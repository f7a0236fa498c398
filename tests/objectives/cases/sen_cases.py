"""SEN."""

from two_process_cases import make_encoder, train_steps

from ssl_equi.objectives.sen import SEN, SENConfig

CASES = {
    "sen": lambda dtype: train_steps(lambda: SEN(make_encoder(), SENConfig(projector=(24, 24))), dtype),
    "sen_separate_batch_norm": lambda dtype: train_steps(
        lambda: SEN(make_encoder(), SENConfig(projector=(24, 24), separate_batch_norm=True)), dtype
    ),
}
