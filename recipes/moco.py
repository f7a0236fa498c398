"""MoCo-v2: a view must pick its other view's key among a long queue of earlier keys (He et al., CVPR 2020).

Keys come from a slowly following copy of the network, so that a queue of them can be kept. An invariant baseline, and a
base of CARE.

    accelerate launch recipes/moco.py                                     the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/moco.py imagenet --data-dir SHARDS      ImageNet with the paper's settings
    accelerate launch --multi_gpu recipes/moco.py imagenet100 --data-dir FOLDER       ImageNet-100 as the CARE paper
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from ssl_equi.cli import run_recipe
from ssl_equi.errors import RunError
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.options import ActsWhen, Momentum
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16, BF16_FOR_FLOAT32, IMAGENET, UNSHUFFLED, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import PairOptions


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of MoCo-v2."""

    objective: Annotated[
        MoCoConfig,
        ActsWhen(
            lambda options: options.objective.symmetric, "add --objective.symmetric", only=("separate_batch_norm",)
        ),
    ] = field(default_factory=MoCoConfig)
    """Temperature, queue and sizes."""
    target_momentum: Momentum = 0.999
    """Of the network that makes the keys, at every step. Paper: .999."""

    def check(self) -> None:
        """Raises RunError for incomplete batches, since the queue takes equally many keys at every step."""
        super().check()
        if self.keep_incomplete_batch:
            raise RunError(
                "--keep-incomplete-batch is given and the queue takes equally many keys at every step: leave it out"
            )


def embedded() -> Config:
    """The embedded set: a queue as long as the set, and keys that follow faster than in long runs."""
    return Config(objective=MoCoConfig(projector=(1024, 128), queue_size=1024), target_momentum=0.99)


@reproduces("paper", "MoCo v2", BF16_FOR_FLOAT32, UNSHUFFLED)
def imagenet() -> Config:
    """ImageNet with the settings of MoCo-v2: batch 256, SGD, 200 epochs."""
    return Config(
        **(IMAGENET | {"save_every": 5000}), encoder_arguments={"zero_init_last": False},
        views=PairOptions(source="augmented", preset="mocov2"), batch_size=256, epochs=200, optimizer="sgd",
        learning_rate=0.03, final_learning_rate=0.0, warmup_steps=0, weight_decay=1e-4,
    )  # fmt: skip


@reproduces("paper", "CARE", BF16, UNSHUFFLED)
def imagenet100() -> Config:
    """A folder of 100 ImageNet classes as the baseline of CARE (Gupta et al., ICLR 2024): batch 512, rate .8."""
    return replace(
        imagenet(), dataset="folder", views=PairOptions(source="augmented", preset="care_imagenet100"), batch_size=512,
        learning_rate=0.8, target_momentum=0.99, save_every=1000,
    )  # fmt: skip


@reproduces("release", "CARE", BF16, UNSHUFFLED)
def imagenet100_released() -> Config:
    """The same with the batch of 256 and the learning rate of .4 of CARE's script."""
    return replace(imagenet100(), batch_size=256, learning_rate=0.4)


CONFIGS = {
    "embedded": embedded,
    "imagenet": imagenet,
    "imagenet100": imagenet100,
    "imagenet100_released": imagenet100_released,
}


def build(config: Config) -> MoCo:
    """The encoder and its objective, initialised from the seed; no side effects."""
    return MoCo(initial_encoder(config), config.objective)


def main(config: Config) -> None:
    run = Pretraining(config, "moco", build(config), partial(views, config))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images)
        run.objective.update_target(config.target_momentum)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
