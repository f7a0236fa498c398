"""Everything that turns features into a number, as one value that is stored and printed with the number."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

ProtocolName = Literal["embedded", "sie", "equicaps"]


@dataclass(frozen=True)
class EquivarianceProtocol:
    """Which augmentations the features are compared under, each of them shared by all images.

    "mild" crops to at least half of the area, flips every other time, and always jitters colours (.4, .4, .4, .1):
    strong crops and grayscale remove content, so that no features could follow them by a rotation.
    """

    augmentations: str = "mild"  # or a preset of ssl_equi.views.presets, whose view 1 is taken
    num_augmentations: int = 6  # CARE: 20
    num_compositions: int = 3  # augmentation 2 after 1, 4 after 3, ...
    max_images: int = 2304  # drawn from all views of the evaluated split
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_augmentations < 1 or not 0 <= 2 * self.num_compositions <= self.num_augmentations:
            raise ValueError(
                f"{self.num_compositions} compositions of {self.num_augmentations} augmentations are impossible: use "
                "1 or more augmentations, and two for each composition"
            )
        if self.max_images < 2:
            raise ValueError(f"max_images is {self.max_images}: features of 2 or more images can be compared")


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

    # Quaternion of a single view's pose (w > 0) from its features, mean squared error.
    absolute_rotation_epochs: int = 20
    absolute_rotation_views_per_object: int | None = 10  # None: every view, each epoch
    absolute_rotation_hidden: tuple[int, ...] = (256, 256)

    # Displacement of the object between two views, in its own frame and in the world, from both views' concatenated
    # features, mean squared error; asked where objects move.
    translation_epochs: int = 20
    translation_pairs_per_object: int = 10
    translation_hidden: tuple[int, ...] = (512, 512)

    # Differences of floor hue and light hue from two views' concatenated features, linear head.
    colour_solver: Literal["ridge", "adam"] = "ridge"
    colour_epochs: int = 1
    colour_pairs_per_object: int = 10
    ridge_strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # penalty per sample
    ridge_held_out_share: float = 0.2  # of the training objects, to choose the strength; then refitted on all

    # Class by a linear head whose learning rate and weight decay are chosen on held-out training objects (by top-1,
    # then by cross-entropy) among all combinations, which learn side by side; then it learns from all objects.
    linear_epochs: int = 20
    linear_views_per_object: int | None = None  # None: every view, each epoch
    linear_learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    linear_weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3)  # Adam's, so strengths of a penalty in the loss
    linear_held_out_share: float = 0.2  # of the training objects

    # Class by the training views nearest in cosine similarity of raw features: by a plain vote of `knn_neighbours`, and
    # by the vote of Wu et al. (CVPR 2018) of `knn_weighted_neighbours` with weights exp(similarity / temperature).
    knn_neighbours: int = 20
    knn_weighted_neighbours: int = 200
    knn_temperature: float = 0.1
    knn_views_per_object: int | None = None  # views of each training object that can be neighbours; None: every view

    # Class by a linear head from few objects of each class (1 % and 10 % of the training objects).
    low_shot_steps: int = 1000  # at least; the number of epochs follows
    low_shot_weight_decay: float = 1e-3

    # Sine and cosine of the differences of both hues, MLP on two views' features: a product of both views' hues, which
    # no linear head can form.
    colour_circular_epochs: int = 20
    colour_circular_pairs_per_object: int = 10
    colour_circular_hidden: tuple[int, ...] = (512, 512)

    # Direction of the light from one view, and its change between two, MLPs, mean squared error.
    light_epochs: int = 20
    light_samples_per_object: int | None = 10  # views, or pairs; None: as many as an object has views
    light_hidden: tuple[int, ...] = (256, 256)

    # Do features move linearly with the known rotation? Ridge regression; of more features than
    # `feature_action_components`, so many principal components of the training features are taken.
    feature_action_pairs_per_object: int = 10
    feature_action_components: int = 64
    feature_action_ridge_strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # penalty per sample

    compared_objects: int = 1000  # whose views are each other's gallery in the nearest neighbours of `invariance`

    evaluation_views_per_object: int | None = None  # None: every view
    evaluation_pairs_per_object: int = 10
    evaluation_seed: int = 0

    # Whether an augmentation moves the features of all evaluated images alike; nothing is trained.
    augmentation_equivariance: EquivarianceProtocol = field(default_factory=EquivarianceProtocol)


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
        absolute_rotation_epochs=300,  # SIE has no such probe; the head is that of seq-JEPA's individual rotation
        absolute_rotation_views_per_object=1,
        absolute_rotation_hidden=(1024, 1024),
        translation_epochs=300,  # SIE's data don't move; the head is that of its rotations
        translation_pairs_per_object=1,
        translation_hidden=(1024, 1024),
        colour_solver="adam",
        colour_epochs=300,
        colour_pairs_per_object=1,
        evaluation_views_per_object=1,
        evaluation_pairs_per_object=1,
    )


def equicaps() -> ProbeProtocol:
    """The protocol of EquiCaps (Konstantinou et al., 2025, arXiv:2506.09895, released evaluation scripts).

    As SIE's (300 epochs, one random view or pair of each object in each, batch 256, Adam with a constant learning rate
    of 1e-3, raw features, the last epoch counts), with the encoder in evaluation mode there too. Rotations and
    translations have the MLP that the paper writes 1024-1024-1024-4 or -3, whose first number is the input, two views
    of 512 features: two hidden layers. Colour has a linear head and 50 epochs.

    The released scripts draw the validation pairs anew every epoch; here they are fixed, so that every encoder is
    judged on the same ones. The paper has no probe of absolute rotations; theirs is SIE's here.
    """
    return replace(sie(), name="equicaps", colour_epochs=50)


PROBE_PROTOCOLS: dict[ProtocolName, Callable[[], ProbeProtocol]] = {
    "embedded": embedded,
    "sie": sie,
    "equicaps": equicaps,
}
