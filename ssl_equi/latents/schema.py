"""The latents of a stored array by name: kinds, columns, and their JSON in a manifest."""

import dataclasses
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import FURTHEST_TRANSLATION, LATENT_RANGES
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.category import Category
from ssl_equi.latents.direction import Direction
from ssl_equi.latents.kind import LatentKind, check_choice
from ssl_equi.latents.motion import Frame
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.translation import Translation

KINDS: dict[str, type[LatentKind]] = {
    kind.kind: kind for kind in (Rotation, Angle, Direction, Translation, Number, Category)
}
RESERVED_NAMES = ("augmentation", "rotation_color")  # actions that are no latents
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Latent:
    """One known thing about a view: its name, and its kind from column `start` of the stored array on."""

    name: str
    kind: LatentKind
    start: int

    @property
    def columns(self) -> slice:
        """Of the stored array [..., L]."""
        return slice(self.start, self.start + self.kind.sizes.columns)


@dataclass(frozen=True)
class Motion:
    """A rigid motion by name: of which rotation and translation, in which frame; see `RigidMotion`."""

    name: str
    rotation: str
    translation: str
    frame: Frame


@dataclass(frozen=True)
class LatentSchema:
    """What the columns of a stored array [..., L] are, in order and without gaps.

    Raises DataError for names that can't be used or come twice, columns that overlap or leave a gap, and motions of
    latents that the schema doesn't have.
    """

    latents: tuple[Latent, ...]
    motions: tuple[Motion, ...] = ()

    def __post_init__(self) -> None:
        names = [latent.name for latent in self.latents] + [motion.name for motion in self.motions]
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED_NAMES:
                raise DataError(
                    f"latent name {name!r} is not usable: take lower-case letters, digits and '_', a letter first, and "
                    f"none of {', '.join(RESERVED_NAMES)}"
                )
            if names.count(name) > 1:
                raise DataError(f"latent name {name!r} comes {names.count(name)} times: give each latent its own")
        if not self.latents:
            raise DataError("the schema has no latents: name at least one")
        # A column that no latent describes would be a number nobody can interpret.
        expected = 0
        for latent in self.latents:
            if latent.start != expected:
                problem = "overlap the ones before" if latent.start < expected else "leave a gap"
                raise DataError(
                    f"latent {latent.name!r} begins at column {latent.start}, so that columns {problem}: let it begin "
                    f"at column {expected}, or change the order"
                )
            expected = latent.columns.stop
        for motion in self.motions:
            self._check_motion(motion)
        for name in self.column_names:
            if self.column_names.count(name) > 1:
                raise DataError(f"two latents have a column {name!r}: give one of them another name")

    def _check_motion(self, motion: Motion) -> None:
        check_choice(f"the frame of motion {motion.name!r}", motion.frame, Frame)
        rotation, translation = self.by_name.get(motion.rotation), self.by_name.get(motion.translation)
        if rotation is None or translation is None:
            missing = motion.rotation if rotation is None else motion.translation
            raise DataError(f"motion {motion.name!r} needs latent {missing!r}: name one of {', '.join(self.by_name)}")
        turns, moves = rotation.kind, translation.kind
        if not isinstance(turns, Rotation) or not isinstance(moves, Translation) or moves.sizes.columns != 3:
            raise DataError(
                f"motion {motion.name!r} is of a {turns.kind} and a {moves.kind}: name a rotation "
                "and a translation with three columns"
            )

    @cached_property
    def by_name(self) -> dict[str, Latent]:
        """The latents, without the motions."""
        return {latent.name: latent for latent in self.latents}

    @property
    def num_columns(self) -> int:
        """L, the width of the stored array."""
        return self.latents[-1].columns.stop

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Of the stored array, L words: the latent's name, with `_x` and so on where it has several columns."""
        return tuple(f"{latent.name}{suffix}" for latent in self.latents for suffix in latent.kind.column_suffixes)

    @cached_property
    def pose(self) -> Latent | None:
        """The rotation of an object, if one latent is a rotation; None if there is none, or several."""
        rotations = [latent for latent in self.latents if isinstance(latent.kind, Rotation)]
        return rotations[0] if len(rotations) == 1 else None

    @cached_property
    def scene_translation(self) -> float | None:
        """How far objects of `ssl_equi.scenes` move along each of their axes, 0 if they don't; None of other views."""
        place = self.by_name.get("translation")
        if place is None:
            return 0.0 if self == THREEDIEBENCH else None
        extent = place.kind.ranges[0][1] if isinstance(place.kind, Translation) else 0.0
        return extent if extent > 0 and self == scene_schema(extent) else None

    @property
    def is_of_scenes(self) -> bool:
        """Whether poses and lights are in the frame of `ssl_equi.scenes`, whose camera is known."""
        return self.scene_translation is not None

    def quats_xyzw(self, latents: Tensor) -> Tensor | None:
        """Pose quaternions [..., 4] float64 of latents [..., L], with w >= 0; None without a pose.

        A sign is turned where need be, so that relative rotations follow one rule everywhere.
        """
        if self.pose is None:
            return None
        assert isinstance(self.pose.kind, Rotation)
        return self.pose.kind.quats(latents[..., self.pose.columns])

    def sample(self, generator: np.random.Generator, count: int) -> Tensor:
        """Latents [count, L] float64, each kind uniform in its range."""
        # All columns in one draw: for 3DIEBench the numbers are those of `scenes.sampling.sample_latents` to the bit.
        uniform = torch.from_numpy(generator.random((count, self.num_columns)))
        return torch.cat([latent.kind.from_uniform(uniform[:, latent.columns]) for latent in self.latents], dim=1)

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        latents = [
            {
                "name": latent.name,
                "kind": latent.kind.kind,
                "columns": [latent.columns.start, latent.columns.stop],
                # Defaults are left out, so that a field that comes later changes no manifest.
                **{name: value for name, value in vars(latent.kind).items() if value != _defaults(latent.kind)[name]},
            }
            for latent in self.latents
        ]
        motions = [dataclasses.asdict(motion) for motion in self.motions]
        return {"latents": latents} | ({"motions": motions} if motions else {})

    @classmethod
    def from_json(cls, content: Any) -> "LatentSchema":
        """The schema of a manifest's JSON.

        Raises DataError for what `as_json` doesn't write, naming the latent.
        """
        if not isinstance(content, dict) or not {"latents"} <= content.keys() <= {"latents", "motions"}:
            raise DataError("the schema of latents is no object with latents and motions: rebuild this data set")
        lists = content["latents"], content.get("motions", [])
        if not all(
            isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) for entries in lists
        ):
            raise DataError("the latents or motions of the schema are no list of objects: rebuild this data set")
        for motion in lists[1]:
            if motion.keys() != _defaults(Motion).keys() or not all(isinstance(word, str) for word in motion.values()):
                raise DataError(f"motion {motion!r} needs exactly name, rotation, translation and frame, all words")
        return cls(tuple(_latent_of(entry) for entry in lists[0]), tuple(Motion(**motion) for motion in lists[1]))


