"""VICReg: the invariant baseline (Bardes, Ponce and LeCun, ICLR 2022), with the sizes of the SIE paper's comparison.

Two views of an object must have equal embeddings, whose dimensions vary and are not correlated. Nothing asks for the
pose: what the features still tell of it is what SIE has to beat, at the same encoder, data, steps and learning rate.

    accelerate launch recipes/vicreg.py                        the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/vicreg.py paper --data-dir SHARDS      3DIEBench with the paper's settings
    accelerate launch --multi_gpu recipes/vicreg.py imagenet --data-dir SHARDS   ImageNet with VICReg's own settings
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import (
    BF16_FOR_FP16,
    FRESH_DRAWS,
    IMAGENET,
    OWN_COVARIANCE,
    SEQ_JEPA_RELEASED,
    SIE_RELEASED,
    reproduces,
)
from ssl_equi.views.makers import views
from ssl_equi.views.options import PairOptions


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of VICReg. "Paper" is Garrido et al. (SIE), whose baseline it is, with their released code."""

    objective: VICRegConfig = field(default_factory=VICRegConfig)
    """Weights and sizes of the loss."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of SIE's."""
    return Config(objective=VICRegConfig(projector=(1024, 1024, 1024)))


def augmented() -> Config:
    """The embedded set as ordinary images: two augmentations of one rendering, whose pose nobody knows."""
    return replace(embedded(), views=PairOptions(source="augmented", preset="simclr_cifar"))


@reproduces("release", "SIE", BF16_FOR_FP16, OWN_COVARIANCE)
def paper() -> Config:
    """3DIEBench as the baseline of SIE, with the authors' own ResNet-18."""
    return Config(
        **SIE_RELEASED,
        objective=VICRegConfig(separate_batch_norm=True),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """3DIEBench as the baseline in the released code of seq-JEPA: 128 pixels, weights 25, 25 and 1."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=VICRegConfig(
            inv_weight=25.0, variance_weight=25.0, covariance_weight=1.0, separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("paper", "VICReg", BF16_FOR_FP16)
def imagenet() -> Config:
    """ImageNet as in the VICReg paper: batch 2,048, LARS, 1,000 epochs, weights 25, 25 and 1."""
    return Config(
        **IMAGENET, views=PairOptions(source="augmented", preset="byol_imagenet"),
        batch_size=2048, epochs=1000, optimizer="lars",
        learning_rate=1.6, final_learning_rate=0.002, warmup_steps=6250, weight_decay=1e-6, decay_bias_and_norm=False,
        objective=VICRegConfig(
            inv_weight=25.0, variance_weight=25.0, covariance_weight=1.0, projector=(8192, 8192, 8192),
            separate_batch_norm=True,
        ),
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded, "augmented": augmented, "paper": paper, "threediebench_released": threediebench_released,
    "imagenet": imagenet,
}  # fmt: skip


def build(config: Config) -> VICReg:
    """The encoder and its objective, initialised from the seed; no side effects."""
    return VICReg(initial_encoder(config), config.objective)


def main(config: Config) -> None:
    run = Pretraining(config, "vicreg", build(config), partial(views, config))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
