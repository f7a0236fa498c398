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

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import SEQ_JEPA_RELEASED, PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.provenance import BF16_FOR_FP16, FRESH_DRAWS, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairOptions, views


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
        dataset="cifar10", image_size=32, encoder="resnet18_small_images",
        encoder_arguments={"zero_init_last": False},
        views=PairOptions(source="augmented", preset="simclr_cifar"), batch_size=512, epochs=800, optimizer="sgd",
        learning_rate=0.06, final_learning_rate=0.0, warmup_steps=970, weight_decay=5e-4, log_every=50, save_every=970,
        objective=SimCLRConfig(
            temperature=0.5, projector=(2048, 2048), last_batch_norm="not_affine", separate_batch_norm=True,
            candidates="other_view",
        ),
    )  # fmt: skip


@reproduces("release", "E-SSL", BF16_FOR_FP16)
def imagenet() -> Config:
    """ImageNet as the baseline of E-SSL: batch 4,096, LARS, 100 epochs."""
    return Config(
        dataset="imagenet", image_size=224, evaluation_split="val", encoder="resnet50",
        views=PairOptions(source="augmented", preset="byol_imagenet"), batch_size=4096, epochs=100, optimizer="lars",
        learning_rate=4.8, final_learning_rate=0.0048, warmup_steps=3120, weight_decay=1e-6, decay_bias_and_norm=False,
        mixed_precision="bf16", log_every=50, save_every=1000,
        objective=SimCLRConfig(
            temperature=0.2, projector=(2048, 2048, 128), last_batch_norm="affine", separate_batch_norm=True,
            candidates="other_view",
        ),
    )  # fmt: skip


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=20, save_every=1000,
        probe_protocol="sie", objective=SimCLRConfig(
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
    torch.manual_seed(config.seed)
    return SimCLR(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), config.objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "simclr")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size, config.reading)
    make_views = views(config, data, run)
    model = run.prepare(objective, lambda module: optimizer_of(module, config))
    check_ending(run, config, objective, data)
    run.register("data", DataIdentity(data.train))
    probes = FollowingProbes(run, objective, data)
    with open_loader(config, data, run, make_views.stored_views) as loader:
        start = run.resume()
        total_steps = config.epochs * loader.steps_per_epoch
        for step, batch in run.batches(loader, start, total_steps):
            learning_rate = follow_schedule(run.optimizer, config, step, total_steps)
            pair = make_views(batch, step)
            output = model(pair.images)
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
