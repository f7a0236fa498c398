"""What the questions about sequences share: aggregates of views, and heads that read parts of an action."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssl_equi.evaluation.baselines import constant_baselines, constant_rotation_baselines
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import HeadPlan, fit_ridge, predict
from ssl_equi.evaluation.metrics import angle_errors_deg, r2_metrics, r2_notes, summarise_angles
from ssl_equi.evaluation.samples import evaluated_rows, feature_matrix, sample_objects, samples_of
from ssl_equi.evaluation.sequences.embed import HUES, POSITION_NAMES, FeatureSequences
from ssl_equi.evaluation.task import Ask, Probe, TaskResult
from ssl_equi.geometry.poses import ROTATION_ACTION_SIZE
from ssl_equi.geometry.rotations import quat_multiply
from ssl_equi.latents.actions import LatentActions
from ssl_equi.latents.motion import RigidMotion
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.runtime.frozen import frozen

SEQUENCES_IN_A_CHUNK = 512

HeadKind = Literal["mlp", "linear"]
# By the paper's appendix, MLPs read rotations, crops and colour jitter, and linear heads read hues, blur and positions;
# translations of rigid motions are read like the rotations, and so is what is no plain number.
_MLP_TARGETS = ("crop", "jitter")
_JITTER = ("brightness", "contrast", "saturation", "hue", "log_brightness", "log_contrast", "log_saturation")
_TARGETS_BY_COLUMN = dict.fromkeys(POSITION_NAMES, "position") | dict.fromkeys(_JITTER, "jitter")
_TARGETS_BY_PREFIX = ("crop", "blur")


class AggregatingModel(Protocol):
    """A module that makes one vector of several views, such as `ssl_equi.objectives.seq_jepa.SeqJEPA`.

    It is given None instead of actions unless `aggregator_takes_actions` or `predictor_takes_actions`.
    """

    @property
    def aggregator_takes_actions(self) -> bool: ...

    @property
    def predictor_takes_actions(self) -> bool: ...

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        """`[B, W]` of features `[B, M, D]` and the actions `[B, M - 1, A]` between them, for any M >= 1."""

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        """Target features `[B, E]` of the views that actions `[B, A]` lead to from the last observed one."""


def aggregate_views(
    model: AggregatingModel,
    sets: Sequence[FeatureSequences],
    count: int,
    *,
    windows: int = 1,
    without_images: bool = False,
    without_actions: bool = False,
) -> list[Tensor]:
    """Aggregates `[N, windows, W]` of every sequence of each set: of its first `count` views, the next ones, and so on.

    The model is in evaluation mode meanwhile; RuntimeError if that changes its state, or an aggregate isn't finite.

    Args:
        without_images, without_actions: zeros stand for the features or the actions.
    """
    assert isinstance(model, nn.Module)

    def aggregate_chunks(sequences: FeatureSequences, first: int) -> list[Tensor]:
        features, actions = sequences.features[:, first : first + count], sequences.told_steps(first, count - 1)
        features = torch.zeros_like(features) if without_images else features
        actions = torch.zeros_like(actions) if without_actions else actions
        pairs = zip(features.split(SEQUENCES_IN_A_CHUNK), actions.split(SEQUENCES_IN_A_CHUNK), strict=True)
        return [model.aggregate(seen, told if model.aggregator_takes_actions else None) for seen, told in pairs]

    with frozen(model):
        chunks = [[aggregate_chunks(sequences, window * count) for window in range(windows)] for sequences in sets]
    # Put together outside inference mode, so that they are ordinary tensors that autograd accepts.
    aggregates = [torch.stack([torch.cat(window) for window in chunks_of_set], dim=1) for chunks_of_set in chunks]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in aggregates):
        raise RuntimeError("the model's aggregates are not finite: the run diverged, use an earlier checkpoint")
    return aggregates


@dataclass(frozen=True)
class ActionTarget:
    """Columns of an action that are asked for together, and by which head.

    Attributes:
        step_columns: the columns of which those of a path are composed: a translation takes the rotations, too.
        compose: the columns `[N, K]` of what the steps `[N, M, S]` of a path make together; None if they don't
            determine it.
        is_rotation: the columns are a quaternion xyzw.
    """

    name: str
    columns: tuple[int, ...]
    head: HeadKind
    step_columns: tuple[int, ...]
    compose: Callable[[Tensor], Tensor] | None = None
    is_rotation: bool = False

    def of(self, actions: Tensor) -> Tensor:
        """The columns `[..., K]` of actions `[..., A]`."""
        return actions[..., list(self.columns)]

    def steps_of(self, actions: Tensor) -> Tensor:
        """What the steps of a path have to tell: columns `[..., S]` of actions `[..., A]`."""
        return actions[..., list(self.step_columns)]

    def composed(self, actions: Tensor) -> Tensor:
        """The columns `[N, K]` of what actions `[N, M, A]` in a row make together; they must compose."""
        assert self.compose is not None
        return self.compose(self.steps_of(actions))


def action_targets(sequences: FeatureSequences) -> tuple[ActionTarget, ...]:
    """The parts of the sequences' actions that are asked for."""
    if sequences.latents is None:
        return augmentation_targets(sequences.action_names)
    return latent_targets(sequences.latents)


