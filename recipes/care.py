"""CARE: the same augmentation must turn all embeddings alike (Gupta et al., ICLR 2024).

A contrastive base learns from two views as usual. Besides, two augmentations (a, a') are applied to all images of a
chunk: the cosines between the chunk's embeddings must be the same under a as under a', so that an augmentation acts on
the embedding space as one rotation, whatever the image. Every chunk has a pair (a, a') of its own, as in the paper's
algorithm (the released code gives all chunks of a step the same pair).

    accelerate launch recipes/care.py                                    the embedded set; minutes on two CPU cores
    accelerate launch recipes/care.py two_pass                           the base learns from the shared views, too
    accelerate launch recipes/care.py cifar10 --data-dir CIFAR           CIFAR-10 as in the paper, SimCLR base
    accelerate launch --multi_gpu recipes/care.py imagenet100 --data-dir FOLDER       ImageNet-100 as in the paper
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

from ssl_equi.cli import run_recipe
from ssl_equi.errors import RunError
from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_equi.objectives.care import CARE, CAREConfig, mean_pair_weight
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.options import ActsWhen, Momentum
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16, OWN_PAIRS, UNSHUFFLED, reproduces
from ssl_equi.views.makers import AugmentedViews, views
from ssl_equi.views.options import SharedPairOptions


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of CARE."""

    views: SharedPairOptions = field(default_factory=SharedPairOptions)
    """Where the views of an object come from, and how the shared ones are augmented."""
    objective: CAREConfig = field(default_factory=CAREConfig)
    """Weight and chunks of the Gram term."""
    base: Literal["simclr", "moco", "barlow_twins"] = "simclr"
    """The objective that the Gram term is added to; its options follow under its name."""
    simclr: Annotated[SimCLRConfig, ActsWhen(lambda options: options.base == "simclr", "choose --base simclr")] = field(
        default_factory=SimCLRConfig
    )
    """Options of the base simclr."""
    moco: Annotated[
        MoCoConfig,
        ActsWhen(lambda options: options.base == "moco", "choose --base moco"),
        ActsWhen(
            lambda options: options.moco.symmetric or options.objective.weight > 0,
            "give an objective.weight above 0",
            only=("separate_batch_norm",),
        ),
    ] = field(default_factory=MoCoConfig)
    """Options of the base moco."""
    target_momentum: Annotated[Momentum, ActsWhen(lambda options: options.base == "moco", "choose --base moco")] = 0.99
    """Momentum of the base moco's target encoder. Paper: .99."""
    barlow_twins: Annotated[
        BarlowTwinsConfig, ActsWhen(lambda options: options.base == "barlow_twins", "choose --base barlow_twins")
    ] = field(default_factory=BarlowTwinsConfig)
    """Options of the base barlow_twins."""

    @property
    def makes_shared_views(self) -> bool:
        """Whether the Gram term has views of its own, beside those of the base."""
        return self.objective.weight > 0 and not self.objective.reuse_views

    def check(self) -> None:
        """Raises RunError for incomplete batches, which may not consist of whole chunks."""
        super().check()
        if self.keep_incomplete_batch:
            raise RunError(
                "--keep-incomplete-batch is given and chunks of images share their augmentations, of which an "
                "incomplete batch may hold a part: leave it out"
            )


def embedded() -> Config:
    """The embedded set: the base learns from rendered pairs, the Gram term from shared augmentations of one of them."""
    widths = (1024, 1024, 1024)
    return Config(
        objective=CAREConfig(weight=0.9, chunk_size=16), simclr=SimCLRConfig(temperature=0.1, projector=widths),
        moco=MoCoConfig(projector=(1024, 128), queue_size=1024), barlow_twins=BarlowTwinsConfig(projector=widths),
    )  # fmt: skip


def two_pass() -> Config:
    """The embedded set, augmented views only: two encoder passes a step, as many as the base alone."""
    config = embedded()
    return replace(
        config, views=SharedPairOptions(source="augmented", preset="care_cifar"),
        objective=replace(config.objective, reuse_views=True),
    )  # fmt: skip


@reproduces("paper", "CARE")
def cifar10() -> Config:
    """CIFAR-10 as in the paper: 16 chunks of 16 images, lambda .01 (which the released script sets to .03)."""
    return Config(
        dataset="cifar10", image_size=32, encoder="resnet50_small_images",
        encoder_arguments={"zero_init_last": False, "stem_init": "pytorch"},
        views=SharedPairOptions(source="augmented", preset="care_cifar"), batch_size=256, epochs=400,
        final_learning_rate=1e-3, warmup_steps=0, weight_decay=1e-6, log_every=50, save_every=975,
        objective=CAREConfig(weight=mean_pair_weight(0.01, 16), chunk_size=16, separate_statistics=False),
        simclr=SimCLRConfig(temperature=0.5, projector=(512, 128), separate_batch_norm=True),
    )  # fmt: skip


