"""Everything that turns features into a number, as one value that is stored and printed with the number."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ProbeProtocol:
    """How heads are trained and judged. All heads train with Adam and are reported after the last epoch.

    Training draws new views or pairs of each object every epoch; evaluation uses fixed ones that depend on
    `evaluation_seed` and the split's shape only. With `standardise`, features are shifted and scaled by the mean and
    standard deviation of each column over all training views (1 % of the average deviation at least); the finished
    head has that folded into its first layer.
    """

    name: str = "ssl_equi_v1"
    batch_size: int = 256
    learning_rate: float = 1e-3
    learning_rate_schedule: Literal["constant", "cosine"] = "cosine"  # cosine: down to zero at the last step
    weight_decay: float = 0.0
    standardise: bool = True

    # Class of the object from one view, linear head, cross-entropy.
    classification_epochs: int = 20
    classification_views_per_object: int | None = None  # None: every view, each epoch

    # Body-frame relative quaternion from two views' concatenated features, mean squared error.
    rotation_epochs: int = 20
    rotation_pairs_per_object: int = 10
    rotation_hidden: tuple[int, ...] = (512, 512)

    # Differences of floor hue and light hue from two views' concatenated features, linear head.
    colour_solver: Literal["ridge", "adam"] = "ridge"
    colour_epochs: int = 1
    colour_pairs_per_object: int = 10
    ridge_strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # penalty per sample
    ridge_held_out_share: float = 0.2  # of the training objects, to choose the strength; then refitted on all

    evaluation_views_per_object: int | None = None  # None: every view
    evaluation_pairs_per_object: int = 10
    evaluation_seed: int = 0


def embedded() -> ProbeProtocol:
    """The protocol of the embedded data set: a minute for two encoders on two CPU cores."""
    return ProbeProtocol()


def sie() -> ProbeProtocol:
    """The protocol of SIE (Garrido et al., ICML 2023, released evaluation scripts), but on a truly frozen encoder.

    300 epochs of one random view (or pair) of each object, batch 256, Adam with a constant learning rate of 1e-3, raw
    features, one fixed view (or pair) of each test object. The released scripts keep batch normalisation in training
    mode; here the encoder is in evaluation mode, hence the name.
    """
    return ProbeProtocol(
        name="sie_eval_mode",
        learning_rate_schedule="constant",
        standardise=False,
        classification_epochs=300,
        classification_views_per_object=1,
        rotation_epochs=300,
        rotation_pairs_per_object=1,
        rotation_hidden=(1024, 1024),
        colour_solver="adam",
        colour_epochs=300,
        colour_pairs_per_object=1,
        evaluation_views_per_object=1,
        evaluation_pairs_per_object=1,
    )
