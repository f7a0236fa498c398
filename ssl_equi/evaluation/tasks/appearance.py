"""Which change of colour, which light? Asked of the floor's and the light's hue, and of the light's direction."""

import math

import torch
from torch import Tensor

from ssl_equi.evaluation.baselines import constant_baselines, constants
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import HeadPlan, Samples, fit_ridge, predict
from ssl_equi.evaluation.metrics import direction_errors_deg, r2_metrics, r2_notes, summarise_angles
from ssl_equi.evaluation.samples import (
    evaluated_rows,
    feature_matrix,
    held_out_samples,
    require_objects,
    require_varied,
    require_varied_targets,
    require_views,
    sample_objects,
    samples_of,
    training_rows,
)
from ssl_equi.evaluation.task import HUES, LIGHT, Ask, Probe, TaskResult, object_means, task
from ssl_equi.latents.direction import Direction


def _relative_hues(cache: FeatureCache, rows: Tensor) -> Tensor:
    """Differences of floor hue and light hue, second view minus first: `[n, 2]` of pairs `[n, 2]`, as SIE has them."""
    latents = cache.rows(cache.latents)[rows]
    differences = latents[:, 1] - latents[:, 0]
    return torch.cat([differences[:, hue.columns] for hue in HUES.require(cache)], dim=1)


def _hue_turns(cache: FeatureCache, rows: Tensor) -> Tensor:
    """Cosine and sine of the turn of the floor's hue, then of the light's: `[n, 4]` of pairs `[n, 2]`."""
    turns_rad = 2 * math.pi * _relative_hues(cache, rows)
    return torch.stack([turns_rad.cos(), turns_rad.sin()], dim=-1).flatten(-2)


def _lights(cache: FeatureCache, rows: Tensor) -> Tensor:
    """Unit vectors `[n, 3]` to the light in the views `[n, 1]`."""
    (light,) = LIGHT.require(cache)
    assert isinstance(light.kind, Direction)
    return light.kind.vectors(cache.rows(cache.latents)[rows[:, 0]][:, light.columns])


def _light_changes(cache: FeatureCache, rows: Tensor) -> Tensor:
    return _lights(cache, rows[:, 1:]) - _lights(cache, rows[:, :1])


def _light_plan(ask: Ask) -> HeadPlan:
    protocol = ask.protocol
    return HeadPlan(protocol.light_hidden, protocol.light_epochs, protocol.light_samples_per_object)


COLOUR = Probe(
    "pairs",
    targets=_relative_hues,
    plan=lambda ask: HeadPlan(
        ask.protocol.colour_hidden, ask.protocol.colour_epochs, ask.protocol.colour_pairs_per_object
    ),
)
COLOUR_CIRCULAR = Probe(
    "pairs",
    targets=_hue_turns,
    plan=lambda ask: HeadPlan(
        ask.protocol.colour_circular_hidden, ask.protocol.colour_circular_epochs,
        ask.protocol.colour_circular_pairs_per_object,
    ),
)  # fmt: skip
LIGHT_OF_VIEW = Probe("views", targets=_lights, plan=_light_plan)
LIGHT_CHANGE = Probe("pairs", targets=_light_changes, plan=_light_plan)


@task("colour", needs=HUES)
def colour(ask: Ask) -> TaskResult:
    """Differences of floor hue and light hue between two views (not wrapped), from the features of both."""
    predictions, samples = _ridge_on_pairs(ask) if ask.protocol.colour_solver == "ridge" else ask.probe(COLOUR)
    require_varied_targets(samples.targets)
    return TaskResult(
        r2_metrics(predictions, samples.targets),
        constant_baselines(samples.targets),
        len(samples),
        notes=r2_notes(samples.targets),
    )


