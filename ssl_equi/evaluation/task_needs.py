"""What tasks need of the schema of latents: by it they are chosen, and skipped where it is missing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.skipping import TaskSkipped
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.direction import Direction
from ssl_equi.latents.schema import Latent, LatentSchema


@dataclass(frozen=True)
class Need:
    """The latents that a task asks for.

    Attributes:
        find: those of a schema; none where it doesn't have all of them.
        name: what they are, for a sentence.
        cure: which data have them.
    """

    find: Callable[[LatentSchema], tuple[Latent, ...]]
    name: str
    cure: str

    def latents(self, schema: LatentSchema | None) -> tuple[Latent, ...]:
        """Those of a schema; none where it doesn't have all of them, or nothing is known about the views."""
        return () if schema is None else self.find(schema)

    def require(self, *caches: FeatureCache) -> tuple[Latent, ...]:
        """Those of the last cache. Raises TaskSkipped if one of the caches has none."""
        found: tuple[Latent, ...] = ()
        for cache in caches:
            found = self.latents(cache.schema)
            if not found:
                known = "none" if cache.schema is None else ", ".join(cache.schema.by_name)
                raise TaskSkipped(f"the views have no known {self.name} (latents: {known}): {self.cure}")
        return found


def _pose(schema: LatentSchema) -> tuple[Latent, ...]:
    return () if schema.pose is None else (schema.pose,)


def _translation(schema: LatentSchema) -> tuple[Latent, ...]:
    """Of a rigid motion, which says that the translation is in the object's own frame."""
    of_pose = [motion for motion in schema.motions if schema.pose is not None and motion.rotation == schema.pose.name]
    return (schema.by_name[of_pose[0].translation],) if of_pose else ()


def _hues(schema: LatentSchema) -> tuple[Latent, ...]:
    found = [schema.by_name.get(name) for name in ("floor_hue", "light_hue")]
    hues = tuple(hue for hue in found if hue is not None and isinstance(hue.kind, Angle))
    whole_circles = all(isinstance(hue.kind, Angle) and math.isclose(hue.kind.full_period, 1) for hue in hues)
    return hues if len(hues) == len(found) and whole_circles else ()


def _light(schema: LatentSchema) -> tuple[Latent, ...]:
    light = schema.by_name.get("light")
    return (light,) if light is not None and isinstance(light.kind, Direction) else ()


POSE = Need(_pose, "rotations", "use views whose latents include one rotation, such as those of 3diebench-p")
TRANSLATION = Need(
    _translation,
    "translations in the object's frame",
    "use a data set whose objects move (3diebench-t or 3diebench-pt)",
)
HUES = Need(_hues, "floor_hue and light_hue in turns", "use a data set of rendered views with latents")
LIGHT = Need(_light, "direction 'light'", "use a data set of rendered views with latents")
