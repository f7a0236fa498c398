"""Actions of named latents: SciPy's rotations and rigid motions, concatenation, group laws, names that don't exist."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as ScipyRotation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_equi.errors import UserError
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.latents.actions import AUGMENTATION, ToldActions, actions_as_told, actions_of, warning_of_signs
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.category import Category
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.schema import THREEDIEBENCH, THREEDIEBENCH_T, Latent, LatentSchema
from ssl_equi.scenes.sampling import sample_latents

ROBOT = LatentSchema(
    (Latent("azimuth", Angle(), 0), Latent("elevation", Number((0, 90)), 1), Latent("grip", Category(("on", "off")), 2))
)
OWN_NAME = LatentSchema((Latent("turn", Rotation(), 0), Latent("turn_6d", Number((0, 1)), 3)))
STORED = LatentSchema((Latent("pose", Rotation("quat_xyzw"), 0),))
WIDTHS = {"rotation": 4, "rotation_color": 6, "rotation_6d": 6, "rotation_matrix": 9, "pose_base": 7, "pose_object": 7}


def views_of(schema: LatentSchema, rotation: str = "euler_box") -> tuple[Tensor, Tensor]:
    """Latents float64 [300, L] of pairs of views."""
    generator = np.random.default_rng(0)
    if schema in (ROBOT, OWN_NAME):
        return schema.sample(generator, 300), schema.sample(generator, 300)
    both = sample_latents(600, generator, rotation, translation=schema.scene_translation or 0.0)  # type: ignore[arg-type]
    return torch.from_numpy(both[:300]), torch.from_numpy(both[300:])


# ---------------------------------------------------------------- 3DIEBench: by SciPy


def pairs(furthest_rad: float = math.pi / 2) -> np.ndarray:
    """Latents [500, 2, 10] of moving objects turned by up to this angle about each axis."""
    generator = np.random.default_rng(0)
    rotations = generator.uniform(-furthest_rad, furthest_rad, (500, 2, 3))
    return np.concatenate(
        [rotations, generator.uniform(0, 1, (500, 2, 4)), generator.uniform(-0.5, 0.5, (500, 2, 3))], -1
    )


def rotations_of(latents: np.ndarray) -> list[ScipyRotation]:
    return [ScipyRotation.from_euler("xyz", latents[:, view, :3]) for view in (0, 1)]


def actions(latents: np.ndarray, name: str, flipped: bool = False) -> Tensor:
    """From view 1 to view 2, or back, of float32 latents with SciPy's quaternions."""
    quat_xyzw = torch.from_numpy(np.stack([each.as_quat() for each in rotations_of(latents)], axis=1)).float()
    stored = torch.from_numpy(latents).float()
    first, second = (1, 0) if flipped else (0, 1)
    made = actions_of(THREEDIEBENCH_T, [name])
    return made(stored[:, first], stored[:, second], (quat_xyzw[:, first], quat_xyzw[:, second]))


def test_rotation_is_the_body_frame_one_of_scipy_with_its_sign() -> None:
    first, second = rotations_of(pairs())
    found = actions(pairs(), "rotation").numpy()
    np.testing.assert_allclose(found, (first.inv() * second).as_quat(), atol=1e-6)
    assert (found[:, 3] < 0).any()  # not canonicalised
    np.testing.assert_allclose((first * ScipyRotation.from_quat(found)).as_matrix(), second.as_matrix(), atol=1e-5)


def test_hues_are_plain_differences_second_minus_first() -> None:
    latents = np.zeros((1, 2, 7))
    latents[0, 0, [3, 6]], latents[0, 1, [3, 6]] = (0.9, 0.2), (0.1, 0.5)
    hues = actions(latents, "rotation_color")[:, 4:]
    torch.testing.assert_close(hues, torch.tensor([[-0.8, 0.3]]))  # -0.8 is not wrapped to 0.2
    action = actions(pairs(), "rotation_color")
    assert torch.equal(action[:, :4], actions(pairs(), "rotation"))
    first, second = torch.from_numpy(pairs()).float()[..., [3, 6]].unbind(1)
    assert torch.equal(action[:, 4:], second - first)


