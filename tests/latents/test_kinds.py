"""Kinds of latents against NumPy and SciPy: actions, group laws, head targets, metrics and constant answers."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation as ScipyRotation
from scipy.stats import qmc
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.evaluation.metrics import r2_uniform
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.category import Category
from ssl_equi.latents.direction import Direction
from ssl_equi.latents.kind import ActionSpace, LatentKind
from ssl_equi.latents.motion import RigidMotion
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation, Rotation6d, RotationMatrix
from ssl_equi.latents.translation import Translation

BOX = ((-math.pi / 2, math.pi / 2),) * 3
# Kinds, a constant answer that is as good as any, and its score; None where no closed form is known.
CASES: dict[str, tuple[LatentKind, list[float] | None, float | None]] = {
    "euler": (Rotation(), [0, 0, 0], math.degrees(brentq(lambda a: (a - math.sin(a)) / math.pi - 0.5, 0, math.pi))),
    "euler in degrees": (Rotation(unit="deg"), [10, 20, 30], 132.3465),
    "euler box": (Rotation(ranges=BOX), None, None),
    "quaternion": (Rotation("quat_xyzw"), [0.5, 0.5, -0.5, 0.5], 132.3465),
    "six numbers": (Rotation6d(), [0, 0, 0], 132.3465),
    "matrix": (RotationMatrix("matrix"), [1, 0, 0, 0, 1, 0, 0, 0, 1], 132.3465),
    "azimuth": (Angle("deg"), [77], 90),
    "hue": (Angle("turn"), [0.3], 90),
    "half turns": (Angle("rad", period=math.pi), [0.2], 45),
    "joint": (Angle("deg", range=(-120, 30)), [-45], 37.5),
    "sphere": (Direction(), [1, 2], 90),
    "sphere of vectors": (Direction("xyz"), [0, 0, 1], 90),
    "light": (Direction(ranges=((0.0, math.pi / 4), (0.0, 2 * math.pi))), [0, 0], 22.5),
    "camera": (Direction(unit="deg", ranges=((20, 70), (-90, 180))), None, None),
    "line": (Translation(((-1, 2),)), [0.5], 0.75),
    "plane": (Translation(((0, 2), (0, 2))), [1, 1], 2 * math.sqrt(1 / (2 * math.pi))),
    "cube": (Translation(((-0.5, 0.5),) * 3), [0, 0, 0], (3 / (8 * math.pi)) ** (1 / 3)),
    "rod": (Translation(((0, 9), (0, 1), (0, 1))), None, None),
    "number": (Number((-2, 6)), [2], 2),
    "elevation": (Number((0, 90), "deg"), [45], 22.5),
    "shape": (Category(("cube", "ball", "cone", "ring")), [3], 0.25),
}
KINDS = {name: kind for name, (kind, _, _) in CASES.items()}
SPACES: dict[str, ActionSpace] = {
    **KINDS,
    "motion in the base frame": RigidMotion(Rotation(), "base"),
    "motion in the object frame": RigidMotion(Rotation("quat_xyzw"), "object"),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EVERY_SPACE = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def values_of(space: ActionSpace, count: int = 200, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    if isinstance(space, RigidMotion):
        return torch.cat(
            [space.rotation.sample(generator, count), torch.from_numpy(generator.normal(size=(count, 3)))], dim=1
        )
    assert isinstance(space, LatentKind)
    return space.sample(generator, count)


def evenly_drawn(kind: LatentKind, exponent: int = 16) -> Tensor:
    """Values as `sample` draws them, of points that fill the cube evenly."""
    return kind.from_uniform(torch.from_numpy(qmc.Sobol(kind.sizes.columns, seed=0).random_base2(exponent)))


# ---------------------------------------------------------------- actions


@EVERY_SPACE
def test_actions_compose_invert_and_begin_where_they_end(space: ActionSpace) -> None:
    a, b, c = (values_of(space, seed=seed).float() for seed in range(3))
    action = space.relative(a, b)
    assert action.shape == (200, space.sizes.action) and action.dtype == torch.float32
    close = {"atol": 2e-6, "rtol": 0}
    torch.testing.assert_close(space.compose(action, space.relative(b, c)), space.relative(a, c), **close)
    torch.testing.assert_close(space.invert(action), space.relative(b, a), **close)
    torch.testing.assert_close(space.compose(space.relative(a, a), action), action, **close)
    torch.testing.assert_close(space.compose(action, space.relative(b, b)), action, **close)
    in_rows = space.relative(a.unflatten(0, (4, 50)), b.unflatten(0, (4, 50)))
    torch.testing.assert_close(space.invert(in_rows).flatten(0, 1), space.relative(b, a), **close)


def scipy_rotation(kind: Rotation, values: np.ndarray) -> ScipyRotation:
    if kind.storage == "euler_xyz":
        return ScipyRotation.from_euler("xyz", values, degrees=kind.unit == "deg")
    if kind.storage == "quat_xyzw":
        return ScipyRotation.from_quat(values)
    return ScipyRotation.from_matrix(values.reshape(-1, 3, 3))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if isinstance(kind, Rotation)])
def test_a_rotations_action_is_scipys_relative_rotation(name: str) -> None:
    kind = KINDS[name]
    assert isinstance(kind, Rotation)
    first, second = (values_of(kind, seed=seed).float() for seed in range(2))
    expected = scipy_rotation(kind, first.double().numpy()).inv() * scipy_rotation(kind, second.double().numpy())
    found, matrices = kind.relative(first, second), expected.as_matrix()
    if kind.code == "quaternion":
        np.testing.assert_allclose(ScipyRotation.from_quat(found).as_matrix(), matrices, atol=1e-6)
        one, other = (scipy_rotation(kind, view.double().numpy()).as_quat(canonical=True) for view in (first, second))
        np.testing.assert_allclose(found[:, 3], (one * other).sum(axis=1), atol=1e-6)  # the sign as it comes
        assert (kind.encode(first)[:, 3] >= 0).all()
    else:
        columns = matrices[..., :2].transpose(0, 2, 1) if kind.code == "6d" else matrices
        np.testing.assert_allclose(found, columns.reshape(200, -1), atol=1e-6)


DIFFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "azimuth": lambda a, b: np.concatenate([np.sin(np.deg2rad(b - a)), np.cos(np.deg2rad(b - a))], axis=1),
    "hue": lambda a, b: np.concatenate([np.sin(2 * np.pi * (b - a)), np.cos(2 * np.pi * (b - a))], axis=1),
    "half turns": lambda a, b: np.concatenate([np.sin(2 * (b - a)), np.cos(2 * (b - a))], axis=1),
    "light": lambda a, b: on_sphere(*b.T) - on_sphere(*a.T),
    "camera": lambda a, b: on_sphere(*np.deg2rad(b).T) - on_sphere(*np.deg2rad(a).T),
    "sphere of vectors": lambda a, b: b / np.linalg.norm(b, axis=1)[:, None] - a / np.linalg.norm(a, axis=1)[:, None],
    "cube": lambda a, b: b - a,
    "number": lambda a, b: (b - a) / 8,
    "shape": lambda a, b: np.concatenate([np.eye(4)[a[:, 0].astype(int)], np.eye(4)[b[:, 0].astype(int)]], axis=1),
}  # fmt: skip


def on_sphere(polar_rad: np.ndarray, azimuth_rad: np.ndarray) -> np.ndarray:
    x, y = np.sin(polar_rad) * np.cos(azimuth_rad), np.sin(polar_rad) * np.sin(azimuth_rad)
    return np.stack([x, y, np.cos(polar_rad)], axis=1)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_other_actions_are_those_of_a_formula(name: str) -> None:
    first, second = (values_of(KINDS[name], seed=seed).float() for seed in range(2))
    expected = DIFFERENCES[name](first.double().numpy(), second.double().numpy())
    np.testing.assert_allclose(KINDS[name].relative(first, second), expected, atol=1e-6)


@pytest.mark.parametrize("frame", ["base", "object"])
def test_a_rigid_motion_is_the_relative_matrix(frame) -> None:
    motion = RigidMotion(Rotation(), frame)
    values = [values_of(motion, seed=seed).float() for seed in range(2)]
    matrices = []
    for view in values:
        rotation, translation = np.tile(np.eye(4), (2, len(view), 1, 1))
        rotation[:, :3, :3] = ScipyRotation.from_euler("xyz", view[:, :3].double()).as_matrix()
        translation[:, :3, 3] = view[:, 3:]
        matrices.append(rotation @ translation if frame == "base" else translation @ rotation)
    expected = np.linalg.inv(matrices[0]) @ matrices[1]
    found = motion.relative(*values)
    np.testing.assert_allclose(ScipyRotation.from_quat(found[:, :4]).as_matrix(), expected[:, :3, :3], atol=1e-6)
    np.testing.assert_allclose(found[:, 4:], expected[:, :3, 3], atol=2e-6)


# ---------------------------------------------------------------- heads and metrics


@EVERY_KIND
def test_targets_stand_for_the_values_that_they_were_made_of(kind: LatentKind) -> None:
    values = values_of(kind)
    targets = kind.encode(values)
    predictions = torch.nn.functional.one_hot(targets).float() if isinstance(kind, Category) else targets
    assert predictions.shape == (200, kind.sizes.targets) and predictions.dtype == torch.float32
    answers = kind.decode(predictions)
    assert answers.shape == values.shape and answers.dtype == torch.float64
    assert kind.errors(answers, values).max() < 1e-4
    assert kind.score(answers, values) == pytest.approx(1 if kind.metric == "top1" else 0, abs=1e-4)
    if not isinstance(kind, Rotation):  # of which two columns may be one rotation
        torch.testing.assert_close(answers, values, atol=1e-4, rtol=0)
    if not isinstance(kind, Number | Translation):  # all else is told by where a prediction points
        torch.testing.assert_close(kind.decode(4 * predictions), answers, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "answer", "value", "error"),
    [
        ("azimuth", [359.0], [3.0], 4),
        ("hue", [0.95], [0.05], 36),
        ("half turns", [math.pi - 0.1], [0.1], math.degrees(0.2)),
        ("joint", [-110.0], [25.0], 135),
        ("camera", [90.0, 0.0], [90.0, 75.0], 75),
        ("sphere of vectors", [1.0, 0, 0], [-2.0, 0, 0], 180),
        ("euler in degrees", [0.0, 0, 10], [0.0, 0, 170], 160),
        ("plane", [0.0, 0.0], [3.0, 4.0], 5),
        ("shape", [2.0], [3.0], 1),
        ("shape", [2.0], [2.0], 0),
    ],
)
def test_errors_are_degrees_distances_or_wrong_classes(name: str, answer: list, value: list, error: float) -> None:
    found = KINDS[name].errors(torch.tensor([answer]), torch.tensor([value]))
    np.testing.assert_allclose(found, [error], atol=1e-5)


# ---------------------------------------------------------------- constant answers


@pytest.mark.parametrize("name", CASES)
def test_a_constant_answer_scores_what_its_formula_says_and_no_other_more(name: str) -> None:
    kind, constant, score = CASES[name]
    values = evenly_drawn(kind)
    if constant is None:
        assert kind.constant_score() is None
    else:
        assert kind.constant_score() == pytest.approx(score, rel=1e-5)
        answers = torch.tensor([constant], dtype=torch.float64).expand_as(values)
        assert kind.score(answers, values) == pytest.approx(score, rel=1e-3)
    if kind.metric == "top1":
        return
    few = values[:4096]
    targets = kind.encode(few)
    assert r2_uniform(targets.double().mean(dim=0).expand_as(targets), targets) == pytest.approx(0, abs=1e-12)
    others = [kind.score(answer.expand_as(few), few) for answer in few[:20, None]]
    assert score is None or min(others) > 0.98 * score


# ---------------------------------------------------------------- ranges


@EVERY_KIND
def test_samples_fill_their_range_and_depend_on_the_seed_only(kind: LatentKind) -> None:
    values = values_of(kind, 500)
    assert values.shape == (500, kind.sizes.columns) and values.dtype == torch.float64
    assert torch.equal(values, values_of(kind, 500)) and not torch.equal(values, values_of(kind, 500, seed=1))
    ranges = getattr(kind, "ranges", ()) or ([kind.bounds] if isinstance(kind, Angle) else [])
    for column, (low, high) in zip(values.T, ranges):
        assert low <= column.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < column.max() <= high
    if isinstance(kind, Category):
        assert values.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotation("euler"), "the storage of a rotation is 'euler': choose one of euler_xyz, quat_xyzw, matrix"),
        (lambda: Rotation(unit="degree"), "the unit of a rotation is 'degree': choose one of deg, rad, turn"),
        (lambda: Rotation(ranges=((0, 1),)), "ranges of Euler angles is ((0, 1),): give [low, high] 0 or 3 times"),
        (lambda: Rotation("matrix", ranges=BOX), "a rotation stored as matrix has ranges: leave them out"),
        (lambda: Angle("degrees"), "the unit of an angle is 'degrees': choose one of deg, rad, turn"),
        (lambda: Angle(period=0), "the period of an angle is 0: give a number above 0"),
        (lambda: Angle(period=True), "the period of an angle is True: give a number above 0"),
        (lambda: Angle(range=(0, 400)), "goes from 0.0 to 400.0 with a period of 360.0: leave it out"),
        (lambda: Direction("cartesian"), "the storage of a direction is 'cartesian'"),
        (lambda: Direction("xyz", ranges=((0, 1), (0, 1))), "a direction stored as xyz has ranges"),
        (lambda: Translation(()), "ranges of a translation is (): give [low, high] 1 or 2 or 3 times"),
        (lambda: Number((1, 1)), "the range of a number holds (1, 1): give two finite numbers, the lower first"),
        (lambda: Number((0, math.inf)), "the range of a number holds (0, inf): give two finite numbers"),
        (lambda: Number((0, 10**400)), "give two finite numbers"),
        (lambda: Number((0, 1), "m"), "the unit of a number is 'm'"),
        (lambda: Category(("a", "a")), "give two or more different words"),
        (lambda: Category("ab"), "give two or more different words"),
    ],
)  # fmt: skip
def test_what_a_kind_cannot_be_is_told_in_a_sentence(make: Callable[[], LatentKind], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()
