"""E-SSL against its formula, the base against itself, and labels that no head can know."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.augself import AugSelf
from ssl_equi.objectives.essl import ESSL, ESSLConfig, transformation_head
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from tests.fakes import ConvolutionEncoder, recorded_calls
from tests.objectives.cases.essl import C4_RELATIVE_TABLE
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.extensions import essl
from tests.references.formulas import cross_entropy_of_labels
from tests.references.invariant import vicreg
from tests.references.table import APART, JOINT, ROTATION_HEAD, VICREG_HEAD, VICREG_OF_SIE, reference

HEAD = {"hidden_widths": (16, 16)}


def inputs(batch: int = 6, number: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(batch, 2, 3, 8, 8, generator=generator)
    small_views = torch.randn(batch, number, 3, 6, 6, generator=generator) + 1
    return views, small_views, torch.randint(4, (batch, number), generator=generator)


def make(table: Tensor | None = None, **changes) -> ESSL:
    torch.manual_seed(0)
    config = ESSLConfig(**{**HEAD, "relative": table is not None, **changes})
    return ESSL(VICReg(ConvolutionEncoder(10), VICRegConfig(projector=(12, 8))), config, table)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shared_statistics", [False, True])
@pytest.mark.parametrize("number", [2, 4])
def test_it_agrees_with_the_formula(number: int, shared_statistics: bool, separate: bool):
    base = VICReg(SmallEncoder(), VICRegConfig(projector=(24, 20, 12), separate_batch_norm=separate))
    config = ESSLConfig(0.7, number, (16, 14), separate_statistics=not shared_statistics)
    expected = reference(
        essl,
        transformed_views=number,
        head=ROTATION_HEAD,
        weight=0.7,
        small_views_remembered=shared_statistics,
        base=reference(vicreg, calls=APART if separate else JOINT, projector=VICREG_HEAD, weights=VICREG_OF_SIE),
    )
    assert not disagreements(ESSL(base, config), expected)


@pytest.mark.parametrize("number", [1, 2])
def test_any_number_of_versions_of_any_elements_may_be_shown(number: int):
    objective, (views, small_views, elements) = make(), inputs(number=number)
    output = objective(views, None, small_views, elements)
    with torch.no_grad():
        logits = objective.head(objective.encoder(small_views.flatten(0, 1)))
    expected = cross_entropy_of_labels(logits, elements.flatten()).item()
    assert output.terms["transformation"].item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["transformation_top1"] == (logits.argmax(1) == elements.flatten()).float().mean()


def test_small_views_are_encoded_in_one_call():
    objective = make()
    calls = recorded_calls(objective.encoder)
    views, small_views, elements = inputs()
    objective(views, None, small_views, elements)
    assert calls == [(12, 3, 8, 8), (24, 3, 6, 6)]


def test_head_follows_the_papers():
    def kinds(head: nn.Sequential) -> list[type]:
        return [type(layer) for layer in head]

    block = [nn.Linear, nn.LayerNorm, nn.ReLU]
    assert kinds(transformation_head(8, (5, 6), 4, True)) == [*block, *block, nn.Linear]
    imagenet = transformation_head(8, (5, 6, 7), 4, False)
    assert kinds(imagenet) == [*block, *block, nn.Linear, nn.LayerNorm, nn.Linear]
    assert [layer.out_features for layer in imagenet if isinstance(layer, nn.Linear)] == [5, 6, 7, 4]
    assert kinds(transformation_head(8, (), 4, False)) == [nn.Linear]


class CornerEncoder(nn.Module):
    """The mean of each quarter of the image, counter-clockwise, so that turns permute the features cyclically."""

    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 2).flatten(1)
        return quarters[:, [1, 0, 2, 3]]


def turned_anyhow(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with one bright corner, already turned at random, in `number` versions turned once more; the elements."""
    upright = torch.zeros(64, 3, 4, 4)
    upright[:, :, :2, 2:] = 1
    turns_before = torch.randint(4, (64,), generator=generator)
    elements = torch.randint(4, (64, number), generator=generator)
    transformed = [
        torch.stack([torch.rot90(x, int(turn), (1, 2)) for turn in before + chosen])
        for x, before, chosen in zip(upright, turns_before, elements, strict=True)
    ]
    return torch.stack(transformed), elements


