"""Asks which class an object is of by the nearest training views, so that nothing is trained.

    python evaluation/knn.py --encoder runs/sie                                  the embedded test split
    python evaluation/knn.py --encoder timm:resnet18 --dataset cifar10 --data-dir DATA --image-size 32
    python evaluation/knn.py --encoder random:resnet18

A plain vote of the neighbours, and one that is weighted by similarity. evaluation/suite.py --help says how all of it
goes.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.evaluation.command import EvaluationConfig, evaluate_command

TASKS = ("knn", "knn_weighted")

if __name__ == "__main__":
    config = parse_command_line(EvaluationConfig, __doc__, EvaluationConfig(encoder=tyro.MISSING, tasks=TASKS))
    explain_errors(lambda: evaluate_command(config, "knn"))
