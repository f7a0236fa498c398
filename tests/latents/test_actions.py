"""Actions of named latents: today's columns to the bit, concatenation, group laws and names that don't exist."""

import re

import numpy as np
import pytest
import torch

from ssl_equi.errors import UserError
from ssl_equi.geometry.actions import ACTION_SIZES, ActionKind, actions_between_all_views
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.latents.actions import actions_of
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


def views_of(schema: LatentSchema, rotation: str = "euler_box") -> tuple[torch.Tensor, torch.Tensor]:
    """Latents float64 [300, L] of pairs of views."""
    generator = np.random.default_rng(0)
    if schema in (ROBOT, OWN_NAME):
        return schema.sample(generator, 300), schema.sample(generator, 300)
    both = sample_latents(600, generator, rotation, translation=schema is THREEDIEBENCH_T)  # type: ignore[arg-type]
    return torch.from_numpy(both[:300]), torch.from_numpy(both[300:])


@pytest.mark.parametrize("rotation", ["euler_box", "uniform"])
@pytest.mark.parametrize("name", ACTION_SIZES)
def test_actions_of_3diebench_are_those_of_quaternions_that_splits_store_to_the_bit(
    name: ActionKind, rotation: str
) -> None:
    schema = THREEDIEBENCH_T if name.startswith("pose") else THREEDIEBENCH
    exact = torch.stack(views_of(schema, rotation), dim=1)  # [300, 2, L] float64
    stored, quats_xyzw = exact.float(), quat_xyzw_from_latents(exact).float()
    expected = actions_between_all_views(quats_xyzw, stored, name)[:, 0, 1]
    actions = actions_of(schema, [name])
    assert actions.width == ACTION_SIZES[name] == sum(actions.describe()["widths"])
    found = actions(stored[:, 0], stored[:, 1], quats_xyzw=(quats_xyzw[:, 0], quats_xyzw[:, 1]))
    assert torch.equal(found, expected)
    assert torch.equal(actions(exact[:, 0], exact[:, 1]), expected)
    torch.testing.assert_close(actions(stored[:, 0], stored[:, 1]), expected, atol=1e-6, rtol=0)


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


@pytest.mark.parametrize(
    ("schema", "names", "message"),
    [
        (ROBOT, ["rotation"], "action 'rotation' is none of this data's: choose from azimuth_difference, azimuth, "),
        (ROBOT, ["rotation_color"], "action 'rotation_color' is none of this data's"),
        (THREEDIEBENCH, ["pose_base"], "action 'pose_base' is none of this data's: choose from rotation_color, rot"),
        (THREEDIEBENCH, [], "no action is named: choose from rotation_color, rotation_6d"),
        (ROBOT, ["grip", "grip"], "action 'grip' is named 2 times: name it once"),
        (THREEDIEBENCH, ["rotation", "rotation_color"], "action 'rotation' is named 2 times"),
    ],
)  # fmt: skip
def test_names_that_give_no_actions_are_told_in_a_sentence(
    schema: LatentSchema, names: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        actions_of(schema, names)


def test_views_without_the_latents_are_told_in_a_sentence() -> None:
    first, second = views_of(THREEDIEBENCH)
    with pytest.raises(ValueError, match="the views have 7 and 7 latents and their actions need 10: pass those of the"):
        actions_of(THREEDIEBENCH_T, ["translation"])(first, second)
