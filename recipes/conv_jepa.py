"""Conv-JEPA: glimpses predicted one by one, without an aggregate (seq-JEPA's comparison on glimpses).

From each observed glimpse by itself and the jump that leads from it to the last one, the last glimpse's embedding is
predicted (Ghaemi et al., NeurIPS 2025, appendix A.3). It sees what recipes/seq_jepa_saccades.py sees; what the
aggregate of several glimpses is worth shows in the difference.

    accelerate launch recipes/conv_jepa.py                              the embedded set
    accelerate launch recipes/conv_jepa.py --objective.reduction sum    losses summed over glimpses, as the paper says
    accelerate launch --multi_gpu recipes/conv_jepa.py stl10 --data-dir STL10      STL-10 as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.conv_jepa import ConvJEPA, ConvJEPAConfig
from ssl_equi.options import Momentum, Width
from ssl_equi.training.config import GlimpsesConfig
from ssl_equi.training.optimisation import target_momentum
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import reproduces
from ssl_equi.views.glimpses import (
    ACTION_SIZE,
    STL10_MEAN_RGB,
    STL10_STD_RGB,
    Glimpses,
    SaccadeOptions,
    check_glimpse_encoder,
)


@dataclass(frozen=True)
class Config(GlimpsesConfig):
    """Options of Conv-JEPA. "Paper" is Ghaemi et al. (seq-JEPA)."""

    objective: ConvJEPAConfig = field(default_factory=ConvJEPAConfig)
    """Sizes of the heads."""
    observed_views: Width = 4
    """M, glimpses from each of which one more is predicted. Paper: 4."""
    target_momentum: Momentum = 0.996
    """Of the target network at the first step; it rises to 1 by a cosine. Paper: .996."""


def embedded() -> Config:
    """The embedded set: a narrower projector, and a target that follows faster than in long runs."""
    return Config(
        objective=ConvJEPAConfig(projector=(1024, 128), last_batch_norm="none"),
        saccades=SaccadeOptions(inhibition_radius_px=12), target_momentum=0.99,
    )  # fmt: skip


@reproduces("paper", "seq-JEPA", "the paper states no sizes: those of the released code")
def stl10() -> Config:
    """STL-10, labelled and not: 96 pixels, glimpses of 32, batch 512, 2000 epochs; Adam as the paper's baselines."""
    return Config(
        dataset="stl10", image_size=96, encoder="resnet18_small_images", batch_size=512, epochs=2000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=50, save_every=2050,
        probe_protocol="sie", mean_rgb=STL10_MEAN_RGB, std_rgb=STL10_STD_RGB,
        objective=ConvJEPAConfig(reduction="sum"),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "stl10": stl10}


def build(config: Config) -> ConvJEPA:
    """The encoder and its objective, initialised from the seed; no side effects."""
    check_glimpse_encoder(config.encoder, config.image_size, config.saccades)
    objective = replace(config.objective, action_dim=ACTION_SIZE)
    return ConvJEPA(initial_encoder(config), objective)


def main(config: Config) -> None:
    glimpses_of = partial(Glimpses, config, options=config.saccades, length=config.observed_views + 1)
    run = Pretraining(config, "conv_jepa", build(config), glimpses_of)
    for step, batch in run:
        glimpses = run.views(batch, step)
        output = run.train_step(glimpses.images, glimpses.to_last())
        run.objective.update_target(target_momentum(config, step, run.total_steps))
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
