"""Heads, the collapse monitor and the checks that objectives share."""

import pytest
import torch
from torch import nn

from ssl_equi.objectives.base import Extension, Objective
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_actions, check_choice, check_views
from ssl_equi.objectives.parts.heads import projector, split_widths
from ssl_equi.objectives.parts.predictors import HypernetworkInit
from tests.fakes import PixelEncoder
from tests.references.formulas import spread_of_directions


def test_projector_layers_and_parameter_count_of_the_paper():
    head = projector(256, (1024, 1024, 1024))
    assert [type(layer) for layer in head] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    assert [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)] == [True, True, False]
    assert sum(parameter.numel() for parameter in head.parameters()) == 2_365_440


@pytest.mark.parametrize(
    ("inv_dim", "equi_dim", "expected"),
    [
        (256, 256, ([1024, 1024, 1024], [1024, 1024, 1024])),
        (128, 384, ([512, 512, 512], [1536, 1536, 1536])),
        (256, 128, ([1365, 1365, 1365], [683, 683, 683])),
    ],
)
def test_widths_are_shared_in_proportion_and_add_up(inv_dim: int, equi_dim: int, expected: tuple):
    inv_widths, equi_widths = split_widths((2048, 2048, 2048), inv_dim, equi_dim)
    assert (inv_widths, equi_widths) == expected
    assert [a + b for a, b in zip(inv_widths, equi_widths, strict=True)] == [2048, 2048, 2048]


def test_the_spread_of_directions_agrees_with_the_formula():
    z = torch.randn(10, 2, 6, dtype=torch.float64) + 1
    assert normalised_std(z).item() == pytest.approx(spread_of_directions(z).item(), rel=1e-12)


def test_embeddings_that_point_the_same_way_spread_by_0_whatever_their_length():
    lengths = torch.rand(8, 2, 1, dtype=torch.float64) + 0.1
    assert normalised_std(lengths * torch.ones(5, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)


def test_directions_all_over_the_sphere_give_1_and_opposite_ones_along_the_diagonal_exactly_1():
    torch.manual_seed(0)
    assert normalised_std(torch.randn(2000, 2, 64)).item() == pytest.approx(1, abs=0.01)
    diagonal = torch.ones(4, 2, 16)
    assert normalised_std(torch.cat([diagonal, -diagonal])).item() == pytest.approx(1, rel=1e-6)


def test_the_spread_is_measured_in_float32_and_without_gradient():
    monitor = normalised_std(torch.randn(8, 2, 4, requires_grad=True).bfloat16())
    assert monitor.dtype == torch.float32
    assert not monitor.requires_grad


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_full_precision_lifts_half_types_only(dtype: torch.dtype, expected: torch.dtype):
    assert full_precision(torch.zeros(2, dtype=dtype)).dtype == expected


def test_checks_let_what_is_right_pass():
    check_views(torch.zeros(2, 2, 3, 4, 4))
    check_views(torch.zeros(2, 5, 3, 4, 4), num_views=None)
    check_choice("init", "released", HypernetworkInit)
    actions = torch.ones(2, 1, 4)
    assert check_actions(actions, 2, 1, 4) is actions
    assert check_actions(actions[:, 0], 2, 4).shape == (2, 4)
    assert check_actions(actions[:, :0], 2, 0, 4).shape == (2, 0, 4)


def test_an_objective_offers_nothing_that_it_does_not_have():
    objective = Objective(PixelEncoder())
    objective.update_target(0.5)
    assert objective.parts == {"all": slice(0, 12)}
    assert objective.latent_predictor() is objective.capsule_network is objective.sequence_model is None
    assert objective.action_dim is objective.aggregate_width is None
    with pytest.raises(ValueError, match=r"the base Linear is no objective: pass one of two views, such as SimCLR"):
        Extension(nn.Linear(2, 2))
