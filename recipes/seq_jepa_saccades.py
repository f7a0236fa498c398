"""seq-JEPA on glimpses: predictive learning across saccades (Ghaemi et al., NeurIPS 2025), without augmentations.

A gaze jumps over an image, drawn to what is salient. M glimpses are observed one after another, with the jumps between
them; from their aggregate and the next jump, the features of the glimpse that it leads to are predicted. The encoder
keeps where things are (part `all`), the aggregate what the image shows.

Saliency is computed once from the pixels and kept in the user's cache folder, or comes as a file, such as of DeepGaze;
see datasets/images.md.

    accelerate launch recipes/seq_jepa_saccades.py                               the embedded set
    accelerate launch recipes/seq_jepa_saccades.py --saccades.inhibition none    the gaze may return
    accelerate launch recipes/seq_jepa_saccades.py --saccades.saliency uniform   drawn to nothing in particular
    accelerate launch --multi_gpu recipes/seq_jepa_saccades.py stl10 --data-dir STL10      STL-10 as in the paper, but
                                   for the saliency; --saccades.saliency file --saccades.saliency-file MAPS.npy for that
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.options import ActsWhen, Momentum
from ssl_equi.training.config import GlimpsesConfig
from ssl_equi.training.optimisation import target_momentum
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import JOINT_ACTIONS, reproduces
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
    """Options of seq-JEPA on glimpses."""

    objective: SeqJEPAConfig = field(default_factory=SeqJEPAConfig)
    """Sizes and ablations."""
    target_momentum: Annotated[
        Momentum, ActsWhen(lambda options: options.objective.momentum_target, "add --objective.momentum-target")
    ] = 0.996
    """Of the target encoder at the first step; it rises to 1 by a cosine. Paper: .996."""


def embedded() -> Config:
    """The embedded set: a smaller aggregator without dropout."""
    return Config(
        objective=SeqJEPAConfig(layers=2, feedforward_width=1024, dropout=0.0), optimizer="adamw",
        learning_rate=6e-4, weight_decay=1e-3, decay_bias_and_norm=False,
        saccades=SaccadeOptions(inhibition_radius_px=12),
    )  # fmt: skip


@reproduces("paper", "seq-JEPA", JOINT_ACTIONS)
def stl10() -> Config:
    """STL-10, labelled and not: 96 pixels, glimpses of 32, batch 512, 2000 epochs, M = 4."""
    return Config(
        dataset="stl10", image_size=96, encoder="resnet18_small_images", batch_size=512, epochs=2000,
        optimizer="adamw", learning_rate=4e-4, final_learning_rate=1e-5, warmup_steps=20 * 205, warmup_from=1e-5,
        weight_decay=1e-3, decay_bias_and_norm=False, log_every=50, save_every=2050,
        probe_protocol="sie", mean_rgb=STL10_MEAN_RGB, std_rgb=STL10_STD_RGB,
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "stl10": stl10}


def build(config: Config) -> SeqJEPA:
    """The encoder and its objective, initialised from the seed; no side effects."""
    check_glimpse_encoder(config.encoder, config.image_size, config.saccades)
    objective = replace(config.objective, action_dim=ACTION_SIZE)
    return SeqJEPA(initial_encoder(config), objective)


def main(config: Config) -> None:
    glimpses_of = partial(Glimpses, config, options=config.saccades, length=config.observed_views + 1)
    run = Pretraining(config, "seq_jepa_saccades", build(config), glimpses_of)
    for step, batch in run:
        glimpses = run.views(batch, step)
        output = run.train_step(glimpses.images, glimpses.steps())
        run.objective.update_target(target_momentum(config, step, run.total_steps))
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
