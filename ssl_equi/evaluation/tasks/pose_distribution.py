"""Which rotation, answered by a distribution over SO(3), which is fair to objects that look the same from many sides.

A head that answers with one rotation can't be right about an object that several rotations leave as it is; a
distribution can name all of them. The density is implicit (Murphy et al., "Implicit-PDF: Non-Parametric Representation
of Probability Distributions on the Rotation Manifold", ICML 2021): a network of the features and a rotation gives its
logarithm up to a constant, which a sum over a grid of rotations makes good.

There, features and rotation meet in the first of four layers, so that each pair of them costs a pass through all four.
Here, each has a network of its own and the log density is the product of two vectors: of n views and G rotations, n + G
passes and one matrix product, which is what makes a fine grid affordable on a CPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.bootstrap import MeanStatistic
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import build_head, column_statistics
from ssl_equi.evaluation.metrics import ANGLE_MEDIAN, name_of_class_metric, summarise_angles
from ssl_equi.evaluation.protocol import PoseDistributionProtocol
from ssl_equi.evaluation.samples import (
    SampleKind,
    evaluated_rows,
    feature_matrix,
    require_varied,
    require_views,
    rows_of_classes,
    sample_objects,
    training_rows,
)
from ssl_equi.evaluation.task import POSE, Ask, TaskResult, object_means, task
from ssl_equi.evaluation.tasks.pose import angle_result, rotations
from ssl_equi.geometry.rotation_grids import even_rotations, volume_share_within
from ssl_equi.geometry.rotations import quat_multiply, quat_to_matrix, random_quat

LOG_VOLUME = math.log(math.pi**2)  # of SO(3), as the literature measures it: the uniform log density is -2.2895
WITHIN_DEG = (15, 30)
LIKELIHOOD, SPREAD, MODE_ERROR = "log_likelihood", "angle_deg_spread", "mode_error_deg"
UNIFORM_SPREAD_DEG = math.degrees(math.pi / 2 + 2 / math.pi)  # mean angle between two random rotations, 126.5
LOGITS_AT_ONCE = 2**22  # 16 MB of them
DRAWN_SAMPLES, DRAWN_ROTATIONS = 6, 200


@task("absolute_rotation_distribution", needs=POSE, group="distributions")
def absolute_rotation_distribution(ask: Ask) -> TaskResult:
    """The rotation of a single view's pose, in its family's own frame, as a distribution."""
    return _answer(ask, "views")


@task("relative_rotation_distribution", needs=POSE, group="distributions")
def relative_rotation_distribution(ask: Ask) -> TaskResult:
    """The body-frame rotation between two views as a distribution, from their features side by side."""
    require_views(ask.train, ask.test)
    return _answer(ask, "pairs")


class RotationDensity(nn.Module):
    """Log densities of rotations, up to a constant of each sample: products of the sample's code and the rotations'.

    Attributes:
        of_samples: standardised features of a sample's views, side by side, to its code.
        of_rotations: entries of a rotation's matrix, and waves of them, to its code.
        grid: even rotations `[G, 4]` that a training sample's own rotation is told from.
    """

    grid: Tensor

    def __init__(self, num_features: int, chosen: PoseDistributionProtocol, seed: int) -> None:
        super().__init__()
        self._num_frequencies = chosen.num_frequencies
        self._generator = torch.Generator().manual_seed(seed)
        self.of_samples = build_head(num_features, chosen.hidden, chosen.num_codes, self._generator)
        entries_and_waves = 9 * (1 + 2 * chosen.num_frequencies)
        self.of_rotations = build_head(entries_and_waves, chosen.hidden, chosen.num_codes, self._generator)
        self.register_buffer("grid", even_rotations(chosen.training_rotations, torch.float32), persistent=False)

    def rotation_codes(self, quats_xyzw: Tensor) -> Tensor:
        """Codes `[n, num_codes]` of rotations `[n, 4]`, the same for q and -q."""
        entries = quat_to_matrix(quats_xyzw).flatten(-2)
        waves = [math.pi * 2**power * entries for power in range(self._num_frequencies)]
        codes: Tensor = self.of_rotations(
            torch.cat([entries, *(wave.sin() for wave in waves), *(wave.cos() for wave in waves)], dim=-1)
        )
        return codes

    def forward(self, features: Tensor, true_xyzw: Tensor) -> Tensor:
        """Mean cross-entropy of the true rotations `[n, 4]`, each told from the grid, of samples `[n, num_features]`.

        The grid is turned every time: a fixed one has gaps, in which a density could rise unseen.
        """
        turn = random_quat(1, self._generator, dtype=torch.float32).to(self.grid.device)
        codes = self.rotation_codes(torch.cat([quat_multiply(turn, self.grid), true_xyzw]))
        of_grid, of_truth = codes.split([len(self.grid), len(true_xyzw)])
        sample_codes = self.of_samples(features)
        at_truth = (sample_codes * of_truth).sum(dim=1)
        everywhere = torch.cat([sample_codes @ of_grid.T, at_truth[:, None]], dim=1)
        return (everywhere.logsumexp(dim=1) - at_truth).mean()


@dataclass(frozen=True)
class Distributions:
    """Distributions of n samples over a grid of G rotations.

    Attributes:
        logits: of some samples `[b]`: their log densities on the grid up to a constant `[b, G]`.
        logits_at_truth: `[n]`, with the same constants.
    """

    logits: Callable[[Tensor], Tensor]
    logits_at_truth: Tensor


def judge_distributions(found: Distributions, grid: Tensor, true_xyzw: Tensor) -> dict[str, Tensor]:
    """Scores of each sample `[n]`, float64 on the CPU, by metric, and the error of the most likely rotation.

    Args:
        grid: rotations `[G, 4]` that divide SO(3) evenly.
        true_xyzw: `[n, 4]`.
    """
    chunks = []
    for samples in torch.arange(len(true_xyzw), device=grid.device).split(max(1, LOGITS_AT_ONCE // len(grid))):
        logits, at_truth = found.logits(samples), found.logits_at_truth[samples]
        # The truth counts as a rotation of the grid: a density can't gain from peaks that fall between the others.
        total = torch.logaddexp(logits.logsumexp(dim=1), at_truth) - math.log(len(grid) + 1)
        probability = logits.softmax(dim=1)
        angle_deg = torch.rad2deg(2 * (true_xyzw[samples] @ grid.T).abs().clamp(max=1).arccos())
        mode_error_deg = angle_deg.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
        scores = {LIKELIHOOD: at_truth - total - LOG_VOLUME}
        for limit in WITHIN_DEG:
            scores[f"recall_at_{limit}deg"] = (mode_error_deg <= limit).double()
            scores[f"mass_within_{limit}deg"] = (probability * (angle_deg <= limit)).sum(dim=1)
        scores |= {SPREAD: (probability * angle_deg).sum(dim=1), MODE_ERROR: mode_error_deg}
        chunks.append({name: values.double().cpu() for name, values in scores.items()})
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def uniform_scores() -> dict[str, float]:
    """What the uniform distribution scores, whatever the truth; its most likely rotation is a random one."""
    shares = {limit: volume_share_within(math.radians(limit)) for limit in WITHIN_DEG}
    return (
        {LIKELIHOOD: -LOG_VOLUME, SPREAD: UNIFORM_SPREAD_DEG}
        | {f"recall_at_{limit}deg": share for limit, share in shares.items()}
        | {f"mass_within_{limit}deg": share for limit, share in shares.items()}
    )


def _answer(ask: Ask, of: SampleKind) -> TaskResult:
    """Learns the density on new views or pairs of each epoch, and judges it on the fixed ones."""
    train, test = ask.train, ask.test
    require_varied(train, test)
    rows = evaluated_rows(test, of, ask.protocol)
    true_xyzw = rotations(test, rows)
    grid = even_rotations(ask.protocol.pose_distribution.evaluation_rotations, torch.float32).to(rows.device)
    answered = _learned(ask, of, feature_matrix(train), feature_matrix(test)[rows].flatten(1), grid, true_xyzw)

    def scores_without_features() -> dict[str, Tensor]:
        nothing, as_little = true_xyzw.new_zeros(train.num_images, 1), true_xyzw.new_zeros(len(rows), rows.shape[1])
        return judge_distributions(_learned(ask, of, nothing, as_little, grid, true_xyzw), grid, true_xyzw)

    # It's the same for all parts.
    constant_scores = ask.made.once(("constant distribution of rotations", of, ask.seed), scores_without_features)
    scores = judge_distributions(answered, grid, true_xyzw)
    return _result(test, rows, scores, constant_scores, true_xyzw, _drawn(answered, grid, true_xyzw))


def _learned(
    ask: Ask, of: SampleKind, features: Tensor, judged: Tensor, grid: Tensor, true_xyzw: Tensor
) -> Distributions:
    """The distributions of samples' features `judged [n, k D]`, learned from features `[N, D]` of the training views.

    Features that are all the same give the one distribution that answers best without an image.
    """
    train, chosen, seed = ask.train, ask.protocol.pose_distribution, ask.seed
    mean, std = column_statistics(features)
    features = (features - mean) / std

    def rows_of_epoch(epoch: int) -> Tensor:
        rows = training_rows(train, of, chosen.samples_per_object, seed, epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        return rows[torch.from_numpy(order).to(rows.device)]

    views_per_sample = judged.shape[1] // features.shape[1]
    density = RotationDensity(judged.shape[1], chosen, seed).to(features.device)
    optimizer = torch.optim.Adam(density.parameters(), lr=chosen.learning_rate, fused=True)
    steps = chosen.epochs * len(rows_of_epoch(0).split(ask.protocol.batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(chosen.epochs):
        for rows in rows_of_epoch(epoch).split(ask.protocol.batch_size):
            loss = density(features[rows].flatten(1), rotations(train, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        standardised = (judged - mean.repeat(views_per_sample)) / std.repeat(views_per_sample)
        sample_codes = density.of_samples(standardised)
        grid_codes, true_codes = density.rotation_codes(grid), density.rotation_codes(true_xyzw)
        return Distributions(
            lambda samples: sample_codes[samples] @ grid_codes.T, (sample_codes * true_codes).sum(dim=1)
        )


def _result(
    test: FeatureCache,
    rows: Tensor,
    scores: dict[str, Tensor],
    constant_scores: dict[str, Tensor],
    true_xyzw: Tensor,
    drawn: dict[str, np.ndarray],
) -> TaskResult:
    """Means of the scores, and angles of the most likely rotations, beside what knows no image."""
    objects = sample_objects(test, rows).cpu()
    means = {name: values for name, values in scores.items() if name != MODE_ERROR}
    angles = angle_result(test, rows, scores[MODE_ERROR], true_xyzw)
    metrics = {name: float(values.mean()) for name, values in means.items()} | summarise_angles(scores[MODE_ERROR])
    baselines = {name: _stronger(name, float(constant_scores[name].mean())) for name in means} | angles.baselines
    object_scores = {name: object_means(values, objects, test.num_objects) for name, values in means.items()}
    statistics = dict(angles.statistics or {})
    for class_name, chosen in rows_of_classes(test, objects).items():
        likelihood, angle = (name_of_class_metric(metric, class_name) for metric in (LIKELIHOOD, ANGLE_MEDIAN))
        metrics[likelihood] = float(scores[LIKELIHOOD][chosen].mean())
        metrics[angle] = angles.metrics[angle]
        baselines[likelihood] = _stronger(LIKELIHOOD, float(constant_scores[LIKELIHOOD][chosen].mean()))
        statistics[likelihood] = MeanStatistic(object_scores[LIKELIHOOD][objects[chosen].unique().numpy()])
    object_scores |= angles.object_scores or {}
    return replace(
        angles, metrics=metrics, baselines=baselines, object_scores=object_scores, statistics=statistics, arrays=drawn
    )


def _stronger(metric: str, constant: float) -> Baseline:
    """The better one of the uniform distribution and of that learned without features."""
    uniform = uniform_scores()[metric]
    constant_is_better = constant < uniform if metric == SPREAD else constant > uniform
    if constant_is_better:
        return Baseline(constant, "constant distribution")
    return Baseline(uniform, "uniform distribution")


def _drawn(found: Distributions, grid: Tensor, true_xyzw: Tensor) -> dict[str, np.ndarray]:
    """A few samples' distributions as equally likely rotations `[samples, rotations, 4]`, and the true `[samples, 4]`.

    The rotations stand at even steps of the cumulative probability, so that nothing is drawn by chance.
    """
    count = min(DRAWN_SAMPLES, len(true_xyzw))
    samples = torch.from_numpy(np.linspace(0, len(true_xyzw) - 1, count).round().astype(np.int64)).to(grid.device)
    cumulative = found.logits(samples).double().softmax(dim=1).cumsum(dim=1)
    steps = (torch.arange(DRAWN_ROTATIONS, dtype=torch.float64, device=grid.device) + 0.5) / DRAWN_ROTATIONS
    places = torch.searchsorted(cumulative, steps.expand(count, -1).contiguous()).clamp(max=len(grid) - 1)
    return {
        "rotation_density": grid[places].cpu().numpy(),
        "rotation_truth": true_xyzw[samples].cpu().numpy(),
    }
