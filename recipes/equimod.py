"""EquiMod: one projection is invariant, another follows the action (Devillers and Lefort, ICLR 2023).

Two projectors read the same features. One learns with SimCLR or VICReg; from the other and the action, a predictor
must find the other view's projection.

    accelerate launch recipes/equimod.py                                  the embedded set; minutes on two CPU cores
    accelerate launch recipes/equimod.py vicreg                           the same in its VICReg form
    accelerate launch recipes/equimod.py --actions rotation_color         also told how the colours change
    accelerate launch --multi_gpu recipes/equimod.py threediebench --data-dir SHARDS     3DIEBench as SIE's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.objectives.equimod import EquiMod, EquiModConfig
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import (
    BF16_FOR_FP16,
    FRESH_DRAWS,
    SEQ_JEPA_COMPARISON,
    SEQ_JEPA_RELEASED,
    SIE_RELEASED,
    reproduces,
)
from ssl_equi.views.makers import views
from ssl_equi.views.options import ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of EquiMod."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is encoded."""
    objective: EquiModConfig = field(default_factory=EquiModConfig)
    """Form, weights and sizes."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, SimCLR form, with the budget of the other methods."""
    return Config(objective=EquiModConfig(projector=(1024, 1024, 1024)))


def vicreg() -> Config:
    """The embedded set, VICReg form."""
    return Config(objective=EquiModConfig(form="vicreg", projector=(1024, 1024, 1024)))


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        **SEQ_JEPA_COMPARISON, objective=EquiModConfig(
            temperature=0.1, projector=(1024, 1024, 128), separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=EquiModConfig(temperature=0.5, projector=(1024, 1024, 128), separate_batch_norm=True),
    )  # fmt: skip


@reproduces(
    "release", "SIE", BF16_FOR_FP16, "the equivariant part has weight 1, where the default of the released code is 4.5"
)
def threediebench_sie() -> Config:
    """3DIEBench as in the comparison of SIE: 256 pixels, batch 1,024, the authors' ResNet-18, hypernetwork."""
    return Config(
        **SIE_RELEASED,
        objective=EquiModConfig(
            temperature=0.1, projector=(2048, 2048, 2048), predictor="hypernetwork", hypernetwork_init="released",
            last_batch_norm="none", last_bias=False, separate_batch_norm=True,
        ),
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded,
    "vicreg": vicreg,
    "threediebench": threediebench,
    "threediebench_released": threediebench_released,
    "threediebench_sie": threediebench_sie,
}


def build(config: Config, data: DataSource | None = None) -> EquiMod:
    """The encoder and its objective, initialised from the seed; no side effects."""
    objective = replace(config.objective, action_dim=action_size(config, data))
    return EquiMod(initial_encoder(config), objective)


def main(config: Config) -> None:
    run = Pretraining(config, "equimod", partial(build, config), partial(views, config, actions=config.told))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
