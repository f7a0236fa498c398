"""Writes docs/tasks.md: every task by name with what it asks and which latents it needs, and what each metric means.

    python tools/list_tasks.py                   in a clone; seconds on one core
    python tools/list_tasks.py --out page.md

The page is made from the tasks that `ssl_equi/evaluation/tasks` registers and from `ssl_equi/evaluation/metrics.py`.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

import ssl_equi.evaluation.tasks  # noqa: F401  (registers all tasks)
from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.evaluation.metrics import METRICS
from ssl_equi.evaluation.task import TASKS, Group, Task

INTRODUCTION = """\
# Tasks and metrics

What an encoder's features can be asked, and what the numbers mean. This page is written by `python tools/list_tasks.py`
from the code, and a test holds it to that. How tasks are asked, and how heads are trained and judged:
[evaluation.md](evaluation.md).
"""
GROUPS: dict[Group, str] = {
    "features": "Asked of the features of the two splits. `--tasks features` stands for all of them.",
    "distributions": "Asked when they are named, since they learn longer than a head; `--tasks distributions`.",
    "predictor": "Asked of the predictor that a run left beside its encoder, once and of all features.",
    "robustness": "Asked when they are named, since they take further passes of the encoder; `--tasks robustness`.",
    "images": "Asked when they are named, since they take further passes of the encoder.",
    "augmentations": "Asked of augmented images; nothing is trained.",
}
BY_KIND = """\
## latents

Every latent of the data that no task above is about has two tasks by its kind, `relative_NAME` (its change between two
views; not of categories) and `absolute_NAME` (its value in one). `--tasks latents` stands for all of them.
"""


@dataclass(frozen=True)
class Config:
    """Where the page goes."""

    out: Path = Path(__file__).parent.parent / "docs" / "tasks.md"
    """File to write."""


def summary(task: Task) -> str:
    """The first paragraph of what a task says of itself."""
    text = inspect.getdoc(task.answer)
    assert text is not None, f"task {task.name} has no docstring"
    return " ".join(text.partition("\n\n")[0].split())


def page() -> str:
    sections = [INTRODUCTION]
    for group in dict.fromkeys((*GROUPS, *(task.group for task in TASKS.values()))):
        rows = [
            f"| `{task.name}` | {summary(task)} | {'-' if task.needs is None else task.needs.name} |"
            for task in TASKS.values()
            if task.group == group
        ]
        if rows:
            intro = GROUPS.get(group, "")
            sections.append(
                "\n".join(
                    [f"## {group}\n", f"{intro}\n", "| task | what is asked | latents |", "|---|---|---|", *rows, ""]
                )
            )
        if group == "features":
            sections.append(BY_KIND)
    metrics = [f"| `{name}` | {metric.meaning} |" for name, metric in METRICS.items()]
    longer = (
        "Longer names begin with these: `top1_fog`, `r2_uniform_crop`, `hit_at_5`, `angle_deg_median_of_CLASS`. Each\n"
        "value stands beside its baseline, which its record names."
    )
    sections.append("\n".join(["## Metrics\n", f"{longer}\n", "| metric | meaning |", "|---|---|", *metrics, ""]))
    return "\n".join(sections)


def main(config: Config) -> None:
    config.out.write_text(page())
    print(f"{len(TASKS)} tasks and {len(METRICS)} metrics in {config.out}")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
