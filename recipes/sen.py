"""SEN: from one view's embedding and the action, find the other view's (Park et al., ICML 2022).

Contrastive like SimCLR, but between the predicted and the true embedding, so nothing asks for invariance. In the form
in which the papers on 3DIEBench compare it.

    accelerate launch recipes/sen.py                                      the embedded set; minutes on two CPU cores
    accelerate launch recipes/sen.py --actions rotation_color             also told how the colours change
    accelerate launch --multi_gpu recipes/sen.py threediebench --data-dir SHARDS       3DIEBench as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.objectives.sen import SEN, SENConfig
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import FRESH_DRAWS, SEQ_JEPA_COMPARISON, SEQ_JEPA_RELEASED, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of SEN."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is encoded."""
    objective: SENConfig = field(default_factory=SENConfig)
    """Temperature and sizes."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(objective=SENConfig(temperature=0.1, projector=(1024, 1024, 1024)))


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        **SEQ_JEPA_COMPARISON, objective=SENConfig(
            temperature=0.5, projector=(2048, 2048, 2048), separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=SENConfig(temperature=0.5, projector=(2048, 2048, 2048), separate_batch_norm=True),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench, "threediebench_released": threediebench_released}


def build(config: Config, data: DataSource | None = None) -> SEN:
    """The encoder and its objective, initialised from the seed; no side effects."""
    objective = replace(config.objective, action_dim=action_size(config, data))
    return SEN(initial_encoder(config), objective)


def main(config: Config) -> None:
    run = Pretraining(config, "sen", partial(build, config), partial(views, config, actions=config.told))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
