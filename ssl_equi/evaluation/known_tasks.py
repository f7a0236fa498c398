"""The questions asked of frozen features, by name: which class, rotation, translation, colour, light; how invariant.

Which of them data can be asked follows from the schema of their latents. A latent that none of these tasks is about has
tasks of its own by its kind (`ssl_equi.evaluation.tasks.latents`).

Each task trains its head on one split's features and measures it on another's. A result carries its metrics, the same
metrics of the best answer that looks at no image, and what the figures of the report need. A task that can't be asked
of the data or the features at hand raises TaskSkipped with the reason.
"""

from collections.abc import Sequence

from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.protocol import CORE_TASKS
from ssl_equi.evaluation.task_needs import HUES, LIGHT, POSE, TRANSLATION, Need
from ssl_equi.evaluation.task_results import Task, TaskResult
from ssl_equi.evaluation.tasks.appearance import colour, colour_circular, light, relative_light
from ssl_equi.evaluation.tasks.classification import (
    classification,
    knn,
    knn_weighted,
    linear,
    low_shot_1pct,
    low_shot_10pct,
)
from ssl_equi.evaluation.tasks.feature_action import feature_action
from ssl_equi.evaluation.tasks.feature_space import collapse, invariance
from ssl_equi.evaluation.tasks.latents import tasks_of_latent
from ssl_equi.evaluation.tasks.pose import (
    MATRIX,
    QUATERNION,
    SIX_NUMBERS,
    absolute_rotation_task_of,
    displacement_in_base_frame,
    displacement_in_object_frame,
    relative_rotation_task_of,
    translation_base_task,
    translation_object_task,
)
from ssl_equi.latents.schema import LatentSchema

__all__ = [
    "CORE_TASKS",
    "NEEDS",
    "NEEDS_TRANSLATIONS",
    "TASKS",
    "Task",
    "TaskResult",
    "classification",
    "displacement_in_base_frame",
    "displacement_in_object_frame",
    "known_tasks",
    "latent_tasks",
    "tasks_about",
    "tasks_for",
]

TASKS: dict[str, Task] = {
    "classification": classification,
    "linear": linear,
    "knn": knn,
    "knn_weighted": knn_weighted,
    "low_shot_1pct": low_shot_1pct,
    "low_shot_10pct": low_shot_10pct,
    "relative_rotation": relative_rotation_task_of(QUATERNION),
    "relative_rotation_6d": relative_rotation_task_of(SIX_NUMBERS),
    "relative_rotation_matrix": relative_rotation_task_of(MATRIX),
    "absolute_rotation": absolute_rotation_task_of(QUATERNION),
    "absolute_rotation_6d": absolute_rotation_task_of(SIX_NUMBERS),
    "absolute_rotation_matrix": absolute_rotation_task_of(MATRIX),
    "translation_object": translation_object_task,
    "translation_base": translation_base_task,
    "colour": colour,
    "colour_circular": colour_circular,
    "light": light,
    "relative_light": relative_light,
    "invariance": invariance,
    "collapse": collapse,
    "feature_action": feature_action,
}

NEEDS_POSE = (
    "relative_rotation",
    "relative_rotation_6d",
    "relative_rotation_matrix",
    "absolute_rotation",
    "absolute_rotation_6d",
    "absolute_rotation_matrix",
    "feature_action",
)
NEEDS_TRANSLATIONS = ("translation_object", "translation_base")
NEEDS: dict[str, Need] = {  # all other tasks need no latents
    **dict.fromkeys(NEEDS_POSE, POSE),
    **dict.fromkeys(NEEDS_TRANSLATIONS, TRANSLATION),
    **dict.fromkeys(("colour", "colour_circular"), HUES),
    **dict.fromkeys(("light", "relative_light"), LIGHT),
}


def latent_tasks(schema: LatentSchema | None) -> dict[str, Task]:
    """The tasks of latents that none of `TASKS` is about, by name; 3DIEBench and 3DIEBench-T have no such latents."""
    if schema is None:
        return {}
    covered = {latent.name for need in NEEDS.values() for latent in need.latents(schema)}
    uncovered = [latent for latent in schema.latents if latent.name not in covered]
    return {name: task for latent in uncovered for name, task in tasks_of_latent(latent).items()}


def known_tasks(schema: LatentSchema | None) -> dict[str, Task]:
    """`TASKS`, and the tasks of the schema's own latents, which go first where names are the same."""
    return TASKS | latent_tasks(schema)


def tasks_for(views: FeatureCache | ViewCollection, names: Sequence[str] = CORE_TASKS) -> tuple[str, ...]:
    """Those of the named tasks whose latents a split has, and those of its latents that no task is about."""
    return tasks_about(views.schema, names)


def tasks_about(schema: LatentSchema | None, names: Sequence[str] = tuple(TASKS)) -> tuple[str, ...]:
    """`tasks_for` a split with these latents."""
    asked = (name for name in names if name not in NEEDS or NEEDS[name].latents(schema))
    return tuple(dict.fromkeys((*asked, *latent_tasks(schema))))
