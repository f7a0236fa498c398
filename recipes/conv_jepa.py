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

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.conv_jepa import ConvJEPA, ConvJEPAConfig
from ssl_equi.options import Momentum, Positive, Share, Width
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import PretrainingOptions, follow_schedule, optimizer_of, target_momentum
from ssl_equi.training.provenance import reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.glimpses import (
    ACTION_SIZE,
    STL10_MEAN_RGB,
    STL10_STD_RGB,
    Glimpses,
    SaccadeOptions,
    check_glimpse_encoder,
)


@dataclass(frozen=True)
class Config(PretrainingOptions):
    """Options of Conv-JEPA. "Paper" is Ghaemi et al. (seq-JEPA)."""

    objective: ConvJEPAConfig = field(default_factory=ConvJEPAConfig)
    """Sizes of the heads."""
    observed_views: Width = 4
    """M, glimpses from each of which one more is predicted. Paper: 4."""
    saccades: SaccadeOptions = field(default_factory=SaccadeOptions)
    """Where the gaze goes, and what it sees there."""
    mean_rgb: tuple[Share, Share, Share] | None = None
    std_rgb: tuple[Positive, Positive, Positive] | None = None
    """Mean and standard deviation that images in [0, 1] are normalised with; those of the data when not given."""
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
    torch.manual_seed(config.seed)
    check_glimpse_encoder(config.encoder, config.image_size, config.saccades)
    objective = replace(config.objective, action_dim=ACTION_SIZE)
    return ConvJEPA(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "conv_jepa")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size, config.reading)
    data = data.normalised_with(config.mean_rgb, config.std_rgb)
    make_views = Glimpses(config, data, run, config.saccades, length=config.observed_views + 1)
    model = run.prepare(objective, lambda module: optimizer_of(module, config))
    check_ending(run, config, objective, data)
    run.register("data", DataIdentity(data.train))
    probes = FollowingProbes(run, objective, data)
    with open_loader(config, data, run, make_views.stored_views) as loader:
        start = run.resume()
        total_steps = config.epochs * loader.steps_per_epoch
        for step, batch in run.batches(loader, start, total_steps):
            learning_rate = follow_schedule(run.optimizer, config, step, total_steps)
            sequence = make_views(batch, step)
            output = model(sequence.images, sequence.to_last())
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            objective.update_target(target_momentum(config, step, total_steps))
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
