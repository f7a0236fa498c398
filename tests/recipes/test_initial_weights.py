"""How the weights of every configuration that is named after a paper start, against a table of facts.

The facts are standard deviations in the released code of each method. What the table doesn't name must start as in
torchvision's ResNets and PyTorch's layers, from which all of them are built.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from ssl_equi.encoders.capsules.layers import PrimaryCapsules, SelfRouting
from ssl_equi.objectives.parts.predictors import Hypernetwork
from tests.fakes import RECIPES, load_recipe

OWN_NAMES = {"embedded", "demo", "translated", "two_pass", "augmented"}
OWN = {"equimod vicreg", "supervised threediebench"}


@dataclass(frozen=True)
class Start:
    """What the released code of a configuration starts with, besides the usual."""

    last_norm: float
    """Scale of the last normalisation of each block of the ResNet: 0 (`zero_init_residual`), or 1 as by default."""
    stem: float | None = None
    """Standard deviation of the first convolution, if it isn't that of the other convolutions."""
    hypernetwork: float | None = None
    votes: float | None = None
    routing: float | None = None


CARE_SMALL = Start(last_norm=1, stem=1 / math.sqrt(3 * 27))  # the stem replaces another: .11, PyTorch's default
SIE_HYPERNETWORK = 1 / math.sqrt(3 * 4)  # .29: PyTorch's default of a linear layer on 4 numbers
SIE = Start(last_norm=0, hypernetwork=SIE_HYPERNETWORK)
STARTS_WITH_ZERO = (
    "augself threediebench", "barlow_twins imagenet", "byol imagenet", "byol threediebench",
    "byol threediebench_released", "conditional_byol threediebench", "conditional_byol threediebench_released",
    "conv_jepa stl10", "equimod threediebench", "equimod threediebench_released", "essl imagenet",
    "sen threediebench", "sen threediebench_released", "seq_jepa threediebench", "seq_jepa threediebench_color",
    "seq_jepa threediebench_released", "seq_jepa cifar100", "seq_jepa cifar100_legacy", "seq_jepa tiny_imagenet",
    "seq_jepa_saccades stl10", "simclr imagenet", "simclr threediebench", "simclr threediebench_released",
    "simsiam imagenet", "vicreg paper", "vicreg imagenet", "vicreg threediebench_released",
    "vicreg_traj threediebench", "vicreg_traj threediebench_released",
)  # fmt: skip
STARTS_WITH_ONE = (
    "care imagenet100", "care imagenet100_released", "care imagenet100_moco", "essl cifar10",
    "essl cifar10_equal_rate", "moco imagenet", "moco imagenet100", "moco imagenet100_released", "simclr cifar10",
    "simsiam cifar10",
)  # fmt: skip
STARTS = {
    **dict.fromkeys(STARTS_WITH_ZERO, Start(last_norm=0)),
    **dict.fromkeys(STARTS_WITH_ONE, Start(last_norm=1)),
    **dict.fromkeys(("care cifar10", "care cifar10_released", "care cifar100", "care stl10"), CARE_SMALL),
    **dict.fromkeys(("equimod threediebench_sie", "sie paper", "sie threediebench_released"), SIE),
    "capsie paper": Start(last_norm=0, hypernetwork=SIE_HYPERNETWORK, votes=math.sqrt(2 / (16 * 16 * 16)), routing=0),
    "equicaps paper": Start(last_norm=0, votes=0.0278, routing=0),
    "equicaps paper_translated": Start(last_norm=0, votes=0.0156, routing=0),
}


def expected_std(module: nn.Module, parameter: str, start: Start, is_stem: bool) -> float | None:
    """Standard deviation of a layer's weights at the start; None for biases and normalisations."""
    if isinstance(module, Hypernetwork) and parameter == "matrices":
        return start.hypernetwork
    if isinstance(module, SelfRouting):
        return {"vote_weight": start.votes, "routing_weight": start.routing}.get(parameter)
    if isinstance(module, nn.MultiheadAttention) and parameter == "in_proj_weight":
        return math.sqrt(2 / (module.embed_dim + 3 * module.embed_dim))
    if parameter != "weight":
        return None
    if isinstance(module, nn.Conv2d):
        kernel_area = math.prod(module.kernel_size)
        return start.stem if is_stem and start.stem else math.sqrt(2 / (kernel_area * module.out_channels))
    return 1 / math.sqrt(3 * module.in_features) if isinstance(module, nn.Linear) else None


def assert_starts_so(objective: nn.Module, start: Start) -> set[str]:
    """Compares every weight; returns the kinds of layers that were met."""
    met: set[str] = set()
    primary = {layer.conv for layer in objective.modules() if isinstance(layer, PrimaryCapsules)}
    for name, module in objective.named_modules():
        is_stem = name.endswith("conv1") and "layer" not in name
        for parameter, value in module.named_parameters(recurse=False):
            expected = expected_std(module, parameter, start, is_stem)
            if module in primary:
                expected = 1 / math.sqrt(3 * module.in_channels * math.prod(module.kernel_size))
            if expected is not None:
                met.add("stem" if is_stem else type(module).__name__)
                measured = float(value[:1024].std())
                assert measured == pytest.approx(expected, rel=0.07), f"{name}.{parameter}"
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm):
                met.add("norm")
                assert torch.equal(value, torch.full_like(value, norm_value(name, parameter, objective, start))), name
    return met


def norm_value(name: str, parameter: str, objective: nn.Module, start: Start) -> float:
    """Scales start at 1 and shifts at 0; but for the last scale of a block, of which a convolution comes before."""
    if parameter == "bias":
        return 0.0
    block, _, layer = name.rpartition(".")
    last = "bn3" if hasattr(objective.get_submodule(block), "bn3") else "bn2"
    return start.last_norm if ".layer" in name and layer == last else 1.0


def test_every_configuration_that_names_a_paper_is_in_the_table() -> None:
    named = {f"{recipe} {name}" for recipe in RECIPES for name in load_recipe(recipe).CONFIGS.keys() - OWN_NAMES}
    assert named - OWN == set(STARTS)


@pytest.mark.parametrize("label", STARTS)
def test_weights_start_as_in_the_released_code(label: str) -> None:
    recipe, name = label.split()
    module = load_recipe(recipe)
    objective = module.build(module.CONFIGS[name]())
    met = assert_starts_so(objective, STARTS[label])
    assert {"stem", "Conv2d", "norm"} <= met
