"""Schemas of latents: columns, names, JSON, sampling, and those of 3DIEBench."""

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION, light_direction
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.direction import Direction
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.schema import (
    SCHEMA_OF_WIDTH,
    THREEDIEBENCH,
    THREEDIEBENCH_T,
    Latent,
    LatentSchema,
    Motion,
    scene_schema,
)
from ssl_equi.latents.translation import Translation
from ssl_equi.scenes.sampling import sample_latents

MIXED_JSON = {
    "latents": [
        {"name": "azimuth", "kind": "angle", "columns": [0, 1]},
        {"name": "elevation", "kind": "number", "columns": [1, 2], "range": [0, 90], "unit": "deg"},
        {"name": "pose", "kind": "rotation", "columns": [2, 11], "storage": "matrix"},
        {"name": "wind", "kind": "direction", "columns": [11, 14], "storage": "xyz"},
        {"name": "place", "kind": "translation", "columns": [14, 17], "ranges": [[0, 1], [0, 2], [0, 3]]},
        {"name": "material", "kind": "category", "columns": [17, 18], "names": ["wood", "steel", "glass"]},
        {"name": "valve", "kind": "angle", "columns": [18, 19], "unit": "rad", "period": 3, "range": [0.5, 2]},
    ],
    "motions": [{"name": "arm", "rotation": "pose", "translation": "place", "frame": "object"}],
}
MIXED = LatentSchema.from_json(MIXED_JSON)


@pytest.mark.parametrize("schema", [MIXED, THREEDIEBENCH, THREEDIEBENCH_T], ids=["mixed", "3diebench", "3diebench-t"])
def test_schemas_go_through_json(schema: LatentSchema) -> None:
    text = json.dumps(schema.as_json(), allow_nan=False)
    again = LatentSchema.from_json(json.loads(text))
    assert again == schema and hash(again) == hash(schema)
    assert json.dumps(again.as_json()) == text


def test_json_tells_of_kinds_what_is_not_a_default() -> None:
    assert MIXED.latents[4] == Latent("place", Translation(((0, 1), (0, 2), (0, 3))), 14)
    assert MIXED.latents[6] == Latent("valve", Angle("rad", period=3, range=(0.5, 2)), 18)
    assert MIXED.motions == (Motion("arm", "pose", "place", "object"),)
    assert json.loads(json.dumps(MIXED.as_json())) == MIXED_JSON


def test_schemas_of_3diebench_have_its_columns() -> None:
    assert SCHEMA_OF_WIDTH == {LATENT_SIZE: THREEDIEBENCH, LATENT_SIZE_WITH_TRANSLATION: THREEDIEBENCH_T}
    assert {name: LATENT_NAMES[latent.columns] for name, latent in THREEDIEBENCH_T.by_name.items()} == {
        "rotation": ("rotation_x", "rotation_y", "rotation_z"),
        "floor_hue": ("floor_hue",),
        "light": ("light_theta", "light_phi"),
        "light_hue": ("light_hue",),
        "translation": ("translation_x", "translation_y", "translation_z"),
    }
    assert [motion.name for motion in THREEDIEBENCH_T.motions] == ["pose_base", "pose_object"]


def test_rendered_views_are_known_by_their_latents_however_far_objects_move() -> None:
    extents = [scene_schema(extent).scene_translation for extent in (0.0, 0.2, 0.5)]
    assert extents == [0, 0.2, 0.5] and scene_schema(0.5) == THREEDIEBENCH_T
    assert LatentSchema.from_json(scene_schema(0.2).as_json()) == scene_schema(0.2)
    sideways = Latent("translation", Translation(((-0.2, 0.2), (-0.1, 0.1), (-0.2, 0.2))), 7)
    others = MIXED, LatentSchema(THREEDIEBENCH.latents[:1]), LatentSchema((*THREEDIEBENCH.latents, sideways))
    assert [other.scene_translation for other in others] == [None] * 3
    assert [schema.is_of_scenes for schema in (THREEDIEBENCH, scene_schema(0.2), MIXED)] == [True, True, False]


@pytest.mark.parametrize("schema", [THREEDIEBENCH, THREEDIEBENCH_T])
def test_samples_of_3diebench_are_those_of_its_scenes_to_the_bit(schema: LatentSchema) -> None:
    found = schema.sample(np.random.default_rng(3), 50)
    assert np.array_equal(found, sample_latents(50, np.random.default_rng(3), translation=schema.scene_translation))
    assert MIXED.sample(np.random.default_rng(0), 30).shape == (30, MIXED.num_columns) == (30, 19)


