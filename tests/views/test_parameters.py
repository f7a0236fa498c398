"""Rows of parameters can be chosen, moved and joined."""

import pytest
import torch

from ssl_equi.views.parameters import (
    BlurParameters,
    CropParameters,
    FlipParameters,
    JigsawParameters,
    ViewParameters,
    concatenate,
)


def crop(count: int, output_size: int = 8) -> CropParameters:
    numbers = torch.arange(count, dtype=torch.float32)
    whole = torch.full((count,), 32.0)
    return CropParameters(
        torch.ones(count, dtype=torch.bool), numbers, numbers + 1, whole / 2, whole / 4, whole, whole, output_size
    )


def views(count: int) -> ViewParameters:
    applied = torch.arange(count) % 2 == 0
    return ViewParameters(crop=crop(count), blur=BlurParameters(applied, torch.arange(count) * 0.5))


def test_length_is_the_number_of_images():
    assert len(views(5)) == len(crop(5)) == 5
    assert len(ViewParameters()) == 0


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, 3), [1, 2]),
        ([3, 0], [3, 0]),
        (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (2, [2]),
        (-1, [3]),
    ],
)
def test_rows_selects_in_every_field(index: object, expected: list[int]):
    chosen = views(4).rows(index)
    assert chosen.crop.top.tolist() == expected
    assert chosen.crop.left.tolist() == [number + 1 for number in expected]
    assert chosen.blur.sigma.tolist() == [number * 0.5 for number in expected]
    assert chosen.crop.output_size == 8
    assert chosen.jitter is None
    assert len(chosen) == len(expected)


def test_a_row_that_does_not_exist_is_refused():
    with pytest.raises(IndexError, match=r"row 4 of parameters of 4 images does not exist: pass -4\.\.3"):
        views(4).rows(4)


def test_to_moves_every_tensor():
    moved = views(2).to("meta")
    assert moved.crop.top.device.type == moved.blur.applied.device.type == "meta"
    assert moved.crop.output_size == 8


def test_concatenate_undoes_rows():
    whole = views(5)
    joined = concatenate([whole.rows(slice(0, 2)), whole.rows(slice(2, 5))])
    assert torch.equal(joined.crop.width, whole.crop.width)
    assert torch.equal(joined.blur.applied, whole.blur.applied)
    assert joined.crop.output_size == 8
    assert isinstance(concatenate([crop(1), crop(2)]), CropParameters)


def test_unlike_parameters_are_not_joined():
    applied = torch.ones(1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"FlipParameters\(\) and JigsawParameters\(\) cannot be concatenated"):
        concatenate([FlipParameters(applied), JigsawParameters(applied, torch.zeros(1, dtype=torch.int64))])
    with pytest.raises(ValueError, match=r"ViewParameters\(crop, blur\) and ViewParameters\(crop\)"):
        concatenate([views(2), ViewParameters(crop=crop(2))])
    with pytest.raises(ValueError, match=r"output_size=8.*output_size=16"):
        concatenate([crop(2), crop(2, output_size=16)])
    with pytest.raises(ValueError, match="pass at least one"):
        concatenate([])


def test_fields_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"ViewParameters holds fields of \[2, 3\] rows"):
        len(ViewParameters(crop=crop(2), horizontal_flip=FlipParameters(torch.ones(3, dtype=torch.bool))))
