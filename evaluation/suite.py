"""Puts any encoder through a protocol: one command, and numbers that can be compared.

    python evaluation/suite.py --encoder runs/sie                                the embedded test split
    python evaluation/suite.py --encoder runs/sie --split ood_rotation           poses that were never trained on
    python evaluation/suite.py --encoder runs/sie --protocol sie --dataset 3diebench --data-dir SHARDS --split val
    python evaluation/suite.py --encoder timm:resnet18                           timm's pretrained weights
    python evaluation/suite.py --encoder timm:resnet18 --weights resnet18.safetensors
    python evaluation/suite.py --encoder random:resnet18 --tasks classification knn relative_rotation
    python evaluation/suite.py --encoder hub:timm/resnet18.a1_in1k --dataset cifar10 --data-dir DATA --protocol essl
    python evaluation/suite.py --encoder runs/sie --beside runs/vicreg timm:resnet18 random:resnet18
    python evaluation/suite.py --encoder runs/sie --parts inv equi --seeds 5
    python evaluation/suite.py --encoder runs/sie --tasks robustness             poses never trained on; corruptions
    python evaluation/suite.py --encoder runs/sie --tasks augmentation_parameters
    python evaluation/suite.py --encoder runs/sie --transfer folder:/data/flowers cifar10:/data

Every view goes through the encoder once, and features are kept: another question of the same encoder needs no pass,
but for those about other images (robustness, augmentation_parameters, transfer), which are asked when they are named.
Heads are trained on the train split's features, with several seeds. What can't be asked of the data or of a part is
noted, not guessed. The encoder's parameters and buffers are hashed before and after every task. Prints a table of
means with standard errors over seeds and over objects, beside what is reached without an image and by random weights;
writes results.json (every seed), arrays.npz and report.html.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.evaluation.command import EvaluationConfig, evaluate_command

if __name__ == "__main__":
    config = parse_command_line(EvaluationConfig, __doc__)
    explain_errors(lambda: evaluate_command(config))
