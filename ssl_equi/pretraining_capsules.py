"""The ending of a run that trained a capsule network: the capsules are exported too."""

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from torch import nn

from ssl_equi.data.sources import DataSource
from ssl_equi.export import save_encoder
from ssl_equi.pretraining import encoder_card, finish
from ssl_equi.pretraining_config import PretrainingConfig
from ssl_equi.run import Run

if TYPE_CHECKING:  # it imports timm, which takes seconds
    from ssl_equi.encoders.capsule_network import CapsuleNetwork

CAPSULE_FOLDER = "capsule_network"


class CapsuleObjective(Protocol):
    """What the ending needs to know of an objective on capsules."""

    network: "CapsuleNetwork"

    @property
    def encoder(self) -> nn.Module:
        """The backbone below the capsules."""

    @property
    def parts(self) -> dict[str, slice]:
        """Named slices of the backbone's feature columns."""


def finish_capsules(run: Run, config: PretrainingConfig, objective: CapsuleObjective, data: DataSource) -> None:
    """Exports the whole capsule network beside its backbone, then ends as every run does.

    `evaluation/probe.py RUN/capsule_network` asks its activations (part `inv`), its poses (part `equi`) and both
    together (part `capsules`) the questions that the ending asks the backbone's features.
    """
    if run.is_main:
        network = objective.network
        card = replace(
            encoder_card(run.name, config, objective, data),
            architecture="capsule_network",
            model_args={
                "backbone": config.encoder,
                "num_capsules": network.num_capsules,
                "pose_side": network.pose_side,
                "votes": network.votes,
                "img_size": config.image_size,
            },
            # Beside the backbone's `all` in one results.json, the capsules need a name of their own.
            parts={
                "capsules" if part == "all" else part: (columns.start, columns.stop)
                for part, columns in network.parts.items()
            },
        )
        save_encoder(network, run.folder / CAPSULE_FOLDER, card)
        run.say(f"exported {run.folder / CAPSULE_FOLDER}")
    finish(run, config, objective, data)
