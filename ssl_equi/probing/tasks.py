"""The questions asked of frozen features, by name: which class, rotation, translation, colour, light; how invariant.

Each task trains its head on one split's features and measures it on another's. A result carries its metrics, the same
metrics of the best answer that looks at no image, and what the figures of the report need. A task that can't be asked
of the data or the features at hand raises TaskSkipped with the reason.
"""

from collections.abc import Sequence

from ssl_equi.data.collection import ViewCollection
from ssl_equi.geometry.latents import LATENT_SIZE_WITH_TRANSLATION
from ssl_equi.probing.encode import FeatureCache
from ssl_equi.probing.protocol import CORE_TASKS
from ssl_equi.probing.task_results import Task, TaskResult
from ssl_equi.probing.tasks_appearance import colour, colour_circular, light, relative_light
from ssl_equi.probing.tasks_classification import (
    classification,
    knn,
    knn_weighted,
    linear,
    low_shot_1pct,
    low_shot_10pct,
)
from ssl_equi.probing.tasks_feature_action import feature_action
from ssl_equi.probing.tasks_feature_space import collapse, invariance
from ssl_equi.probing.tasks_pose import (
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

__all__ = [
    "CORE_TASKS",
    "NEEDS_POSES",
    "NEEDS_TRANSLATIONS",
    "TASKS",
    "Task",
    "TaskResult",
    "classification",
    "displacement_in_base_frame",
    "displacement_in_object_frame",
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

NEEDS_TRANSLATIONS = ("translation_object", "translation_base")
NEEDS_POSES = (
    "relative_rotation",
    "relative_rotation_6d",
    "relative_rotation_matrix",
    "absolute_rotation",
    "absolute_rotation_6d",
    "absolute_rotation_matrix",
    *NEEDS_TRANSLATIONS,
    "colour",
    "colour_circular",
    "light",
    "relative_light",
    "feature_action",
)


def tasks_for(views: FeatureCache | ViewCollection, names: Sequence[str] = CORE_TASKS) -> tuple[str, ...]:
    """Those of the named tasks whose latents a split has: without known poses, or of objects that don't move, fewer."""
    absent: tuple[str, ...] = ()
    if views.quats_xyzw is None:
        absent = NEEDS_POSES
    elif views.latents.shape[-1] != LATENT_SIZE_WITH_TRANSLATION:
        absent = NEEDS_TRANSLATIONS
    return tuple(name for name in names if name not in absent)
