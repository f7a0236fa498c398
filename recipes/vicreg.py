"""VICReg: the invariant baseline (Bardes, Ponce and LeCun, ICLR 2022), with the sizes of the SIE paper's comparison.

Two views of an object must have equal embeddings, whose dimensions vary and are not correlated. Nothing asks for the
pose: what the features still tell of it is what SIE has to beat, at the same encoder, data, steps and learning rate.

    accelerate launch recipes/vicreg.py                        the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/vicreg.py paper --data-dir SHARDS      3DIEBench with the paper's settings
"""

from dataclasses import dataclass, field

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.images import normalise_views
from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.pretraining import DataIdentity, FollowingProbes, PretrainingConfig, finish
from ssl_equi.run import Run
from ssl_equi.schedules import set_learning_rate, warmup_cosine


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of VICReg. "Paper" is Garrido et al. (SIE), whose baseline it is, with their released code."""

    objective: VICRegConfig = field(default_factory=VICRegConfig)
    """Weights and sizes of the loss."""
    learning_rate: float = 1e-3
    """Paper: 1e-3."""
    final_learning_rate: float = 1e-5
    """End of the cosine. Paper: 1e-3, a constant rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up. Paper: 0."""
    weight_decay: float = 0.0
    """Added to the gradient, as Adam does. Paper: 1e-6."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of SIE's."""
    return Config(objective=VICRegConfig(projector=(1024, 1024, 1024)))


def paper() -> Config:
    """3DIEBench as in the paper, but for bf16 in place of fp16 and timm's ResNet-18 in place of the authors' own."""
    return Config(
        dataset="3diebench", image_size=256, evaluation_split="val", encoder="resnet18", batch_size=1024, epochs=2000,
        final_learning_rate=1e-3, warmup_steps=0, weight_decay=1e-6, mixed_precision="bf16", log_every=20,
        save_every=1000, loader_threads=8, probe_protocol="sie", objective=VICRegConfig(separate_batch_norm=True),
    )  # fmt: skip


def build(config: Config) -> VICReg:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    return VICReg(create_encoder(config.encoder, config.image_size), config.objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "vicreg")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size)
    model = run.prepare(
        objective,
        lambda module: torch.optim.Adam(module.parameters(), config.learning_rate, weight_decay=config.weight_decay),
    )
    run.register("data", DataIdentity(data.train))
    probes = FollowingProbes(run, objective, data)
    start = run.resume()
    with ViewLoader(
        data.train, global_batch_size=config.batch_size, seed=config.seed, rank=run.rank, world_size=run.world_size,
        threads=config.loader_threads,
    ) as loader:  # fmt: skip
        total_steps = config.epochs * loader.steps_per_epoch
        for step, batch in run.batches(loader, start, total_steps):
            learning_rate = warmup_cosine(
                step, base=config.learning_rate, final=config.final_learning_rate, warmup_steps=config.warmup_steps,
                total_steps=total_steps,
            )  # fmt: skip
            set_learning_rate(run.optimizer, learning_rate)
            output = model(normalise_views(batch.images, data.mean_rgb, data.std_rgb))
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, {"embedded": embedded, "paper": paper}, __doc__)
