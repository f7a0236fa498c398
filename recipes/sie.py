"""SIE: a representation split into an invariant and an equivariant half (Garrido, Najman and LeCun, ICML 2023).

Two views of an object go through one encoder. One half of the features must not tell the views apart; from the other
half of view 1 and the rotation between the views, a hypernetwork predicts the other half of view 2. Afterwards, probes
read class, rotation and colour from either half, on objects that were never seen.

    accelerate launch recipes/sie.py                            the embedded set; minutes on two CPU cores
    accelerate launch recipes/sie.py demo                       fewer steps and questions: half of that time
    accelerate launch recipes/sie.py --actions rotation_color   the predictor is conditioned on the colours, too
    accelerate launch --multi_gpu recipes/sie.py paper --data-dir SHARDS      3DIEBench with the paper's settings
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import (
    BF16_FOR_FP16,
    FRESH_DRAWS,
    OWN_COVARIANCE,
    SEQ_JEPA_RELEASED,
    SIE_RELEASED,
    reproduces,
)
from ssl_equi.views.makers import views
from ssl_equi.views.options import ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of SIE. "Paper" is Garrido et al. with the README of the released code.

    The paper's actions are rotation and rotation_color, in separate runs.
    """

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and in which form the change between them is given."""
    objective: SIEConfig = field(default_factory=SIEConfig)
    """Weights, sizes and ablations of the loss."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU."""
    return Config(objective=SIEConfig(projector=(1024, 1024, 1024)))


def demo() -> Config:
    """The embedded set, with as few steps and questions as show what the method does."""
    tasks = ("classification", "relative_rotation", "colour", "action_gain")
    return replace(embedded(), epochs=74, learning_rate=2e-3, cache_decoded=True, tasks=tasks)


@reproduces("release", "SIE", BF16_FOR_FP16, OWN_COVARIANCE)
def paper() -> Config:
    """3DIEBench as in the paper and its code, with the authors' own ResNet-18."""
    return Config(
        **SIE_RELEASED,
        objective=SIEConfig(separate_batch_norm=True, hypernetwork_init="released"),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """3DIEBench as the baseline in the released code of seq-JEPA: 128 pixels, weights 25, 25, 25 and 1."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=SIEConfig(
            inv_weight=25.0, equi_weight=25.0, variance_weight=25.0, covariance_weight=1.0,
            separate_batch_norm=True, hypernetwork_init="released",
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "demo": demo, "paper": paper, "threediebench_released": threediebench_released}


def build(config: Config, data: DataSource | None = None) -> SIE:
    """The encoder and its objective, initialised from the seed; no side effects."""
    encoder = initial_encoder(config)
    return SIE(encoder, replace(config.objective, action_dim=action_size(config, data)))


def main(config: Config) -> None:
    run = Pretraining(config, "sie", partial(build, config), partial(views, config, actions=config.told))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