def _defaults(dataclass_: Any) -> dict[str, Any]:
    """Fields of a dataclass or of one of its instances, with their defaults; MISSING for those without."""
    return {field.name: field.default for field in dataclasses.fields(dataclass_)}


def _latent_of(entry: dict[str, Any]) -> Latent:
    """A latent of its JSON; its name and where it begins are left to the schema."""
    options = dict(entry)
    name, kind_name, columns = (options.pop(key, None) for key in ("name", "kind", "columns"))
    if kind_name not in list(KINDS):
        raise DataError(f"latent {name!r} has kind {kind_name!r}: choose one of {', '.join(KINDS)}")
    defaults = _defaults(KINDS[kind_name])
    needed = {field for field, default in defaults.items() if default is dataclasses.MISSING}
    if not needed <= options.keys() <= defaults.keys():
        raise DataError(
            f"latent {name!r} has fields {', '.join(sorted(options)) or 'none'}: the kind {kind_name} has "
            f"{', '.join(defaults)}"
        )
    try:
        kind = KINDS[kind_name](**options)
    except DataError as error:
        raise DataError(f"latent {name!r}: {error}") from error
    width = kind.sizes.columns
    is_pair = isinstance(columns, list) and [type(column) for column in columns] == [int, int]
    if not is_pair or columns[1] - columns[0] != width:
        raise DataError(f"latent {name!r} has columns {columns!r} and is {width} wide: give [start, start + {width}]")
    return Latent(name, kind, columns[0])


def _bounds(*names: str) -> tuple[tuple[float, float], ...]:
    return tuple(LATENT_RANGES[name] for name in names)


# What manifests without a schema hold. Hues are angles on the colour circle; SIE's plain differences of them are the
# actions rotation_color.
THREEDIEBENCH = LatentSchema(
    (
        Latent("rotation", Rotation(ranges=_bounds("rotation_x", "rotation_y", "rotation_z")), 0),
        Latent("floor_hue", Angle(unit="turn"), 3),
        Latent("light", Direction(ranges=_bounds("light_theta", "light_phi")), 4),
        Latent("light_hue", Angle(unit="turn"), 6),
    )
)


def scene_schema(translation: float) -> LatentSchema:
    """Of rendered views whose objects move by up to `translation` along each of their axes, 0 where they don't."""
    if not translation:
        return THREEDIEBENCH
    moves = Latent("translation", Translation(((-translation, translation),) * 3), 7)
    motions = tuple(Motion(f"pose_{frame}", "rotation", "translation", frame) for frame in get_args(Frame))
    return LatentSchema((*THREEDIEBENCH.latents, moves), motions)


THREEDIEBENCH_T = scene_schema(FURTHEST_TRANSLATION)
SCHEMA_OF_WIDTH: dict[int, LatentSchema] = {schema.num_columns: schema for schema in (THREEDIEBENCH, THREEDIEBENCH_T)}