def test_rotations_without_a_sign_are_columns_and_rows_of_scipys_matrix() -> None:
    latents = pairs(math.pi)
    first, second = rotations_of(latents)
    matrices = (first.inv() * second).as_matrix()
    six_numbers = np.concatenate([matrices[:, :, 0], matrices[:, :, 1]], axis=1)
    np.testing.assert_allclose(actions(latents, "rotation_6d"), six_numbers, atol=2e-6)
    np.testing.assert_allclose(actions(latents, "rotation_matrix"), matrices.reshape(-1, 9), atol=2e-6)


def motion_matrices(latents: np.ndarray, rotate_last: bool) -> np.ndarray:
    """R T [N, 4, 4] if `rotate_last`, else T R, of latents [N, 10]."""
    rotation, translation = np.tile(np.eye(4), (2, len(latents), 1, 1))
    rotation[:, :3, :3] = ScipyRotation.from_euler("xyz", latents[:, :3]).as_matrix()
    translation[:, :3, 3] = latents[:, 7:]
    return rotation @ translation if rotate_last else translation @ rotation


@pytest.mark.parametrize(("name", "rotate_last"), [("pose_base", True), ("pose_object", False)])
def test_pose_is_the_relative_rigid_motion_after_the_rotation_to_the_bit(name: str, rotate_last: bool) -> None:
    action, back = (actions(pairs(), name, flipped) for flipped in (False, True))
    assert action.shape == (500, 7) and action.dtype == torch.float32
    assert torch.equal(action[:, :4], actions(pairs(), "rotation"))
    first, second = (motion_matrices(pairs()[:, view], rotate_last) for view in (0, 1))
    np.testing.assert_allclose(matrix_of_action(action), np.linalg.inv(first) @ second, atol=1e-5)
    identity = torch.eye(4).expand(500, 4, 4)
    torch.testing.assert_close(matrix_of_action(action) @ matrix_of_action(back), identity, atol=1e-5, rtol=0)


def test_equal_rotations_of_a_full_turn_differ_in_sign_as_quaternions_only() -> None:
    """The same turn about z from any pose of a turntable."""
    start = torch.linspace(-math.pi, math.pi, 101, dtype=torch.float64)[:-1]
    first, second = torch.zeros(2, 100, 7, dtype=torch.float64)
    first[:, 2], second[:, 2] = start, start + 2.0
    quats, *without_sign = (
        actions_of(THREEDIEBENCH, [name])(first, second) for name in ("rotation", "rotation_6d", "rotation_matrix")
    )
    assert 0.2 < float((quats[:, 3] < 0).float().mean()) < 0.4
    assert all(float(found.std(dim=0).max()) < 1e-6 for found in without_sign)


@pytest.mark.parametrize("rotation", ["euler_box", "uniform"])
@pytest.mark.parametrize("name", WIDTHS)
def test_actions_of_exact_latents_are_those_of_stored_ones_with_their_quaternions_to_the_bit(
    name: str, rotation: str
) -> None:
    schema = THREEDIEBENCH_T if name.startswith("pose") else THREEDIEBENCH
    exact = torch.stack(views_of(schema, rotation), dim=1)  # [300, 2, L] float64
    stored, quats_xyzw = exact.float(), quat_xyzw_from_latents(exact).float()
    made = actions_of(schema, [name])
    assert made.width == WIDTHS[name] == sum(made.describe()["widths"])
    found = made(stored[:, 0], stored[:, 1], quats_xyzw=(quats_xyzw[:, 0], quats_xyzw[:, 1]))
    assert torch.equal(made(exact[:, 0], exact[:, 1]), found)
    torch.testing.assert_close(made(stored[:, 0], stored[:, 1]), found, atol=1e-6, rtol=0)
    together = made.between_all(stored, quats_xyzw)
    assert together.shape == (300, 2, 2, WIDTHS[name]) and torch.equal(together[:, 0, 1], found)
    back = made(stored[:, 1], stored[:, 0], quats_xyzw=(quats_xyzw[:, 1], quats_xyzw[:, 0]))
    assert torch.equal(together[:, 1, 0], back)


