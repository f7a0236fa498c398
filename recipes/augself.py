"""AugSelf: the features of two views must tell how one became the other (Lee et al., NeurIPS 2021).

SimCLR learns as usual; besides, an MLP on the encoder's features of both views regresses the action between them.

    accelerate launch recipes/augself.py                                  the embedded set; minutes on two CPU cores
    accelerate launch recipes/augself.py --actions rotation_color         also asked how the colours change
    accelerate launch --multi_gpu recipes/augself.py threediebench --data-dir SHARDS       3DIEBench as SIE's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.options import ActsWhen
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16_FOR_FP16, SIE_RELEASED, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import ActionNames, ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of AugSelf."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is encoded."""
    objective: AugSelfConfig = field(default_factory=AugSelfConfig)
    """Weight and head of the regression."""
    simclr: SimCLRConfig = field(default_factory=SimCLRConfig)
    """Options of the base."""
    actions: Annotated[
        ActionNames, ActsWhen(lambda options: options.objective.weight > 0, "give an objective.weight above 0")
    ] = ("rotation",)
    """The actions that the objective is given: of stored views names of the data's latents, such as rotation,
    rotation_color or pose_base of 3DIEBench, or azimuth elevation of others; of augmented views augmentation."""

    @property
    def told(self) -> ActionNames | None:
        """See `ActionsConfig`."""
        return self.actions if self.objective.weight > 0 else None


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(simclr=SimCLRConfig(temperature=0.1, projector=(1024, 1024, 1024)))


@reproduces("release", "SIE", BF16_FOR_FP16)
def threediebench() -> Config:
    """3DIEBench as in the comparison of SIE: 256 pixels, batch 1,024, the authors' ResNet-18, temperature .1."""
    return Config(
        **SIE_RELEASED,
        simclr=SimCLRConfig(
            temperature=0.1, projector=(2048, 2048, 2048), last_bias=False, separate_batch_norm=True
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench}


def build(config: Config, data: DataSource | None = None) -> AugSelf:
    """The encoder and its objective, initialised from the seed; no side effects."""
    objective = replace(config.objective, action_dim=action_size(config, data))
    return AugSelf(SimCLR(initial_encoder(config), config.simclr), objective)


def main(config: Config) -> None:
    run = Pretraining(config, "augself", partial(build, config), partial(views, config, actions=config.told))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
