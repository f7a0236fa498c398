"""From names of latents to actions: what a predictor is told of the change between two views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ssl_equi.errors import UserError
from ssl_equi.geometry.poses import ROTATION_ACTION_SIZE, ObjectPose
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.kind import ActionSpace
from ssl_equi.latents.motion import RigidMotion
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation, Rotation6d, RotationMatrix
from ssl_equi.latents.schema import THREEDIEBENCH_T, LatentSchema

AUGMENTATION = "augmentation"  # the name of actions between augmented views, which no latents are about
# Names of several at once; the hues of SIE's actions are plain differences, not wrapped around the colour circle.
SEVERAL = {"rotation_color": ("rotation", "floor_hue_difference", "light_hue_difference")}


@dataclass(frozen=True)
class ToldActions:
    """What a predictor is told, as its files state it: name, kind and number of columns of each part."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def width(self) -> int:
        """A, the number of columns."""
        return sum(self.widths)

    @property
    def quaternion_columns(self) -> tuple[int, ...]:
        """The columns of an action that change sign with the quaternions q -> -q, which are the same rotations."""
        starts = np.cumsum((0, *self.widths)).tolist()
        return tuple(
            start + column
            for start, kind, width in zip(starts, self.kinds, self.widths)
            if _begins_with_quaternion(kind, width)
            for column in range(ROTATION_ACTION_SIZE)
        )

    def describe(self) -> dict[str, list[Any]]:
        """As JSON."""
        return {"names": list(self.names), "kinds": list(self.kinds), "widths": list(self.widths)}

    @classmethod
    def of(cls, described: Any, augmentation_width: int = 0) -> Self:
        """What `describe` described, or a word of earlier versions, which is a name of 3DIEBench-T's actions.

        Raises UserError for anything else.

        Args:
            augmentation_width: A of actions between augmented views, which the word doesn't tell.
        """
        if described == AUGMENTATION:
            return cls((AUGMENTATION,), (AUGMENTATION,), (augmentation_width,))
        if isinstance(described, str):
            return cls.of(actions_of(THREEDIEBENCH_T, (described,)).describe())
        keys = ("names", "kinds", "widths")
        lists: list[Any] = [described.get(key) for key in keys] if isinstance(described, dict) else []
        if not lists or not all(isinstance(entries, list) for entries in lists) or len(set(map(len, lists))) != 1:
            raise UserError(f"actions are {described!r:.80}: give equally long lists of {', '.join(keys)}")
        names, kinds, widths = map(tuple, lists)
        if not all(isinstance(word, str) for word in names + kinds) or not all(type(width) is int for width in widths):
            raise UserError(f"actions are {described!r:.80}: give names and kinds that are words, and whole widths")
        return cls(names, kinds, widths)

    def __str__(self) -> str:
        return " ".join(self.names)


@dataclass(frozen=True)
class ActionPart:
    """One named action: its space, and the columns of its values in the stored array, a rotation's first."""

    name: str
    space: ActionSpace
    columns: tuple[slice, ...]

    @property
    def has_sign(self) -> bool:
        """Whether its first columns are a quaternion: q and -q are the same rotation."""
        return _begins_with_quaternion(self.space.kind, self.space.sizes.action)

    def __call__(self, first: Tensor, second: Tensor, quats_xyzw: tuple[Tensor, Tensor] | None) -> Tensor:
        """See `LatentActions`."""
        space = self.space
        if quats_xyzw is not None and isinstance(space, Rotation):
            return space.between(*quats_xyzw)
        values = [[latents[..., columns] for columns in self.columns] for latents in (first, second)]
        if quats_xyzw is not None and isinstance(space, RigidMotion):
            return space.between(*(ObjectPose(quats, own[1].float()) for quats, own in zip(quats_xyzw, values)))
        return space.relative(*(own[0] if len(own) == 1 else torch.cat(own, dim=-1) for own in values))