@task("colour_circular", needs=HUES, probes=[COLOUR_CIRCULAR])
def colour_circular(ask: Ask) -> TaskResult:
    """How far floor hue and light hue turn on the colour circle: sine and cosine of each difference, by an MLP.

    A difference of .9 of the circle is one of -.1 here, unlike in `colour`. Angles are degrees on that circle, between
    the predicted direction (cosine, sine) of a difference and the true one: 90 on average for unrelated hues.
    """
    predictions, samples = ask.probe(COLOUR_CIRCULAR)
    constant = samples.targets.mean(dim=0).expand_as(samples.targets)
    metrics, baselines = r2_metrics(predictions, samples.targets), constant_baselines(samples.targets)
    object_scores = {}
    for index, hue in enumerate(HUES.latents(ask.test.schema)):
        pair = slice(2 * index, 2 * index + 2)
        errors_deg = direction_errors_deg(predictions[:, pair], samples.targets[:, pair])
        constant_deg = direction_errors_deg(constant[:, pair], samples.targets[:, pair])
        metrics |= {f"{name}_{hue.name}": value for name, value in summarise_angles(errors_deg).items()}
        of_constant = {f"{name}_{hue.name}": value for name, value in summarise_angles(constant_deg).items()}
        baselines |= constants(of_constant)
        object_scores[f"angle_deg_mean_{hue.name}"] = object_means(
            errors_deg, sample_objects(ask.test, samples.rows), ask.test.num_objects
        )
    return TaskResult(metrics, baselines, len(samples), object_scores=object_scores, notes=r2_notes(samples.targets))


@task("light", needs=LIGHT, probes=[LIGHT_OF_VIEW])
def light(ask: Ask) -> TaskResult:
    """Direction from which the light comes, a unit vector in the world: MLP on one view's features.

    Angles are those between the predicted and the true direction; the constant is the mean direction.
    """
    predictions, samples = ask.probe(LIGHT_OF_VIEW)
    constant = samples.targets.mean(dim=0).expand_as(samples.targets)
    return _light_result(ask.test, samples, predictions, predictions, constant, samples.targets)


@task("relative_light", needs=LIGHT, probes=[LIGHT_CHANGE])
def relative_light(ask: Ask) -> TaskResult:
    """How the direction d of the light, a unit vector in the world, changes between two views: d2 - d1, by an MLP.

    R2 is that of the difference. Angles are those between the true d2 and the true d1 plus the predicted difference.
    """
    predictions, samples = ask.probe(LIGHT_CHANGE)
    first, second = _lights(ask.test, samples.rows[:, :1]), _lights(ask.test, samples.rows[:, 1:])
    constant = samples.targets.mean(dim=0).expand_as(samples.targets)
    return _light_result(ask.test, samples, predictions, first + predictions, first + constant, second)


def _light_result(
    test: FeatureCache, samples: Samples, predictions: Tensor, predicted: Tensor, constant: Tensor, true: Tensor
) -> TaskResult:
    """R2 of the predictions to the samples' targets, and the angles of predicted (and constant) to true directions."""
    errors_deg = direction_errors_deg(predicted, true)
    of_constant = summarise_angles(direction_errors_deg(constant, true))
    objects = sample_objects(test, samples.rows)
    return TaskResult(
        metrics=r2_metrics(predictions, samples.targets) | summarise_angles(errors_deg),
        baselines=constant_baselines(samples.targets) | constants(of_constant),
        num_samples=len(samples),
        object_scores={"angle_deg_mean": object_means(errors_deg, objects, test.num_objects)},
        notes=r2_notes(samples.targets),
    )


def _ridge_on_pairs(ask: Ask) -> tuple[Tensor, Samples]:
    """Hue differences of the fixed pairs of `test` by ridge regression, and these pairs."""
    train, test, protocol = ask.train, ask.test, ask.protocol
    require_varied(train, test)
    require_views(train, test)
    require_objects(train, "training")
    rows = training_rows(train, "pairs", protocol.colour_pairs_per_object, ask.seed, epoch=0)
    held_out = held_out_samples(train, rows, protocol.ridge_held_out_share, ask.seed)
    head, _ = fit_ridge(feature_matrix(train), samples_of(train, rows, _relative_hues), held_out, protocol)
    samples = samples_of(test, evaluated_rows(test, "pairs", protocol), _relative_hues)
    return predict(head, feature_matrix(test), samples.rows), samples