def latent_targets(actions: LatentActions) -> tuple[ActionTarget, ...]:
    """Of stored views: the actions one by one, but both hues together, and the two halves of a rigid motion apart.

    Rotations are asked for as quaternions, whatever else the model is told.
    """
    targets: dict[str, ActionTarget] = {}
    hues: tuple[int, ...] = ()
    start = 0
    for part in actions.parts:
        columns = tuple(range(start, start + part.space.sizes.action))
        start += len(columns)
        rotation, others = columns[:ROTATION_ACTION_SIZE], columns[ROTATION_ACTION_SIZE:]
        if part.name in HUES:
            hues += columns
            # As in the paper, nothing is asked of paths of hues.
            targets["hues"] = ActionTarget("hues", hues, "linear", hues)
        elif part.has_sign:
            name = "rotation" if isinstance(part.space, RigidMotion) else part.name
            turned = ActionTarget(name, rotation, "mlp", rotation, _in_a_row(quat_multiply), is_rotation=True)
            targets.setdefault(name, turned)
            if isinstance(part.space, RigidMotion):
                name, moved = f"{part.space.frame}_translation", slice(ROTATION_ACTION_SIZE, None)
                targets[name] = ActionTarget(name, others, "mlp", columns, _in_a_row(part.space.compose, moved))
        elif not isinstance(part.space, Rotation):
            head: HeadKind = "linear" if isinstance(part.space, Number) else "mlp"
            targets[part.name] = ActionTarget(part.name, columns, head, columns, _in_a_row(part.space.compose))
    return tuple(targets.values())


def _in_a_row(compose: Callable[[Tensor, Tensor], Tensor], columns: slice = slice(None)) -> Callable[[Tensor], Tensor]:
    """What steps `[N, M, S]` do one after another, of which the columns are kept."""
    return lambda steps: functools.reduce(compose, steps.unbind(dim=1))[..., columns]


def augmentation_targets(action_names: Sequence[str]) -> tuple[ActionTarget, ...]:
    """Of augmentations and glimpses, by names of columns; those of no part (flips, grayscale, ...) are left out."""
    columns_by_target: dict[str, list[int]] = {}
    for column, action_name in enumerate(action_names):
        prefix, underscore, _ = action_name.partition("_")
        by_prefix = prefix if underscore and prefix in _TARGETS_BY_PREFIX else None
        target = _TARGETS_BY_COLUMN.get(action_name, by_prefix)
        if target is not None:
            columns_by_target.setdefault(target, []).append(column)
    targets = []
    for name, members in columns_by_target.items():
        head: HeadKind = "mlp" if name in _MLP_TARGETS else "linear"
        compose = (lambda steps: steps.sum(dim=1)) if name == "position" else None
        targets.append(ActionTarget(name, tuple(members), head, tuple(members), compose))
    return tuple(targets)


def cache_of_windows(sequences: FeatureSequences, features: Tensor, actions: Tensor) -> FeatureCache:
    """Parts of sequences as views of a split, for tasks: features `[N, K, D]` of K windows of each sequence.

    Args:
        actions: `[N, K, K, A]` that are asked for between the windows; they stand where a view has its latents.
    """
    return FeatureCache(features, sequences.labels, actions.flatten(2), None)


def read_action(
    target: ActionTarget, of: Literal["views", "pairs"], ask: Ask, objects: Tensor, seen: Mapping[str, Tensor]
) -> dict[str, TaskResult]:
    """What one head reads of the actions between windows or, of "views", of the one that each window is asked for.

    A linear head is the ridge regression on the samples of epoch 0, an MLP is trained like that of relative rotations.

    Args:
        ask: of windows, see `cache_of_windows`.
        objects: which the sequences show that the head learns from, `[N]`.
        seen: features of the judged windows `[N * K, D]` by part: as they are, or changed.
    """

    def targets_of(windows: FeatureCache, rows: Tensor) -> Tensor:
        actions = windows.rows(windows.latents).unflatten(1, (windows.num_views, -1))
        return target.of(actions[rows[:, 0], rows[:, -1] % windows.num_views])

    def plan(ask: Ask) -> HeadPlan:
        protocol = ask.protocol
        return HeadPlan(protocol.rotation_hidden, protocol.rotation_epochs, protocol.rotation_pairs_per_object)

    probe = Probe(of, targets_of, plan)
    if target.head == "mlp":
        head = ask.head(probe)
    else:
        samples = probe.request(ask).samples_of_epoch(0)
        # Whole objects choose the strength, at least one of several.
        distinct, position = objects.unique(return_inverse=True)
        order = torch.from_numpy(np.random.default_rng(ask.seed).permutation(len(distinct))).to(objects.device)
        count = min(max(1, round(ask.protocol.ridge_held_out_share * len(distinct))), len(distinct) - 1)
        held_out = (order < count)[position][sample_objects(ask.train, samples.rows)]
        head, _ = fit_ridge(feature_matrix(ask.train), samples, held_out, ask.protocol)
    judged = samples_of(ask.test, evaluated_rows(ask.test, of, ask.protocol), targets_of)
    return {
        part: judge(target, predict(head, features, judged.rows), judged.targets) for part, features in seen.items()
    }


def judge(target: ActionTarget, predictions: Tensor, truth: Tensor) -> TaskResult:
    """`r2_uniform`, and the median angle of rotations, of predictions `[n, K]`, beside the constant answer's."""
    metrics = {name: value for name, value in r2_metrics(predictions, truth).items() if name == "r2_uniform"}
    baselines = constant_baselines(truth)
    if target.is_rotation:
        metrics["angle_deg_median"] = summarise_angles(angle_errors_deg(predictions, truth))["angle_deg_median"]
        baselines, _ = constant_rotation_baselines(truth)
    return TaskResult(metrics, {name: baselines[name] for name in metrics}, len(truth), notes=r2_notes(truth))
