"""Barlow Twins."""

from two_process_cases import make_encoder, train_steps

from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig

CASES = {
    "barlow_twins": lambda dtype: train_steps(
        lambda: BarlowTwins(make_encoder(), BarlowTwinsConfig(projector=(24, 24))), dtype
    ),
    "barlow_twins_separate_batch_norm": lambda dtype: train_steps(
        lambda: BarlowTwins(make_encoder(), BarlowTwinsConfig(projector=(24, 24), separate_batch_norm=True)), dtype
    ),
}
