"""SimCLR."""

from two_process_cases import make_encoder, train_steps

from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig

CASES = {
    "simclr": lambda dtype: train_steps(lambda: SimCLR(make_encoder(), SimCLRConfig(projector=(24, 24))), dtype),
    "simclr_last_batch_norm": lambda dtype: train_steps(
        lambda: SimCLR(
            make_encoder(),
            SimCLRConfig(projector=(24, 24), last_batch_norm="affine", separate_batch_norm=True),
        ),
        dtype,
    ),
    "simclr_other_view": lambda dtype: train_steps(
        lambda: SimCLR(make_encoder(), SimCLRConfig(projector=(24, 24), candidates="other_view")),
        dtype,
    ),
}
