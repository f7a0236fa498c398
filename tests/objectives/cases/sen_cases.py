"""SEN."""

from two_process_cases import BatchNormEncoder, train_steps

from ssl_equi.objectives.sen import SEN, SENConfig

CASES = {
    "sen": lambda dtype: train_steps(lambda: SEN(BatchNormEncoder(), SENConfig(projector=(24, 24))), dtype),
    "sen_separate_batch_norm": lambda dtype: train_steps(
        lambda: SEN(BatchNormEncoder(), SENConfig(projector=(24, 24), separate_batch_norm=True)), dtype
    ),
}
