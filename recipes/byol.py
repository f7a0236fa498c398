"""BYOL: predict what a slowly following copy of the network says of the other view (Grill et al., NeurIPS 2020).

No negatives: collapse is avoided by the predictor and by the target network's slowness. An invariant baseline.

    accelerate launch recipes/byol.py                                     the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/byol.py imagenet --data-dir SHARDS      ImageNet with the paper's settings
    accelerate launch --multi_gpu recipes/byol.py threediebench --data-dir SHARDS      3DIEBench as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.options import Momentum
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.optimisation import target_momentum
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import (
    BF16_FOR_FLOAT32,
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
    """Options of BYOL."""

    objective: BYOLConfig = field(default_factory=BYOLConfig)
    """Sizes of the heads."""
    target_momentum: Momentum = 0.996
    """Of the target network at the first step; it rises to 1 by a cosine. Paper: .996."""


def embedded() -> Config:
    """The embedded set; the target follows faster than in long runs."""
    objective = BYOLConfig(projector=(1024, 1024, 256), predictor_hidden_width=1024)
    return Config(objective=objective, target_momentum=0.99)


@reproduces("paper", "BYOL", BF16_FOR_FLOAT32)
def imagenet() -> Config:
    """ImageNet with the paper's settings: batch 4,096, LARS, 1,000 epochs."""
    return Config(
        **IMAGENET, views=PairOptions(source="augmented", preset="byol_imagenet"),
        batch_size=4096, epochs=1000, optimizer="lars",
        learning_rate=3.2, final_learning_rate=0.0, warmup_steps=3120, weight_decay=1.5e-6, decay_bias_and_norm=False,
        objective=BYOLConfig(separate_batch_norm=True, reduction="sum"),
    )  # fmt: skip


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        **SEQ_JEPA_COMPARISON, objective=BYOLConfig(
            projector=(2048, 2048, 2048), predictor_hidden_width=512, separate_batch_norm=True, reduction="sum"
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=BYOLConfig(
            projector=(2048, 128), predictor_hidden_width=2048, last_batch_norm="not_affine", separate_batch_norm=True,
            reduction="sum",
        ),
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded,
    "imagenet": imagenet,
    "threediebench": threediebench,
    "threediebench_released": threediebench_released,
}


def build(config: Config) -> BYOL:
    """The encoder and its objective, initialised from the seed; no side effects."""
    return BYOL(initial_encoder(config), config.objective)


def main(config: Config) -> None:
    run = Pretraining(config, "byol", build(config), partial(views, config))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images)
        run.objective.update_target(target_momentum(config, step, run.total_steps))
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
