"""Everything that turns features into a number, as one value that is stored and printed with the number."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

ProtocolName = Literal[
    "ssl_equi", "embedded", "sie", "seq_jepa", "equicaps", "care", "care_imagenet100", "essl", "essl_imagenet"
]  # embedded: ssl_equi with fewer questions, for the end of a training run

# Questions that need more images than the split's.
AUGMENTATION_EQUIVARIANCE = "augmentation_equivariance"
AUGMENTATION_PARAMETERS = "augmentation_parameters"

# One question of each kind, answered from the features of the splits' views.
CORE_TASKS: tuple[str, ...] = (
    "classification",
    "relative_rotation",
    "absolute_rotation",
    "translation_object",
    "translation_base",
    "colour",
)

# Stands for every task that the features of the splits' views answer (see `ssl_equi.evaluation.task`).
FEATURE_TASKS = "features"


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


@dataclass(frozen=True)
class CorruptionProtocol:
    """Which corrupted views heads are judged on; `ssl_equi.evaluation.tasks.corruptions` says what is done to them.

    Of splits with more views, fewer views of each object are taken (two at least), and then fewer objects.
    """

    severity: int = 3  # 1 to 5
    max_images: int = 2304  # of the judged split
    seed: int = 0  # of the choice and of the noise


@dataclass(frozen=True)
class AugmentationParametersProtocol:
    """From which augmentations a head learns to tell their parameters; one augmentation of each image.

    "crop_flip_jitter_blur" crops at least a fifth of the area, mirrors every other time, and always jitters colours
    (.4, .4, .4, .1) and blurs (deviations of .1 to 2 pixels).
    """

    augmentations: str = "crop_flip_jitter_blur"  # or a preset of ssl_equi.views.presets, whose view 1 is taken
    max_train_images: int = 8192  # chosen as those of CorruptionProtocol
    max_images: int = 2304  # of the judged split
    hidden: tuple[int, ...] = (512, 512)
    epochs: int = 6  # the best of 3, 6, 12 and 24 on the val split of the embedded set; more overfit
    seed: int = 0


@dataclass(frozen=True)
class PoseDistributionProtocol:
    """How a distribution over rotations is learned, by Adam with a cosine, and judged.

    `ssl_equi.evaluation.tasks.pose_distribution` says what the networks and the two grids of rotations are for.
    """

    epochs: int = 10
    samples_per_object: int = 10  # views or pairs, drawn anew each epoch
    learning_rate: float = 3e-3  # likelier on unseen views of synthetic symmetric objects than with 1e-3
    hidden: tuple[int, ...] = (256, 256)  # of the network of features, and of that of rotations
    num_codes: int = 256  # length of the vectors whose product is the log density
    num_frequencies: int = 1  # sines and cosines of a matrix's entries times pi, 2 pi, 4 pi, ...
    training_rotations: int = 512  # that a training view's own rotation is told from
    evaluation_rotations: int = 20_000  # about 7.5 degrees apart


@dataclass(frozen=True)
class ProbeProtocol:
    """How heads are trained and judged. All heads are reported after the last epoch.

    Training draws new views or pairs of each object every epoch; evaluation uses fixed ones that depend on
    `evaluation_seed` and the split's shape only. With `standardise`, features are shifted and scaled by the mean and
    standard deviation of each column over all training views (1 % of the average deviation at least); the finished
    head has that folded into its first layer.
    """

    name: str = "ssl_equi_v1"
    tasks: tuple[str, ...] = (*CORE_TASKS, AUGMENTATION_EQUIVARIANCE)  # names of tasks, or of groups of them
    paper_metrics: tuple[str, ...] = ()  # those that the paper reports, where there is a paper

    batch_size: int = 256
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0  # of sgd
    learning_rate: float = 1e-3
    learning_rate_schedule: Literal["constant", "cosine", "steps"] = "cosine"  # cosine: to zero at the last step
    learning_rate_steps: tuple[int, ...] = ()  # steps: the epochs, counted from 0, that begin with a tenth of the rate
    weight_decay: float = 0.0  # added to the gradient as the derivative of a penalty, by both optimisers
    standardise: bool = True

    # Class of the object from one view, linear head, cross-entropy.
    classification_epochs: int = 20
    classification_views_per_object: int | None = None  # None: every view, each epoch
    classification_best_epoch: bool = False  # also the highest top-1 of all epochs on the judged split, by its own name

    # Body-frame relative quaternion from two views' concatenated features, mean squared error; and the changes of all
    # latents that no other task is about (`ssl_equi.evaluation.tasks.latents`).
    rotation_epochs: int = 20
    rotation_pairs_per_object: int = 10
    rotation_hidden: tuple[int, ...] = (512, 512)

    # Quaternion of a single view's pose (w > 0) from its features, mean squared error; and those latents in one view.
    absolute_rotation_epochs: int = 20
    absolute_rotation_views_per_object: int | None = 10  # None: every view, each epoch
    absolute_rotation_hidden: tuple[int, ...] = (256, 256)

    # Displacement of the object between two views, in its own frame and in the world, from both views' concatenated
    # features, mean squared error; asked where objects move.
    translation_epochs: int = 20
    translation_pairs_per_object: int = 10
    translation_hidden: tuple[int, ...] = (512, 512)

    # Differences of floor hue and light hue from two views' concatenated features.
    colour_solver: Literal["ridge", "adam"] = "ridge"  # adam: the optimiser of all other heads
    colour_hidden: tuple[int, ...] = ()  # none: a linear head; ridge has none
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
    # A set of so few objects that these are fewer pairs is judged on all ordered pairs of views of each object, or on
    # as many of each as the limit allows.
    evaluation_least_pairs: int = 500
    evaluation_most_pairs: int = 30_000
    evaluation_seed: int = 0
    bootstrap_resamples: int = 1000  # of the judged objects, for 95 % percentile intervals; 0: no intervals

    # Whether an augmentation moves the features of all evaluated images alike; nothing is trained.
    augmentation_equivariance: EquivarianceProtocol = field(default_factory=EquivarianceProtocol)

    # The rotation of one view, or between two, as a distribution; asked by name.
    pose_distribution: PoseDistributionProtocol = field(default_factory=PoseDistributionProtocol)

    # Questions of more images; the heads of the first are those of classes and relative rotations above.
    corruption: CorruptionProtocol = field(default_factory=CorruptionProtocol)
    augmentation_parameters: AugmentationParametersProtocol = field(default_factory=AugmentationParametersProtocol)

    def __post_init__(self) -> None:
        if (self.learning_rate_schedule == "steps") != bool(self.learning_rate_steps):
            raise ValueError(
                f"the schedule is {self.learning_rate_schedule!r} and learning_rate_steps is "
                f"{self.learning_rate_steps}: give epochs with 'steps', and with 'steps' only"
            )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is {self.momentum} and the optimizer {self.optimizer!r}: only sgd has momentum")
        if self.colour_hidden and self.colour_solver == "ridge":
            raise ValueError(f"colour_hidden is {self.colour_hidden}: ridge regression is linear, choose adam")


def embedded() -> ProbeProtocol:
    """The protocol of the embedded data set: a minute for two encoders on two CPU cores."""
    return ProbeProtocol()


def ssl_equi() -> ProbeProtocol:
    """The heads of `embedded`, and every question that needs no further images but augmented ones."""
    return replace(embedded(), tasks=(FEATURE_TASKS, AUGMENTATION_EQUIVARIANCE))


def sie() -> ProbeProtocol:
    """The protocol of SIE (Garrido et al., ICML 2023, released evaluation scripts), but on a truly frozen encoder.

    300 epochs of one random view (or pair) of each object, batch 256, Adam with a constant learning rate of 1e-3, raw
    features, one fixed view (or pair) of each test object. A linear head for the class, an MLP with hidden layers of
    1024 and 1024 for rotations and, as in the released command, for colours. The paper's R2 is `r2_pooled`. The
    released scripts keep batch normalisation in training mode; here the encoder is in evaluation mode, hence the name.
    """
    return ProbeProtocol(
        name="sie_eval_mode",
        tasks=("classification", "relative_rotation", "colour"),
        paper_metrics=("top1", "r2_pooled"),
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
        colour_hidden=(1024, 1024),
        colour_epochs=300,
        colour_pairs_per_object=1,
        evaluation_views_per_object=1,
        evaluation_pairs_per_object=1,
        evaluation_least_pairs=0,
    )


def seq_jepa() -> ProbeProtocol:
    """The protocol of seq-JEPA (Ghaemi et al., NeurIPS 2025) for an encoder's features on rendered views.

    As SIE's, with a linear head and 50 epochs for colours, and the rotation of a single view besides. The paper's R2 is
    `r2_uniform`. Aggregates of several views are asked by `evaluation/sequences.py`. The paper draws its evaluation
    views at random; here they are fixed, so that every encoder is judged on the same ones.
    """
    return replace(
        sie(),
        name="seq_jepa",
        tasks=("classification", "relative_rotation", "absolute_rotation", "colour"),
        paper_metrics=("top1", "r2_uniform"),
        colour_hidden=(),
        colour_epochs=50,
    )


def equicaps() -> ProbeProtocol:
    """The protocol of EquiCaps (Konstantinou et al., 2025, arXiv:2506.09895, released evaluation scripts).

    As SIE's (300 epochs, one random view or pair of each object in each, batch 256, Adam with a constant learning rate
    of 1e-3, raw features, the last epoch counts), with the encoder in evaluation mode there too. Rotations and
    translations have the MLP that the paper writes 1024-1024-1024-4 or -3, whose first number is the input, two views
    of 512 features: two hidden layers. Colour has a linear head and 50 epochs. The paper's R2 is `r2_pooled`.

    The released scripts draw the validation pairs anew every epoch; here they are fixed, so that every encoder is
    judged on the same ones. The paper has no probe of absolute rotations; theirs is SIE's here.
    """
    return replace(
        sie(),
        name="equicaps",
        tasks=("classification", "relative_rotation", "translation_object", "translation_base", "colour"),
        colour_hidden=(),
        colour_epochs=50,
    )


def care() -> ProbeProtocol:
    """The protocol of CARE (Gupta et al., ICLR 2024, arXiv:2306.13924) for CIFAR and STL-10.

    Linear head, 100 epochs, batch 512, Adam with a constant learning rate of 1e-3 and a weight decay of 1e-6; geometry
    under 20 augmentations. The paper's probe learns from images that are augmented anew in every epoch, and reports
    the mean over 3 initialisations; here it learns from the cached features of the images as they are.
    """
    return ProbeProtocol(
        name="care_cached",
        tasks=("classification", AUGMENTATION_EQUIVARIANCE),
        paper_metrics=("top1", "wahba_error", "gamma_f"),
        batch_size=512,
        learning_rate_schedule="constant",
        weight_decay=1e-6,
        standardise=False,
        classification_epochs=100,
        augmentation_equivariance=EquivarianceProtocol(num_augmentations=20),
    )


def care_imagenet100() -> ProbeProtocol:
    """The protocol of CARE for ImageNet-100: SGD with a rate of 30, a tenth from epochs 30, 40 and 50 on, of 60.

    Batch 128; momentum of .9 and no weight decay, which the paper doesn't state, as in the linear probe of MoCo. On
    cached features as `care`.
    """
    return replace(
        care(),
        name="care_imagenet100_cached",
        batch_size=128,
        optimizer="sgd",
        momentum=0.9,
        learning_rate=30.0,
        learning_rate_schedule="steps",
        learning_rate_steps=(30, 40, 50),
        weight_decay=0.0,
        classification_epochs=60,
    )


def essl() -> ProbeProtocol:
    """The protocol of E-SSL (Dangovski et al., ICLR 2022, arXiv:2111.00899) for CIFAR-10.

    Linear head, 100 epochs, batch 256, SGD with momentum .9 and a rate of 30 that falls to zero as a cosine, no weight
    decay, the last epoch counts; and the vote of 200 neighbours, weighted with a temperature of .1. The paper's probe
    learns from random crops and mirrorings, and judges the central 32 of 36 pixels, 5 initialisations of one encoder;
    here it learns from the cached features of the images as they are.
    """
    return ProbeProtocol(
        name="essl_cached",
        tasks=("classification", "knn_weighted"),
        paper_metrics=("top1",),
        optimizer="sgd",
        momentum=0.9,
        learning_rate=30.0,
        standardise=False,
        classification_epochs=100,
        knn_weighted_neighbours=200,
        knn_temperature=0.1,
    )


def essl_imagenet() -> ProbeProtocol:
    """The protocol of E-SSL's SimCLR on ImageNet: SGD with a rate of 1 and a weight decay of 1e-6, 100 epochs.

    The paper reports the best epoch on the evaluated images, which chooses by them: `top1_best_epoch`, beside the
    last epoch's `top1`. Momentum and cosine as in `essl`, on cached features too.
    """
    return replace(
        essl(),
        name="essl_imagenet_cached",
        tasks=("classification",),
        paper_metrics=("top1_best_epoch",),
        learning_rate=1.0,
        weight_decay=1e-6,
        classification_best_epoch=True,
    )


PROBE_PROTOCOLS: dict[ProtocolName, Callable[[], ProbeProtocol]] = {
    "ssl_equi": ssl_equi,
    "embedded": embedded,
    "sie": sie,
    "seq_jepa": seq_jepa,
    "equicaps": equicaps,
    "care": care,
    "care_imagenet100": care_imagenet100,
    "essl": essl,
    "essl_imagenet": essl_imagenet,
}
