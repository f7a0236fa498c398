"""Conditional BYOL: the predictor is conditioned on the action to the other view (seq-JEPA's comparison).

BYOL, one way only: from view 1 and the action to the target network's view 2 (Ghaemi et al., NeurIPS 2025).

    accelerate launch recipes/conditional_byol.py                         the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/conditional_byol.py threediebench --data-dir SHARDS      as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.objectives.byol import ConditionalBYOL, ConditionalBYOLConfig
from ssl_equi.options import Momentum
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.optimisation import target_momentum
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import FRESH_DRAWS, SEQ_JEPA_COMPARISON, SEQ_JEPA_RELEASED, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of Conditional BYOL."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is encoded."""
    objective: ConditionalBYOLConfig = field(default_factory=ConditionalBYOLConfig)
    """Sizes of the heads."""
    target_momentum: Momentum = 0.996
    """Of the target network at the first step; it rises to 1 by a cosine. Paper: .996."""


def embedded() -> Config:
    """The embedded set; the target follows faster than in long runs."""
    objective = ConditionalBYOLConfig(projector=(1024, 1024, 256), predictor_hidden_width=1024)
    return Config(objective=objective, target_momentum=0.99)


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        **SEQ_JEPA_COMPARISON, objective=ConditionalBYOLConfig(
            projector=(2048, 2048, 2048), predictor_hidden_width=512
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=ConditionalBYOLConfig(
            projector=(2048, 128), predictor_hidden_width=2048, last_batch_norm="not_affine"
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench, "threediebench_released": threediebench_released}


def build(config: Config, data: DataSource | None = None) -> ConditionalBYOL:
    """The encoder and its objective, initialised from the seed; no side effects."""
    objective = replace(config.objective, action_dim=action_size(config, data))
    return ConditionalBYOL(initial_encoder(config), objective)


def main(config: Config) -> None:
    run = Pretraining(config, "conditional_byol", partial(build, config), partial(views, config, actions=config.told))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action)
        run.objective.update_target(target_momentum(config, step, run.total_steps))
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