def test_poses_beyond_the_euler_box_are_told() -> None:
    def told(furthest_deg: float, schema: LatentSchema = THREEDIEBENCH, names: Any = None) -> str | None:
        latents = np.zeros((3, 2, schema.num_columns), np.float32)
        latents[1, 0, 0] = -math.radians(furthest_deg)
        return warning_of_signs("train", schema, latents, names)

    assert not any((told(90), told(90.01, THREEDIEBENCH_T), told(170, ROBOT), told(0)))
    assert told(180) == (
        "views of split 'train' turn by up to 180 degrees about an axis: beyond 90, quaternions of equal relative "
        "rotations come with both signs, so prefer actions rotation_6d or rotation_matrix, and the tasks "
        "relative_rotation_6d or relative_rotation_matrix"
    )
    for names, warned in ((["floor_hue"], False), (["rotation_6d"], False), (["rotation_color"], True)):
        assert (told(180, names=names) is not None) == warned
    assert told(180, THREEDIEBENCH_T, ["pose_base"]) and warning_of_signs("train", None, np.zeros((1, 2, 0))) is None


def test_angles_beyond_the_box_need_not_be_poses_beyond_it() -> None:
    generator = np.random.default_rng(0)
    latents = np.zeros((20, 4, 7))
    latents[..., :3] = generator.choice([-1, 1], (20, 4, 3)) * generator.uniform(math.pi / 2, math.pi, (20, 4, 3))
    others = ScipyRotation.from_euler("xyz", latents[..., :3].reshape(-1, 3)).as_euler("xyz")
    assert float(np.abs(others).max()) <= math.pi / 2
    assert "no pose is new" in (warning_of_signs("ood_rotation", THREEDIEBENCH, latents) or "")
    latents[3, 2, 1] = 0.3  # now x and z are really beyond 90 degrees
    assert "come with both signs" in (warning_of_signs("ood_rotation", THREEDIEBENCH, latents) or "")


@pytest.mark.parametrize(("furthest_deg", "warned"), [(90, False), (175, False), (179, True), (300, False)])
def test_stored_quaternions_next_to_half_turns_are_told(furthest_deg: float, warned: bool) -> None:
    """w of a turn by 300 degrees, and so by 60 the other way, is far from 0 again, once it is positive."""
    poses = ScipyRotation.from_rotvec(np.radians(furthest_deg) * np.eye(3)).as_quat()[None]
    found = warning_of_signs("test", STORED, poses)
    assert (found is not None) == warned
    if found:
        assert "up to 179 degrees: at half turns" in found and found.endswith("prefer actions pose_6d or pose_matrix")


