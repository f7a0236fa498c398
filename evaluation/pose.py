"""Asks how objects are turned and moved, of any encoder's features.

    python evaluation/pose.py --encoder runs/sie                                 the embedded test split
    python evaluation/pose.py --encoder runs/sie --split ood_rotation            poses that were never trained on
    python evaluation/pose.py --encoder runs/sie --dataset 3diebench-pt          objects that also move
    python evaluation/pose.py --encoder timm:resnet18 --tasks relative_rotation

The rotation between two views and that of one, as quaternions, six numbers and matrices, translations where objects
move, and the latents that only these data have (relative_azimuth, absolute_azimuth and so on). evaluation/suite.py
--help says how all of it goes.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.evaluation.command import EvaluationConfig, evaluate_command

TASKS = (
    "relative_rotation",
    "relative_rotation_6d",
    "relative_rotation_matrix",
    "absolute_rotation",
    "absolute_rotation_6d",
    "absolute_rotation_matrix",
    "translation_object",
    "translation_base",
    "latents",
)

if __name__ == "__main__":
    config = parse_command_line(EvaluationConfig, __doc__, EvaluationConfig(encoder=tyro.MISSING, tasks=TASKS))
    explain_errors(lambda: evaluate_command(config, "pose"))
