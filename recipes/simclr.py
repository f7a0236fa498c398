"""SimCLR: two views of an object attract, all other views repel (Chen et al., ICML 2020).

The contrastive baseline, and the base that E-SSL, CARE, AugSelf and EquiMod add to. On the embedded set the views are
two renderings of an object; on ordinary images two augmentations of one.

    accelerate launch recipes/simclr.py                                   the embedded set; minutes on two CPU cores
    accelerate launch recipes/simclr.py cifar10 --data-dir CIFAR          CIFAR-10 with the settings of the E-SSL paper
    accelerate launch --multi_gpu recipes/simclr.py imagenet --data-dir SHARDS     ImageNet, likewise
    accelerate launch --multi_gpu recipes/simclr.py threediebench --data-dir SHARDS      3DIEBench as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import (
    BF16_FOR_FP16,
    ESSL_CIFAR10,
    FRESH_DRAWS,
    IMAGENET,
    SEQ_JEPA_COMPARISON,
    SEQ_JEPA_RELEASED,
    reproduces,
)
from ssl_equi.views.makers import views
from ssl_equi.views.options import PairOptions


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of SimCLR."""

    objective: SimCLRConfig = field(default_factory=SimCLRConfig)
    """Temperature and sizes of the loss."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(objective=SimCLRConfig(temperature=0.1, projector=(1024, 1024, 1024)))


@reproduces("release", "E-SSL")
def cifar10() -> Config:
    """CIFAR-10 as the baseline of E-SSL: the N other views are candidates."""
    return Config(
        **ESSL_CIFAR10, views=PairOptions(source="augmented", preset="simclr_cifar"),
        objective=SimCLRConfig(
            temperature=0.5, projector=(2048, 2048), last_batch_norm="not_affine", separate_batch_norm=True,
            candidates="other_view",
        ),
    )  # fmt: skip


@reproduces("release", "E-SSL", BF16_FOR_FP16)
def imagenet() -> Config:
    """ImageNet as the baseline of E-SSL: batch 4,096, LARS, 100 epochs."""
    return Config(
        **IMAGENET, views=PairOptions(source="augmented", preset="byol_imagenet"),
        batch_size=4096, epochs=100, optimizer="lars",
        learning_rate=4.8, final_learning_rate=0.0048, warmup_steps=3120, weight_decay=1e-6, decay_bias_and_norm=False,
        objective=SimCLRConfig(
            temperature=0.2, projector=(2048, 2048, 128), last_batch_norm="affine", separate_batch_norm=True,
            candidates="other_view",
        ),
    )  # fmt: skip


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        **SEQ_JEPA_COMPARISON, objective=SimCLRConfig(
            temperature=0.5, projector=(2048, 2048, 2048), last_batch_norm="not_affine", separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=SimCLRConfig(
            temperature=0.5, projector=(2048, 2048, 2048), last_batch_norm="not_affine", separate_batch_norm=True
        ),
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded, "cifar10": cifar10, "imagenet": imagenet, "threediebench": threediebench,
    "threediebench_released": threediebench_released,
}  # fmt: skip


def build(config: Config) -> SimCLR:
    """The encoder and its objective, initialised from the seed; no side effects."""
    return SimCLR(initial_encoder(config), config.objective)


def main(config: Config) -> None:
    run = Pretraining(config, "simclr", build(config), partial(views, config))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