class Operators(TorchDispatchMode):
    """Counts what PyTorch is asked to compute."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("name", "most"),
    [("rotation", 26), ("rotation_color", 33), ("rotation_6d", 73), ("rotation_matrix", 71), ("pose_base", 213),
     ("pose_object", 109)],
)  # fmt: skip
def test_actions_of_a_step_take_few_operators(name: str, most: int) -> None:
    """On a GPU each is a launch; as many as when formulas stood for 3DIEBench alone."""
    quats_xyzw, latents = torch.rand(8, 4, 4), torch.rand(8, 4, 10)
    made = actions_of(THREEDIEBENCH_T, [name])
    with Operators() as operators:
        made(latents[:, 0], latents[:, 1], (quats_xyzw[:, 0], quats_xyzw[:, 1]))
    assert operators.count <= most


# ---------------------------------------------------------------- any latents


@pytest.mark.parametrize(
    ("schema", "names", "kinds", "widths"),
    [
        (OWN_NAME, ["turn_6d", "turn_matrix"], ["number", "rotation"], [1, 9]),  # not the one derived from "turn"
        (THREEDIEBENCH, ["floor_hue", "rotation_6d"], ["angle", "rotation"], [2, 6]),
        (THREEDIEBENCH_T, ["pose_base", "light", "rotation"], ["rigid_motion", "direction", "rotation"], [7, 3, 4]),
        (THREEDIEBENCH, ["rotation_color"], ["rotation", "number", "number"], [4, 1, 1]),
        (ROBOT, ["grip", "azimuth", "elevation"], ["category", "angle", "number"], [4, 2, 1]),
    ],
)  # fmt: skip
def test_actions_of_several_latents_follow_each_other(
    schema: LatentSchema, names: list[str], kinds: list[str], widths: list[int]
) -> None:
    first, second = views_of(schema)
    actions = actions_of(schema, names)
    assert actions.describe()["kinds"] == kinds and actions.describe()["widths"] == widths
    found = actions(first, second)
    assert found.shape == (300, actions.width) and found.dtype == torch.float32
    alone = [actions_of(schema, [name])(first, second) for name in names]
    assert torch.equal(found, torch.cat(alone, dim=1))
    torch.testing.assert_close(actions.invert(found), actions(second, first), atol=1e-6, rtol=0)
    third = first.flip(0)
    composed = actions.compose(found, actions(second, third))
    torch.testing.assert_close(composed, actions(first, third), atol=2e-6, rtol=0)
    assert actions_of(schema, actions.describe()["names"]) == actions
    together = actions.between_all(torch.stack([first, second, third], dim=1))
    assert torch.equal(together[:, 0, 1], found) and torch.equal(together[:, 2, 0], actions(third, first))


@pytest.mark.parametrize(
    ("schema", "names", "message"),
    [
        (ROBOT, ["rotation"], "action 'rotation' is none of this data's: choose from azimuth_difference, azimuth, "),
        (ROBOT, ["rotation_color"], "action 'rotation_color' is none of this data's"),
        (THREEDIEBENCH, ["pose_base"], "action 'pose_base' is none of this data's: choose from rotation_color, rot"),
        (THREEDIEBENCH, [], "no action is named: choose from rotation_color, rotation_6d"),
        (ROBOT, ["grip", "grip"], "action 'grip' is named 2 times: name it once"),
        (THREEDIEBENCH, ["rotation", "rotation_color"], "action 'rotation' is named 2 times"),
        (None, ["rotation"], "actions rotation are made from latents, and none are known of these views: take views"),
    ],
)  # fmt: skip
def test_names_that_give_no_actions_are_told_in_a_sentence(
    schema: LatentSchema | None, names: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        actions_of(schema, names)


def test_views_without_the_latents_are_told_in_a_sentence() -> None:
    first, second = views_of(THREEDIEBENCH)
    with pytest.raises(ValueError, match="the views have 7 and 7 latents and their actions need 10: pass those of the"):
        actions_of(THREEDIEBENCH_T, ["translation"])(first, second)


# ---------------------------------------------------------------- what files say


def test_files_of_this_and_of_earlier_versions_say_what_a_predictor_is_told() -> None:
    for name, width in WIDTHS.items():
        told = ToldActions.of(name)
        schema = THREEDIEBENCH_T if name.startswith("pose") else THREEDIEBENCH
        assert told.width == width and told == ToldActions.of(told.describe()) == actions_of(schema, [name]).told
        assert told.quaternion_columns == (() if name in ("rotation_6d", "rotation_matrix") else (0, 1, 2, 3))
    assert ToldActions.of(AUGMENTATION, 5).width == 5
    assert actions_of(ROBOT, ["azimuth"]).told.quaternion_columns == ()
    assert actions_of(THREEDIEBENCH_T, ["light", "pose_base"]).told.quaternion_columns == (3, 4, 5, 6)


@pytest.mark.parametrize(
    "described",
    ["somersault", None, 3, {}, {"names": ["a"], "kinds": ["angle"]}, {"names": "a", "kinds": "b", "widths": "c"},
     {"names": ["a"], "kinds": ["angle"], "widths": [1, 2]}, {"names": [["a"]], "kinds": ["angle"], "widths": [2]},
     {"names": ["a"], "kinds": ["angle"], "widths": [True]}],
)  # fmt: skip
def test_what_no_version_wrote_is_told_in_a_sentence(described: Any) -> None:
    with pytest.raises(UserError, match=r"^actions? (are )?.*: (give|choose) "):
        ToldActions.of(described)


def test_a_predictor_is_only_told_what_it_was_trained_on() -> None:
    told = actions_of(ROBOT, ["grip", "azimuth"]).told
    assert actions_as_told(ROBOT, told) == actions_of(ROBOT, told.names)
    with_more = LatentSchema((Latent("azimuth", Angle(), 0), Latent("grip", Category(("on", "off", "ajar")), 1)))
    with pytest.raises(UserError, match=re.escape("[6, 2]} and a predictor is told {'names': ['grip', 'azimuth'], ")):
        actions_as_told(with_more, told)
    for schema, missing in ((THREEDIEBENCH, "grip, azimuth"), (None, "grip, azimuth"), (OWN_NAME, "grip, azimuth")):
        with pytest.raises(UserError, match=f"told actions grip azimuth and these views have no latents for {missing}"):
            actions_as_told(schema, told)