@reproduces("release", "CARE", OWN_PAIRS)
def cifar10_released() -> Config:
    """CIFAR-10 with the lambda of the released script, .03."""
    config = cifar10()
    return replace(config, objective=replace(config.objective, weight=mean_pair_weight(0.03, 16)))


@reproduces("paper", "CARE")
def cifar100() -> Config:
    """CIFAR-100 as in the paper and the script: 4 chunks of 64 images, lambda .001."""
    config = cifar10()
    objective = CAREConfig(weight=mean_pair_weight(0.001, 64), chunk_size=64, separate_statistics=False)
    return replace(config, dataset="cifar100", objective=objective)


@reproduces("paper", "CARE")
def stl10() -> Config:
    """STL-10 at 32 pixels as in the paper: 8 chunks of 32 images, SGD (momentum .9; the script forgets to pass it)."""
    return replace(
        cifar10(), dataset="stl10", optimizer="sgd", learning_rate=0.06, final_learning_rate=0.0, warmup_steps=4100,
        weight_decay=5e-4,
        objective=CAREConfig(weight=mean_pair_weight(0.01, 32), chunk_size=32, separate_statistics=False),
    )  # fmt: skip


@reproduces("paper", "CARE", BF16, "chunks of 8 images as in the released script; the paper cuts a batch into 4")
def imagenet100() -> Config:
    """A folder of 100 ImageNet classes, SimCLR base, as in the paper: batch 512, learning rate .8, lambda .005."""
    return Config(
        dataset="folder", image_size=224, evaluation_split="val", encoder="resnet50",
        encoder_arguments={"zero_init_last": False},
        views=SharedPairOptions(source="augmented", preset="care_imagenet100"), batch_size=512, epochs=200,
        optimizer="sgd", learning_rate=0.8, final_learning_rate=0.0, warmup_steps=0, weight_decay=1e-4,
        mixed_precision="bf16", log_every=50, save_every=1000,
        objective=CAREConfig(weight=mean_pair_weight(0.005, 8), chunk_size=8, separate_statistics=False),
        simclr=SimCLRConfig(
            temperature=0.2, projector=(2048, 128), hidden_batch_norm=False, separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces(
    "release",
    "CARE",
    OWN_PAIRS,
    BF16,
    "negatives of all processes, not of one",
    "shared views of all images of a batch, not of 128, and cropped at random, not in the middle",
)
def imagenet100_released() -> Config:
    """The same with the script's batch of 256 and learning rate of .4."""
    return replace(imagenet100(), batch_size=256, learning_rate=0.4)


@reproduces(
    "paper",
    "CARE",
    BF16,
    UNSHUFFLED,
    "chunks of 8 images as in the released script; the paper cuts a batch into 8",
)
def imagenet100_moco() -> Config:
    """The same data with MoCo-v2 as the base, lambda .01 as in the paper (.005 in the script)."""
    return replace(
        imagenet100(), base="moco",
        objective=CAREConfig(weight=mean_pair_weight(0.01, 8), chunk_size=8, separate_statistics=False),
        moco=MoCoConfig(temperature=0.2, queue_size=65536, projector=(2048, 128), separate_batch_norm=True),
        target_momentum=0.99,
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded,
    "two_pass": two_pass,
    "cifar10": cifar10,
    "cifar10_released": cifar10_released,
    "cifar100": cifar100,
    "stl10": stl10,
    "imagenet100": imagenet100,
    "imagenet100_released": imagenet100_released,
    "imagenet100_moco": imagenet100_moco,
}


def build_base(config: Config) -> SimCLR | MoCo | BarlowTwins:
    """The encoder and the base objective."""
    encoder = initial_encoder(config)
    if config.base == "simclr":
        return SimCLR(encoder, config.simclr)
    if config.base == "moco":
        return MoCo(encoder, config.moco)
    return BarlowTwins(encoder, config.barlow_twins)


def build(config: Config) -> CARE:
    """The encoder and its objective, initialised from the seed; no side effects."""
    return CARE(build_base(config), config.objective)


def main(config: Config) -> None:
    two_passes, chunk_size = config.objective.reuse_views, config.objective.chunk_size
    run = Pretraining(config, "care", build(config), partial(views, config, shared_by=chunk_size if two_passes else 1))
    shared_views = AugmentedViews(config, run.data, run.processes, shared_by=chunk_size, name="shared view")
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(
            pair.images, None, shared_views(batch, step).images if config.makes_shared_views else None
        )
        run.objective.update_target(config.target_momentum)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
