"""The questions that need images beyond the features of the two splits, by name, and how they are asked.

They cost passes through the encoder, so the suite asks them only when they are named.
"""

from collections.abc import Callable, Mapping, Sequence

from ssl_equi.evaluation.features import state_sha256
from ssl_equi.evaluation.image_context import ImageContext, ImageQuestion
from ssl_equi.evaluation.skipping import noted_if_unanswered
from ssl_equi.evaluation.task_results import TaskResult, without_undefined
from ssl_equi.evaluation.tasks.augmentation_parameters import augmentation_parameters
from ssl_equi.evaluation.tasks.robustness import (
    corruption,
    corruption_relative_rotation,
    ood_classification,
    ood_relative_rotation,
)

ROBUSTNESS = ("ood_classification", "ood_relative_rotation", "corruption", "corruption_relative_rotation")

IMAGE_QUESTIONS: dict[str, ImageQuestion] = {
    "ood_classification": ood_classification,
    "ood_relative_rotation": ood_relative_rotation,
    "corruption": corruption,
    "corruption_relative_rotation": corruption_relative_rotation,
    "augmentation_parameters": augmentation_parameters,
}


def ask_questions(
    context: ImageContext,
    questions: Mapping[str, ImageQuestion],
    seed: int,
    before_question: Callable[[str, str], None] = lambda question, part: None,
) -> tuple[dict[str, dict[str, TaskResult]], list[str]]:
    """Questions on all parts of the features.

    Args:
        before_question: is told the question and the part that is asked next.

    Returns:
        Results by part and question, and a sentence for each answer that is missing or needs a remark: "QUESTION, part
        PART: why".

    Raises:
        RuntimeError: a question changed the encoder.
    """
    results: dict[str, dict[str, TaskResult]] = {part: {} for part in context.parts}
    notes: list[str] = []
    for part in context.parts:
        for name, question in questions.items():
            before_question(name, part)
            with noted_if_unanswered(f"{name}, part {part}", notes):
                result = without_undefined(question(context, part, seed))
                results[part][name] = result
                notes += [f"{name}, part {part}: {note}" for note in result.notes]
            if state_sha256(context.module) != context.encoder_sha256:
                raise RuntimeError(
                    f"{name!r} changed a parameter or a buffer of the encoder: a frozen encoder must stay as it is"
                )
    return results, notes


def spelled_out(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names with each group's name replaced by its members, every one once, in their first order."""
    return tuple(dict.fromkeys(member for name in names for member in groups.get(name, (name,))))
