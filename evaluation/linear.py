"""Asks which class an object is of, by linear heads on any encoder's features.

    python evaluation/linear.py --encoder runs/sie                               the embedded test split
    python evaluation/linear.py --encoder timm:resnet18 --dataset cifar10 --data-dir DATA --image-size 32
    python evaluation/linear.py --encoder random:resnet18 --seeds 1

The protocol's head; one whose learning rate and weight decay are chosen on training objects that are held out; and
heads that know 1 % and 10 % of the training objects. evaluation/suite.py --help says how all of it goes.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.evaluation.command import EvaluationConfig, evaluate_command

TASKS = ("classification", "linear", "low_shot_1pct", "low_shot_10pct")

if __name__ == "__main__":
    config = parse_command_line(EvaluationConfig, __doc__, EvaluationConfig(encoder=tyro.MISSING, tasks=TASKS))
    explain_errors(lambda: evaluate_command(config, "linear"))
