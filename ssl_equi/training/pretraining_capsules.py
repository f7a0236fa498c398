"""The ending of a run that trained a capsule network: the capsules are exported and asked, too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from torch import nn

from ssl_equi.data.actions import ActionKind
from ssl_equi.data.sources import DataSource
from ssl_equi.export.encoder import EncoderCard, Export, encoder_export
from ssl_equi.probing.capsule_poses import probe_capsule_poses
from ssl_equi.probing.encode import encode_split
from ssl_equi.probing.records import ProbeRecord
from ssl_equi.probing.suite import ProbeResults, make_records
from ssl_equi.training.pretraining import check_ending, encoder_card, finish
from ssl_equi.training.pretraining_config import PretrainingOptions
from ssl_equi.training.run import Run

if TYPE_CHECKING:  # it imports timm, which takes seconds
    from ssl_equi.encoders.capsules.network import CapsuleNetwork

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


def check_capsules_ending(run: Run, config: PretrainingOptions, objective: CapsuleObjective, data: DataSource) -> None:
    """What `pretraining.check_ending` does, for `finish_capsules`."""
    check_ending(run, config, objective, data, _exports(run, config, objective, data))


def finish_capsules(
    run: Run,
    config: PretrainingOptions,
    objective: CapsuleObjective,
    data: DataSource,
    multiplied_by: ActionKind | None = None,
) -> None:
    """Exports the whole capsule network beside its backbone, then ends as every run does.

    `evaluation/probe.py RUN/capsule_network` asks its activations (part `inv`), its poses (part `equi`) and both
    together (part `capsules`) the questions that the ending asks the backbone's features.

    Args:
        multiplied_by: the kind of action that poses are multiplied with; what they tell without a head joins the
            table. None: poses follow actions in a way that only a predictor knows.
    """
    objective = run.whole(objective)
    exports = _exports(run, config, objective, data)
    if multiplied_by is None:
        finish(run, config, objective, data, further_exports=exports)
        return

    def ask_poses(results: ProbeResults) -> tuple[list[ProbeRecord], Sequence[str]]:
        network, split = objective.network, config.evaluation_split
        capsules = encode_split(network, data.evaluation, data.mean_rgb, data.std_rgb, run.device)
        answers = probe_capsule_poses(
            capsules, network.num_capsules, network.pose_side, multiplied_by, results.protocol
        )
        records = make_records({"capsules": answers}, None, capsules.num_objects, split, results.protocol, config.seed)
        return records, ()

    finish(run, config, objective, data, ask_poses, exports)


def _exports(run: Run, config: PretrainingOptions, objective: CapsuleObjective, data: DataSource) -> dict[str, Export]:
    objective = run.whole(objective)
    return {CAPSULE_FOLDER: encoder_export(objective.network, capsule_card(run.name, config, objective, data))}


def capsule_card(name: str, config: PretrainingOptions, objective: CapsuleObjective, data: DataSource) -> EncoderCard:
    """The labels of the exported capsule network."""
    network = objective.network
    return replace(
        encoder_card(name, config, objective, data),
        architecture="capsule_network",
        model_args={
            "backbone": config.encoder,
            "backbone_arguments": config.encoder_arguments,
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
