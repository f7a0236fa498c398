import pytest
from torch import nn

from ssl_equi.objectives.parts.heads import projector, split_widths


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
