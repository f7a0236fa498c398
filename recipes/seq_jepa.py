"""seq-JEPA: an invariant and an equivariant representation from sequences of views (Ghaemi et al., NeurIPS 2025).

M views of an object are observed one after another, with the actions between them; from their aggregate and the next
action, the features of the next view are predicted. The encoder keeps what actions change (part `all`), the aggregate
what all views share (part `agg@M` for M observed views). Probes read class and rotation from the encoder, and the class
from aggregates of 1 to 8 views of objects that were never seen; `evaluation/sequences.py` asks more.

    accelerate launch recipes/seq_jepa.py                            the embedded set, 3 observed views
    accelerate launch recipes/seq_jepa.py --observed-views 1         a pair of views, as other methods see them
    accelerate launch recipes/seq_jepa.py --objective.conditioning none            the ablation without actions
    accelerate launch --multi_gpu recipes/seq_jepa.py threediebench --data-dir SHARDS      3DIEBench as in the paper
    accelerate launch recipes/seq_jepa.py cifar100 --data-dir CIFAR  augmented images: crop, jitter and blur are known
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.options import ActsWhen, Momentum, Width
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.optimisation import target_momentum
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import FRESH_DRAWS, JOINT_ACTIONS, SEQ_JEPA_RELEASED, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of seq-JEPA. "Paper" is Ghaemi et al.; where its released code differs, the paper is followed."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is encoded."""
    objective: SeqJEPAConfig = field(default_factory=SeqJEPAConfig)
    """Sizes and ablations."""
    observed_views: Width = 3
    """M; one more view is predicted. Paper: 1 to 5; 3 for its best rotation."""
    target_momentum: Annotated[
        Momentum, ActsWhen(lambda options: options.objective.momentum_target, "add --objective.momentum-target")
    ] = 0.996
    """Of the target encoder at the first step; it rises to 1 by a cosine. Paper: .996."""


def embedded() -> Config:
    """The embedded set: a smaller aggregator without dropout, and as many images as other methods see in 160 epochs.

    At a learning rate of 1e-3, which other methods have here, the aggregator breaks down after some hundred steps.
    """
    return Config(
        objective=SeqJEPAConfig(layers=2, feedforward_width=1024, dropout=0.0), epochs=80, optimizer="adamw",
        learning_rate=6e-4, weight_decay=1e-3, decay_bias_and_norm=False,
    )  # fmt: skip


@reproduces("paper", "seq-JEPA", JOINT_ACTIONS)
def threediebench() -> Config:
    """3DIEBench conditioned on rotation: 128 pixels, batch 512, 1000 epochs, M = 3."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        optimizer="adamw", learning_rate=4e-4, final_learning_rate=1e-5, warmup_steps=20 * 81, warmup_from=1e-5,
        weight_decay=1e-3, decay_bias_and_norm=False, log_every=20, save_every=1000,
        probe_protocol="sie",
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training of the released code: Adam without decay at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=SeqJEPAConfig(action_statistics="last_apart"),
    )  # fmt: skip


@reproduces("paper", "seq-JEPA", JOINT_ACTIONS)
def threediebench_color() -> Config:
    """3DIEBench conditioned on rotation and colours, M = 4."""
    return replace(threediebench(), observed_views=4, actions=("rotation_color",))


@reproduces(
    "paper",
    "seq-JEPA",
    JOINT_ACTIONS,
    "actions are differences of parameters in fixed units, so that they tell nothing of the view to predict",
)
def cifar100() -> Config:
    """Augmented CIFAR-100 conditioned on all augmentations: 2000 epochs, M = 2, actions that leak nothing.

    For crops alone, say, give `--views.action-transforms crop`.
    """
    return Config(
        dataset="cifar100", image_size=32, encoder="resnet18_small_images", observed_views=2, actions=("augmentation",),
        views=ViewOptions(source="augmented", preset="seq_jepa"), batch_size=512, epochs=2000, optimizer="adamw",
        learning_rate=4e-4, final_learning_rate=1e-5, warmup_steps=20 * 97, warmup_from=1e-5, weight_decay=1e-3,
        decay_bias_and_norm=False, log_every=50, save_every=970, probe_protocol="sie",
    )  # fmt: skip


@reproduces(
    "paper",
    "seq-JEPA",
    JOINT_ACTIONS,
    "actions are differences of parameters in fixed units, so that they tell nothing of the view to predict",
)
def tiny_imagenet() -> Config:
    """The same on Tiny ImageNet as a folder of class folders: 64 pixels, ResNet-18 with its usual stem, M = 1."""
    return replace(
        cifar100(), dataset="folder", evaluation_split="val", image_size=64, encoder="resnet18", observed_views=1,
        warmup_steps=20 * 195, save_every=975,
    )  # fmt: skip


@reproduces("paper", "seq-JEPA", "actions and their batch norms are those of the released code")
def cifar100_legacy() -> Config:
    """CIFAR-100 with the actions of the released code, which depend on the view that is to be predicted."""
    return replace(
        cifar100(), views=ViewOptions(source="augmented", preset="seq_jepa", action_encoding="seq_jepa_legacy"),
        objective=SeqJEPAConfig(action_statistics="last_apart_zeros"),
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded, "threediebench": threediebench, "threediebench_color": threediebench_color,
    "threediebench_released": threediebench_released,
    "cifar100": cifar100, "cifar100_legacy": cifar100_legacy, "tiny_imagenet": tiny_imagenet,
}  # fmt: skip


def build(config: Config, data: DataSource | None = None) -> SeqJEPA:
    """The encoder and its objective, initialised from the seed; no side effects."""
    objective = replace(config.objective, action_dim=action_size(config, data))
    return SeqJEPA(initial_encoder(config), objective)


def main(config: Config) -> None:
    sequences = partial(views, config, length=config.observed_views + 1, actions=config.told)
    run = Pretraining(config, "seq_jepa", partial(build, config), sequences)
    for step, batch in run:
        sequence = run.views(batch, step)
        output = run.train_step(sequence.images, sequence.steps())
        run.objective.update_target(target_momentum(config, step, run.total_steps))
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
