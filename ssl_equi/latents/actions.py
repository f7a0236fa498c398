"""From names of latents to actions: what a predictor is told of the change between two views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_equi.errors import UserError
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.kind import ActionSpace
from ssl_equi.latents.motion import RigidMotion
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation, Rotation6d, RotationMatrix
from ssl_equi.latents.schema import LatentSchema

# Names of several at once; the hues of SIE's actions are plain differences, not wrapped around the colour circle.
SEVERAL = {"rotation_color": ("rotation", "floor_hue_difference", "light_hue_difference")}


@dataclass(frozen=True)
class ActionPart:
    """One named action: its space, and the columns of its values in the stored array, a rotation's first."""

    name: str
    space: ActionSpace
    columns: tuple[slice, ...]


@dataclass(frozen=True)
class LatentActions:
    """The concatenated actions of several parts; called with two views' latents."""

    parts: tuple[ActionPart, ...]

    @property
    def width(self) -> int:
        """A, the number of columns."""
        return sum(part.space.sizes.action for part in self.parts)

    def describe(self) -> dict[str, list[Any]]:
        """What a predictor's configuration stores; `actions_of` makes the same actions of its names."""
        return {
            "names": [part.name for part in self.parts],
            "kinds": [part.space.kind for part in self.parts],
            "widths": [part.space.sizes.action for part in self.parts],
        }

    def __call__(self, first: Tensor, second: Tensor, quats_xyzw: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Actions [B, A] that take the first views to the second.

        Args:
            first: [B, L], latents as stored.
            second: [B, L].
            quats_xyzw: [B, 4] with w >= 0 of both, in place of the rotation's columns: splits store them from float64
                latents, which float32 latents no longer are. For schemas with one rotation.
        """
        needed = max(columns.stop for part in self.parts for columns in part.columns)
        if min(first.shape[-1], second.shape[-1]) < needed:  # slices beyond the end would be empty, and no error
            widths = f"{first.shape[-1]} and {second.shape[-1]}"
            raise ValueError(
                f"the views have {widths} latents and their actions need {needed}: pass those of the schema"
            )
        actions = []
        for part in self.parts:
            values = [[latents[..., columns] for columns in part.columns] for latents in (first, second)]
            space = part.space
            if quats_xyzw is not None and isinstance(space, Rotation | RigidMotion):
                space = space.given_as_quats()
                values = [[quats, *others[1:]] for quats, others in zip(quats_xyzw, values)]
            actions.append(space.relative(*(torch.cat(columns, dim=-1) for columns in values)))
        return torch.cat(actions, dim=-1)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The actions that do what `first` does, then what `second` does. All are [B, A]."""
        pairs = zip(self.parts, self._split(first), self._split(second))
        return torch.cat([part.space.compose(one, other) for part, one, other in pairs], dim=-1)

    def invert(self, actions: Tensor) -> Tensor:
        """The actions back, [B, A]."""
        return torch.cat([part.space.invert(own) for part, own in zip(self.parts, self._split(actions))], dim=-1)

    def _split(self, actions: Tensor) -> tuple[Tensor, ...]:
        return actions.split([part.space.sizes.action for part in self.parts], dim=-1)


def actions_of(schema: LatentSchema, names: Sequence[str]) -> LatentActions:
    """The actions of latents and motions of a schema, in the order of the names.

    Beside the schema's own names there are NAME_6d and NAME_matrix of a rotation, which have no sign, NAME_difference
    of an angle, which is not wrapped, and `rotation_color`, SIE's rotation and differences of both hues.

    Raises UserError for no names, unknown names and names that come twice.
    """
    known = {part.name: part for part in _parts(schema)}
    several = {name: parts for name, parts in SEVERAL.items() if all(part in known for part in parts)}
    chosen: list[str] = []
    for name in names:
        if name not in known and name not in several:
            raise UserError(f"action {name!r} is none of this data's: choose from {', '.join([*several, *known])}")
        chosen += several.get(name, (name,))
    if not chosen:
        raise UserError(f"no action is named: choose from {', '.join([*several, *known])}")
    for name in chosen:
        if chosen.count(name) > 1:
            raise UserError(f"action {name!r} is named {chosen.count(name)} times: name it once")
    return LatentActions(tuple(known[name] for name in chosen))


def _parts(schema: LatentSchema) -> Iterator[ActionPart]:
    """All actions that a schema offers; what it names itself comes last and so wins over derived names."""
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