def test_directions_of_the_light_are_those_of_the_scenes_to_the_bit() -> None:
    def light(latents: Tensor) -> Tensor:
        return light_direction(latents[:, 4], latents[:, 5])

    first, second = THREEDIEBENCH.sample(np.random.default_rng(0), 200).float().chunk(2)
    latent = THREEDIEBENCH.by_name["light"]
    values = first[:, latent.columns], second[:, latent.columns]
    assert torch.equal(latent.kind.encode(values[0]), light(first))
    assert torch.equal(latent.kind.relative(*values), light(second) - light(first))


TURN, SHIFT = Latent("turn", Rotation(), 0), Latent("shift", Translation(((0, 1),) * 3), 3)


@pytest.mark.parametrize(
    ("latents", "motions", "message"),
    [
        ((), (), "the schema has no latents: name at least one"),
        ((Latent("Azimuth", Angle(), 0),), (), "latent name 'Azimuth' is not usable: take lower-case letters"),
        ((Latent("augmentation", Angle(), 0),), (), "latent name 'augmentation' is not usable"),
        ((Latent("a", Angle(), 0), Latent("a", Angle(), 1)), (), "latent name 'a' comes 2 times: give each latent"),
        ((Latent("a", Angle(), 1),), (), "at column 1, so that columns leave a gap: let it begin at column 0"),
        ((TURN, Latent("a", Angle(), 2)), (), "latent 'a' begins at column 2, so that columns overlap the ones before"),
        ((TURN, SHIFT), (Motion("turn", "turn", "shift", "base"),), "latent name 'turn' comes 2 times"),
        ((TURN, SHIFT), (Motion("m", "turn", "shift", "world"),), "the frame of motion 'm' is 'world': choose one"),
        ((TURN, SHIFT), (Motion("m", "turn", "place", "base"),), "motion 'm' needs latent 'place': name one of turn"),
        ((TURN, SHIFT), (Motion("m", "shift", "turn", "base"),), "motion 'm' is of a translation and a rotation: n"),
        ((TURN, Latent("wind", Direction("xyz"), 3)), (Motion("m", "turn", "wind", "base"),), "of a rotation and a "),
        ((TURN, Latent("flat", Translation(((0, 1),)), 3)), (Motion("m", "turn", "flat", "base"),), "three columns"),
    ],
)  # fmt: skip
def test_what_a_schema_cannot_be_is_told_in_a_sentence(latents: Any, motions: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        LatentSchema(latents, motions)


def changed(position: int, **fields: Any) -> dict[str, Any]:
    """The JSON above with fields of one latent changed; ... takes one away."""
    content = copy.deepcopy(MIXED_JSON)
    entry = content["latents"][position] | fields
    content["latents"][position] = {name: value for name, value in entry.items() if value is not ...}
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the schema of latents is no object with latents and motions: rebuild this data set"),
        ({"latents": [], "more": 1}, "is no object with latents and motions"),
        ({"latents": [1]}, "are no list of objects"),
        ({"latents": MIXED_JSON["latents"], "motions": [{"name": "arm"}]}, "needs exactly name, rotation, translation"),
        (MIXED_JSON | {"motions": [MIXED_JSON["motions"][0] | {"rotation": []}]}, "translation and frame, all words"),
        (changed(0, kind="angel"), "latent 'azimuth' has kind 'angel': choose one of rotation, angle, direction,"),
        (changed(0, kind=[]), "latent 'azimuth' has kind []"),
        (changed(0, name=3), "latent name 3 is not usable"),
        (changed(0, unit="degree"), "latent 'azimuth': the unit of an angle is 'degree': choose one of deg, rad, turn"),
        (changed(0, range="wide"), "latent 'azimuth': the range of an angle holds 'wide'"),
        (changed(0, colour=1), "latent 'azimuth' has fields colour: the kind angle has unit, period, range"),
        (changed(1, range=...), "latent 'elevation' has fields unit: the kind number has range, unit"),
        (changed(2, code="6d"), "latent 'pose' has fields code, storage: the kind rotation has storage, unit,"),
        (changed(2, storage=[]), "latent 'pose': the storage of a rotation is []"),
        (changed(3, columns=[11, 13]), "latent 'wind' has columns [11, 13] and is 3 wide: give [start, start + 3]"),
        (changed(3, columns=[11.0, 14]), "latent 'wind' has columns [11.0, 14]"),
        (changed(3, columns=[10, 13]), "latent 'wind' begins at column 10, so that columns overlap"),
        (changed(5, names=["wood", 1]), "latent 'material': the names of a category are ['wood', 1]"),
    ],
)  # fmt: skip
def test_a_malformed_manifest_is_told_in_a_sentence(content: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        LatentSchema.from_json(content)
