"""E-SSL: a small view must also tell how it was transformed (Dangovski et al., ICLR 2022).

Any base objective learns from two views as usual; besides, a separate small view of each image is turned by 0, 90, 180
and 270 degrees (or transformed by another finite set), and a head on the encoder's features says by which. The base
learns what stays, the head keeps the encoder sensitive to what changes.

    accelerate launch recipes/essl.py                                     the embedded set; minutes on two CPU cores
    accelerate launch recipes/essl.py --base vicreg --small-view.group jigsaw
    accelerate launch recipes/essl.py --objective.relative                predicts the turn between two small views
    accelerate launch recipes/essl.py cifar10 --data-dir CIFAR            CIFAR-10 as in the paper, SimCLR base
    accelerate launch --multi_gpu recipes/essl.py imagenet --data-dir SHARDS      ImageNet as in the paper, SimCLR base
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_equi.objectives.base import Objective
from ssl_equi.objectives.essl import ESSL, ESSLConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.options import ActsWhen
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16_FOR_FP16, ESSL_CIFAR10, IMAGENET, reproduces
from ssl_equi.views.groups import GROUPS
from ssl_equi.views.makers import TransformedSmallViews, views
from ssl_equi.views.options import PairOptions, SmallViewOptions


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of E-SSL."""

    objective: ESSLConfig = field(default_factory=ESSLConfig)
    """Weight and head of the prediction."""
    small_view: Annotated[
        SmallViewOptions,
        ActsWhen(lambda options: options.objective.weight > 0, "give an objective.weight above 0"),
        ActsWhen(lambda options: not options.objective.relative, "leave out --objective.relative", only=("elements",)),
    ] = field(default_factory=SmallViewOptions)
    """The separate view and its transformations."""
    base: Literal["simclr", "simsiam", "barlow_twins", "vicreg"] = "simclr"
    """The objective that the prediction is added to; its options follow under its name."""
    simclr: Annotated[SimCLRConfig, ActsWhen(lambda options: options.base == "simclr", "choose --base simclr")] = field(
        default_factory=SimCLRConfig
    )
    """Options of the base simclr."""
    simsiam: Annotated[SimSiamConfig, ActsWhen(lambda options: options.base == "simsiam", "choose --base simsiam")] = (
        field(default_factory=SimSiamConfig)
    )
    """Options of the base simsiam."""
    barlow_twins: Annotated[
        BarlowTwinsConfig, ActsWhen(lambda options: options.base == "barlow_twins", "choose --base barlow_twins")
    ] = field(default_factory=BarlowTwinsConfig)
    """Options of the base barlow_twins."""
    vicreg: Annotated[VICRegConfig, ActsWhen(lambda options: options.base == "vicreg", "choose --base vicreg")] = field(
        default_factory=VICRegConfig
    )
    """Options of the base vicreg."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU; all four turns of a view of half the side."""
    widths = (1024, 1024, 1024)
    return Config(
        objective=ESSLConfig(hidden_widths=(1024, 1024)), simclr=SimCLRConfig(temperature=0.1, projector=widths),
        simsiam=SimSiamConfig(projector=widths, predictor_hidden_width=256),
        barlow_twins=BarlowTwinsConfig(projector=widths), vicreg=VICRegConfig(projector=widths),
    )  # fmt: skip


@reproduces("release", "E-SSL")
def cifar10() -> Config:
    """CIFAR-10 as released with the SimCLR base: lambda .4, views of 16 pixels, learning rate .06 x 512 / 256.

    The small views go into the running statistics of the encoder's batch norms, as there.
    """
    return Config(
        **(ESSL_CIFAR10 | {"learning_rate": 0.12}),
        views=PairOptions(source="augmented", preset="simclr_cifar"),
        objective=ESSLConfig(weight=0.4, separate_statistics=False),
        small_view=SmallViewOptions(size=16), simclr=SimCLRConfig(
            temperature=0.5, projector=(2048, 2048), last_batch_norm="not_affine", separate_batch_norm=True,
            candidates="other_view",
        ),
    )  # fmt: skip


def cifar10_equal_rate() -> Config:
    """The same at the baseline's learning rate (.03 x 512 / 256) and with statistics apart: for a fair comparison."""
    config = cifar10()
    return replace(config, learning_rate=0.06, objective=replace(config.objective, separate_statistics=True))


@reproduces("release", "E-SSL", BF16_FOR_FP16)
def imagenet() -> Config:
    """ImageNet as in the paper with the SimCLR base: lambda .4, views of 96 pixels."""
    return Config(
        **IMAGENET, views=PairOptions(source="augmented", preset="byol_imagenet"),
        batch_size=4096, epochs=100, optimizer="lars",
        learning_rate=4.8, final_learning_rate=0.0048, warmup_steps=3120, weight_decay=1e-6, decay_bias_and_norm=False,
        small_view=SmallViewOptions(size=96, preset="imagenet"),
        objective=ESSLConfig(
            weight=0.4, hidden_widths=(2048, 2048, 128), relu_after_last_hidden=False, separate_statistics=False
        ),
        simclr=SimCLRConfig(
            temperature=0.2, projector=(2048, 2048, 128), last_batch_norm="affine", separate_batch_norm=True,
            candidates="other_view",
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "cifar10": cifar10, "cifar10_equal_rate": cifar10_equal_rate, "imagenet": imagenet}


def build_base(config: Config) -> Objective:
    """The encoder and the base objective."""
    encoder = initial_encoder(config)
    if config.base == "simclr":
        return SimCLR(encoder, config.simclr)
    if config.base == "simsiam":
        return SimSiam(encoder, config.simsiam)
    if config.base == "barlow_twins":
        return BarlowTwins(encoder, config.barlow_twins)
    return VICReg(encoder, config.vicreg)


def build(config: Config) -> ESSL:
    """The encoder and its objective, initialised from the seed; no side effects."""
    base, group = build_base(config), GROUPS[config.small_view.group]
    relative_table = group.relative_table() if config.objective.relative else None
    return ESSL(base, replace(config.objective, num_elements=group.size), relative_table)


def main(config: Config) -> None:
    run = Pretraining(config, "essl", build(config), partial(views, config))
    relative = config.objective.relative
    small_views = TransformedSmallViews(config, config.small_view, run.data, run.processes, relative=relative)
    for step, batch in run:
        pair = run.views(batch, step)
        transformed = () if config.objective.weight == 0 else small_views(batch, step)
        output = run.train_step(pair.images, None, *transformed)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