@pytest.mark.parametrize("relative", [False, True])
def test_relative_elements_can_be_known_where_absolute_ones_cannot(relative: bool):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    base = VICReg(CornerEncoder(), VICRegConfig(projector=(8, 8)))
    table = C4_RELATIVE_TABLE if relative else None
    objective = ESSL(base, ESSLConfig(hidden_widths=(32,), relative=relative), table)
    optimizer = torch.optim.Adam(objective.head.parameters(), lr=1e-2)
    views = torch.randn(64, 2, 3, 4, 4, generator=generator)
    losses = []
    for _ in range(120):
        output = objective(views, None, *turned_anyhow(2, generator))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.terms["transformation"].item())
    if relative:
        assert max(losses[-10:]) < 0.02
        assert output.terms["transformation_top1"] == 1
    else:
        assert np.mean(losses[-10:]) > 0.97 * math.log(4)


def test_relative_labels_are_second_after_inverse_of_first():
    objective = make(table=C4_RELATIVE_TABLE)
    views, small_views, _ = inputs(number=2)
    elements = torch.tensor([[0, 0], [0, 1], [1, 0], [3, 1], [2, 3], [1, 1]])
    logits, labels = objective._logits_and_labels(small_views, elements)
    assert labels.tolist() == [0, 1, 3, 2, 1, 0]
    assert logits.shape == (6, 4)
    output = objective(views, None, small_views, elements)
    assert output.terms["transformation"].item() == pytest.approx(
        cross_entropy_of_labels(logits, labels).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x[0],), "no transformed views"),
        (lambda x: (x[0], None, x[1]), "no elements"),
        (lambda x: (x[0], None, x[1][:5], x[2][:5]), "as many objects as in views"),
        (lambda x: (x[0], None, x[1][:, 0], x[2]), r"shape \(6, 3, 6, 6\)"),
        (lambda x: (x[0], None, (x[1] * 9).to(torch.uint8), x[2]), "dtype torch.uint8: pass float"),
        (lambda x: (x[0], None, x[1], x[2][:, :2]), r"pass int64 \[6, 4\]"),
        (lambda x: (x[0], None, x[1], x[2].float()), "dtype torch.float32: pass int64"),
        (lambda x: (x[0], None, x[1], x[2] + 4), r"num_elements is 4, so use 0\.\.3"),
        (lambda x: (x[0], None, x[1], x[2] - 4), r"num_elements is 4, so use 0\.\.3"),
    ],
)
def test_wrong_inputs_are_refused(change, message: str):
    with pytest.raises(ValueError, match=message):
        make()(*change(inputs()))


def test_transformed_views_without_weight_and_four_relative_ones_are_refused():
    views, small_views, elements = inputs()
    for objective, message in [(make(weight=0.0), "its weight is 0"), (make(C4_RELATIVE_TABLE), "hold 4 small views")]:
        with pytest.raises(ValueError, match=message):
            objective(views, None, small_views, elements)


@pytest.mark.parametrize(
    ("changes", "table", "message"),
    [
        ({"weight": -0.1}, None, "is -0.1: give a number of at least 0"),
        ({"weight": math.nan}, None, "is nan: give a number of at least 0"),
        ({"num_elements": 1}, None, "num_elements is 1"),
        ({"hidden_widths": (8, 0)}, None, "must be 1 or more"),
        ({"relative": True}, None, "needs relative_table"),
        ({"relative": False}, C4_RELATIVE_TABLE, "although relative is False"),
        ({"relative": True, "num_elements": 8}, C4_RELATIVE_TABLE, r"pass int64 \[8, 8\]"),
        ({"relative": True}, C4_RELATIVE_TABLE.float(), "dtype torch.float32"),
        ({"relative": True}, C4_RELATIVE_TABLE + 1, r"use 0\.\.3"),
    ],
)
def test_wrong_configurations_are_refused(changes: dict, table: Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        make(table=table, **changes)


@pytest.mark.parametrize(
    ("make_base", "message"),
    [
        (lambda: nn.Linear(3, 4), "Linear is no objective"),
        (lambda: make(), "ESSL already extends another objective"),
        (lambda: AugSelf(make().base), "AugSelf already extends another objective"),
        (lambda: SIE(ConvolutionEncoder(10), SIEConfig(projector=(12, 12))), "SIE needs actions"),
    ],
)
def test_bases_that_do_not_fit_are_refused(make_base, message: str):
    with pytest.raises(ValueError, match=message):
        ESSL(make_base(), ESSLConfig())