@dataclass(frozen=True)
class LatentActions:
    """The concatenated actions of several parts; called with two views' latents."""

    parts: tuple[ActionPart, ...]

    @property
    def told(self) -> ToldActions:
        """What a predictor's files state of them; `actions_of` makes the same actions of its names."""
        names, spaces = [part.name for part in self.parts], [part.space for part in self.parts]
        return ToldActions(
            tuple(names), tuple(space.kind for space in spaces), tuple(space.sizes.action for space in spaces)
        )

    @property
    def width(self) -> int:
        """A, the number of columns."""
        return self.told.width

    def describe(self) -> dict[str, list[Any]]:
        """As JSON, see `ToldActions`."""
        return self.told.describe()

    def __call__(self, first: Tensor, second: Tensor, quats_xyzw: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Actions [..., A] that take the first views to the second.

        Args:
            first: [..., L], latents as stored.
            second: [..., L].
            quats_xyzw: [..., 4] with w >= 0 of both, in place of the rotation's columns: splits store them from float64
                latents, which float32 latents no longer are. For schemas with one rotation.
        """
        needed = max(columns.stop for part in self.parts for columns in part.columns)
        if min(first.shape[-1], second.shape[-1]) < needed:  # slices beyond the end would be empty, and no error
            widths = f"{first.shape[-1]} and {second.shape[-1]}"
            raise ValueError(
                f"the views have {widths} latents and their actions need {needed}: pass those of the schema"
            )
        actions = [part(first, second, quats_xyzw) for part in self.parts]
        return actions[0] if len(actions) == 1 else torch.cat(actions, dim=-1)

    def between_all(self, latents: Tensor, quats_xyzw: Tensor | None = None) -> Tensor:
        """Actions between any two views of each object, [N, V, V, A]: entry (i, j) takes view i to view j.

        Args:
            latents: [N, V, L].
            quats_xyzw: [N, V, 4], see `__call__`.
        """
        count, views = latents.shape[:2]

        def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
            """[N * V * V, K] each; pair (i, j) of an object is its number i * V + j."""
            shape = (count, views, views, values.shape[-1])
            first, second = values.unsqueeze(2).expand(shape), values.unsqueeze(1).expand(shape)
            return first.flatten(0, 2), second.flatten(0, 2)

        quats = None if quats_xyzw is None else pairs(quats_xyzw)
        return self(*pairs(latents), quats).unflatten(0, (count, views, views))

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The actions that do what `first` does, then what `second` does. All are [..., A]."""
        pairs = zip(self.parts, self._split(first), self._split(second))
        return torch.cat([part.space.compose(one, other) for part, one, other in pairs], dim=-1)

    def invert(self, actions: Tensor) -> Tensor:
        """The actions back, [..., A]."""
        return torch.cat([part.space.invert(own) for part, own in zip(self.parts, self._split(actions))], dim=-1)

    def _split(self, actions: Tensor) -> tuple[Tensor, ...]:
        return actions.split(self.told.widths, dim=-1)


def actions_of(schema: LatentSchema | None, names: Sequence[str]) -> LatentActions:
    """The actions of latents and motions of a schema, in the order of the names.

    Beside the schema's own names there are NAME_6d and NAME_matrix of a rotation, which have no sign, NAME_difference
    of an angle, which is not wrapped, and `rotation_color`, SIE's rotation and differences of both hues.

    Raises UserError without a schema, and for no names, unknown names and names that come twice.
    """
    if schema is None:
        raise UserError(
            f"actions {' '.join(names)} are made from latents, and none are known of these views: take views that "
            "have them, such as those of 3diebench-p"
        )
    known = {part.name: part for part in offered_actions(schema)}
    offered = ", ".join(offered_names(schema))
    chosen: list[str] = []
    for name in names:
        if name not in offered_names(schema):
            raise UserError(f"action {name!r} is none of this data's: choose from {offered}")
        chosen += SEVERAL.get(name, (name,))
    if not chosen:
        raise UserError(f"no action is named: choose from {offered}")
    for name in chosen:
        if chosen.count(name) > 1:
            raise UserError(f"action {name!r} is named {chosen.count(name)} times: name it once")
    return LatentActions(tuple(known[name] for name in chosen))


def offered_actions(schema: LatentSchema) -> tuple[ActionPart, ...]:
    """Every single action of a schema's latents and motions."""
    # What the schema names itself comes last, and so replaces a derived action of the same name.
    return tuple({part.name: part for part in _parts(schema)}.values())


def offered_names(schema: LatentSchema) -> tuple[str, ...]:
    """All names that `actions_of` takes."""
    single = [part.name for part in offered_actions(schema)]
    return (*(name for name, parts in SEVERAL.items() if set(parts) <= set(single)), *single)


def actions_as_told(schema: LatentSchema | None, told: ToldActions) -> LatentActions:
    """What a trained predictor is told, between views with this schema; UserError if these have no such actions."""
    cure = "take data with the latents that it was trained on"
    missing = [name for name in told.names if schema is None or name not in offered_names(schema)]
    if missing:
        raise UserError(
            f"a predictor is told actions {told} and these views have no latents for {', '.join(missing)}: {cure}"
        )
    actions = actions_of(schema, told.names)
    if actions.told != told:
        raise UserError(
            f"actions {told} of these views are {actions.describe()} and a predictor is told {told.describe()}: {cure}"
        )
    return actions


def warning_of_signs(
    split: str, schema: LatentSchema | None, latents: np.ndarray, names: Sequence[str] | None = None
) -> str | None:
    """A sentence if poses of a split turn so far that quaternions of equal rotations come with both signs.

    Args:
        schema: of the latents.
        latents: [N, V, L].
        names: of the actions that are made; None for the quaternion of the object's pose.
    """
    if schema is None or (names is None and schema.pose is None):
        return None
    if names is None:
        assert schema.pose is not None
        names = (schema.pose.name,)
    told = [part for part in actions_of(schema, names).parts if part.has_sign]
    for latent in schema.latents:
        if not isinstance(latent.kind, Rotation) or not any(latent.columns == part.columns[0] for part in told):
            continue
        values = torch.from_numpy(np.array(latents[..., latent.columns]))
        reach = latent.kind.reach(values)
        if reach is not None:
            furthest, start = reach
            turned = f"views of split {split!r} turn by up to {furthest}"
            if latent.kind.storage == "euler_xyz" and latent.kind.stays_in_box(values):
                return (
                    f"{turned}, yet all show poses within 90 degrees under other angles, (x, y, z) and (x + 180, "
                    "180 - y, z + 180) being one rotation: no pose is new, so a drop must have another cause"
                )
            tasks = ", and the tasks relative_rotation_6d or relative_rotation_matrix"
            return (
                f"{turned}: {start}, quaternions of equal relative rotations come with both signs, so prefer actions "
                f"{latent.name}_6d or {latent.name}_matrix"
                f"{tasks if latent.name == 'rotation' else ''}"
            )
    return None


def _begins_with_quaternion(kind: str, width: int) -> bool:
    return kind == RigidMotion.kind or (kind == Rotation.kind and width == ROTATION_ACTION_SIZE)


def _parts(schema: LatentSchema) -> Iterator[ActionPart]:
    for latent in schema.latents:
        kind, columns = latent.kind, (latent.columns,)
        if isinstance(kind, Rotation):
            yield ActionPart(f"{latent.name}_6d", Rotation6d(**vars(kind)), columns)
            yield ActionPart(f"{latent.name}_matrix", RotationMatrix(**vars(kind)), columns)
        elif isinstance(kind, Angle):
            yield ActionPart(f"{latent.name}_difference", Number((0.0, kind.full_period), kind.unit), columns)
    for latent in schema.latents:
        yield ActionPart(latent.name, latent.kind, (latent.columns,))
    for motion in schema.motions:
        rotation, translation = schema.by_name[motion.rotation], schema.by_name[motion.translation]
        assert isinstance(rotation.kind, Rotation), "the schema has checked its motions"
        space = RigidMotion(rotation.kind, motion.frame)
        yield ActionPart(motion.name, space, (rotation.columns, translation.columns))
