"""Supervised: the class of each view and the rotation between two of them, from labels. A ceiling, not a method.

What the same encoder reaches at the same budget if it is told the answers: the row that others are compared with from
above, as random features are from below.

    accelerate launch recipes/supervised.py                               the embedded set; minutes on two CPU cores
    accelerate launch recipes/supervised.py --objective.action-weight 0   class only
    accelerate launch --multi_gpu recipes/supervised.py threediebench --data-dir SHARDS       3DIEBench
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.errors import UserError
from ssl_equi.objectives.supervised import Supervised, SupervisedConfig
from ssl_equi.options import ActsWhen
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import SEQ_JEPA_COMPARISON
from ssl_equi.views.makers import views
from ssl_equi.views.options import ActionNames, ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of the supervised ceiling."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is encoded."""
    objective: SupervisedConfig = field(default_factory=SupervisedConfig)
    """Weights and head; the number of classes is that of the data."""
    actions: Annotated[
        ActionNames,
        ActsWhen(lambda options: options.objective.action_weight > 0, "give an objective.action_weight above 0"),
    ] = ("rotation",)
    """The actions that the objective is given: of stored views names of the data's latents, such as rotation,
    rotation_color or pose_base of 3DIEBench, or azimuth elevation of others; of augmented views augmentation."""

    @property
    def told(self) -> ActionNames | None:
        """See `ActionsConfig`."""
        return self.actions if self.objective.action_weight > 0 else None


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config()


def threediebench() -> Config:
    """3DIEBench with the budget of the methods of seq-JEPA's comparison: 128 pixels, batch 512."""
    return Config(**SEQ_JEPA_COMPARISON)


CONFIGS = {"embedded": embedded, "threediebench": threediebench}


def build(config: Config, data: DataSource | None = None) -> Supervised:
    """The encoder and its heads, initialised from the seed; no side effects.

    Raises UserError for data with fewer than two classes, if the class is to be learnt.
    """
    num_classes = 24 if data is None else len(data.train.class_names)  # 24 of the embedded set
    if num_classes < 2 and config.objective.class_weight > 0:
        raise UserError(
            f"the number of classes of the data is {num_classes}, and it takes 2 to tell them apart: "
            "choose other data, or give --objective.class-weight 0"
        )
    sizes = {"num_classes": num_classes, "action_dim": action_size(config, data)}
    return Supervised(initial_encoder(config), replace(config.objective, **sizes))


def main(config: Config) -> None:
    pairs = partial(views, config, actions=config.told)
    run = Pretraining(config, "supervised", partial(build, config), pairs)
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action, batch.labels)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
