"""Pipelines: drawn once, applied as often as wanted, with the same result on every way."""

import pytest
import torch
from torch import Generator, Tensor

from ssl_equi.views import pipeline as pipeline_module
from ssl_equi.views.parameters import BlurParameters, CropParameters, ViewParameters, concatenate
from ssl_equi.views.pipeline import ViewPipeline, apply_each
from ssl_equi.views.transforms import (
    CentralCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
)
from tests.simulated_device import SimulatedDevice

PIPELINE = ViewPipeline(
    (
        RandomResizedCrop(16),
        HorizontalFlip(probability=0.5),
        ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
        Grayscale(probability=0.2),
        GaussianBlur(5, probability=0.5),
        Solarize(probability=0.2),
    )
)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 24, height: int = 20, width: int = 28) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(1))


def test_views_are_replayed_to_the_bit():
    drawn = PIPELINE.draw(24, source_sizes=(20, 28), generator=seeded())
    again = PIPELINE.draw(24, source_sizes=torch.tensor([[20, 28]] * 24), generator=seeded())
    batch = images()
    before = batch.clone()
    views = PIPELINE.apply(batch, drawn)
    assert torch.equal(views, PIPELINE.apply(batch, drawn))
    assert torch.equal(views, PIPELINE.apply(batch, again))
    assert torch.equal(batch, before)
    assert views.shape == (24, 3, 16, 16)
    assert views.dtype == torch.float32
    assert not views.requires_grad
    assert 0 <= views.min() <= views.max() <= 1


def test_an_image_alone_gives_what_it_gives_in_a_batch():
    drawn, batch = PIPELINE.draw(24, source_sizes=(20, 28), generator=seeded()), images()
    alone = [PIPELINE.apply(batch[row : row + 1], drawn.rows(slice(row, row + 1))) for row in range(24)]
    torch.testing.assert_close(PIPELINE.apply(batch, drawn), torch.cat(alone), atol=1e-6, rtol=0)


def test_the_size_of_the_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    drawn, batch = PIPELINE.draw(24, source_sizes=(20, 28), generator=seeded()), images()
    together = PIPELINE.apply(batch, drawn)
    monkeypatch.setattr(pipeline_module, "CPU_BLOCK_BYTES", 5 * 3 * 4 * 16 * 16)
    torch.testing.assert_close(PIPELINE.apply(batch, drawn), together, atol=1e-6, rtol=0)


def test_parameters_can_be_joined_and_reordered():
    first = PIPELINE.draw(8, source_sizes=(20, 28), generator=seeded(0))
    second = PIPELINE.draw(16, source_sizes=(20, 28), generator=seeded(1))
    batch = images()
    views = PIPELINE.apply(batch, concatenate([first, second]))
    separate = torch.cat([PIPELINE.apply(batch[:8], first), PIPELINE.apply(batch[8:], second)])
    torch.testing.assert_close(views, separate, atol=1e-6, rtol=0)
    order = torch.randperm(24, generator=seeded())
    shuffled = PIPELINE.apply(batch[order], concatenate([first, second]).rows(order))
    torch.testing.assert_close(shuffled, views[order], atol=1e-6, rtol=0)


def test_two_draws_differ_and_rows_differ():
    generator = seeded()
    first = PIPELINE.draw(24, source_sizes=(20, 28), generator=generator)
    second = PIPELINE.draw(24, source_sizes=(20, 28), generator=generator)
    assert not torch.equal(first.crop.top, second.crop.top)
    assert len(first.jitter.order.unique(dim=0)) > 5


def test_the_memory_format_of_the_images_changes_nothing():
    drawn, batch = PIPELINE.draw(24, source_sizes=(20, 28), generator=seeded()), images()
    views = PIPELINE.apply(batch.contiguous(memory_format=torch.channels_last), drawn)
    torch.testing.assert_close(views, PIPELINE.apply(batch, drawn), atol=1e-6, rtol=0)


def test_uint8_images_are_taken_as_255ths():
    drawn = PIPELINE.draw(24, source_sizes=(20, 28), generator=seeded())
    stored = (images() * 255).to(torch.uint8)
    assert torch.equal(PIPELINE.apply(stored, drawn), PIPELINE.apply(stored.float() / 255, drawn))


def test_a_chunk_shares_one_draw():
    drawn = PIPELINE.draw(24, source_sizes=(20, 28), generator=seeded(), shared_by=6)
    same_image = images(1).expand(24, -1, -1, -1)
    chunks = PIPELINE.apply(same_image, drawn).unflatten(0, (4, 6))
    torch.testing.assert_close(chunks, chunks[:, :1].expand_as(chunks), atol=1e-6, rtol=0)
    for other in range(1, 4):
        assert (chunks[0, 0] - chunks[other, 0]).abs().max() > 0.05
    alone = PIPELINE.draw(4, source_sizes=(20, 28), generator=seeded())
    assert torch.equal(drawn.jitter.order, alone.jitter.order.repeat_interleave(6, dim=0))
    assert torch.equal(drawn.crop.top, alone.crop.top.repeat_interleave(6))


def test_a_chunk_of_different_sizes_shares_the_crop_relative_to_the_source():
    sizes = torch.tensor([[100, 200], [50, 400], [1, 1], [300, 300]])
    crop = PIPELINE.draw(4, source_sizes=sizes, generator=seeded(), shared_by=4).crop
    assert torch.equal(torch.stack([crop.source_height, crop.source_width], dim=1), sizes.float())
    for start, length, source in (
        (crop.top, crop.height, crop.source_height),
        (crop.left, crop.width, crop.source_width),
    ):
        assert (start >= 0).all()
        assert (length >= 1).all()
        assert (start + length <= source).all()
        relative = (start / source)[[0, 1, 3]]
        torch.testing.assert_close(relative, relative[:1].expand(3), atol=0.02, rtol=0)
    assert PIPELINE.apply(images(4, 300, 400), PIPELINE.draw(4, source_sizes=sizes, generator=seeded())).shape[0] == 4


def test_a_padded_canvas_gives_the_same_views_and_is_never_read():
    sizes = torch.tensor([[20, 28], [13, 9], [1, 1], [20, 5]])
    canvas = torch.full((4, 3, 20, 28), float("nan"))
    each = [images(1, *size) for size in sizes.tolist()]
    for row, (image, (height, width)) in enumerate(zip(each, sizes.tolist())):
        canvas[row, :, :height, :width] = image[0]
    drawn = PIPELINE.draw(4, source_sizes=sizes, generator=seeded())
    views = PIPELINE.apply(canvas, drawn)
    assert torch.isfinite(views).all()
    alone = [PIPELINE.apply(image, drawn.rows(slice(row, row + 1))) for row, image in enumerate(each)]
    torch.testing.assert_close(views, torch.cat(alone), atol=1e-6, rtol=0)


SHORTER = ViewPipeline((RandomResizedCrop(16, scale=(0.5, 1.0)), *PIPELINE.transforms[2:4]))
OTHER_ORDER = ViewPipeline((PIPELINE.transforms[0], PIPELINE.transforms[3], PIPELINE.transforms[2]))
OTHER_BLUR = ViewPipeline((*PIPELINE.transforms[:2], GaussianBlur(3)))
NO_CROP = ViewPipeline(PIPELINE.transforms[1:3])


def test_several_views_are_those_of_each_pipeline_alone(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch):
    """Also where a GPU makes some of them together, as many as its block holds."""
    pipelines, generator = [SHORTER, PIPELINE, OTHER_ORDER, PIPELINE, OTHER_BLUR, NO_CROP, SHORTER], seeded()
    drawn = [pipeline.draw(24, source_sizes=(20, 28), generator=generator) for pipeline in pipelines]
    expected = [pipeline.apply(images(), parameters) for pipeline, parameters in zip(pipelines, drawn)]
    for view, alone in zip(apply_each(pipelines, images(), drawn), expected):
        assert torch.equal(view, alone)
    for bytes_of_a_block in (pipeline_module.GPU_BLOCK_BYTES, 2 * 24 * 3 * 4 * 16 * 16, 1):
        monkeypatch.setattr(pipeline_module, "GPU_BLOCK_BYTES", bytes_of_a_block)
        for view, alone in zip(apply_each(pipelines, images().to("cuda"), drawn), expected):
            torch.testing.assert_close(view.cpu(), alone, atol=1e-5, rtol=0)


def test_on_a_gpu_views_that_are_alike_cost_the_launches_of_one(device: SimulatedDevice):
    pipelines = [PIPELINE, PIPELINE, SHORTER, PIPELINE]
    drawn = [pipeline.draw(24, source_sizes=(20, 28), generator=seeded(1)) for pipeline in pipelines]
    there, launches = images().to("cuda"), []
    apply_each([PIPELINE], there, drawn[:1])  # makes the constants
    for count in (1, 4):
        before = device.launches
        apply_each(pipelines[:count], there, drawn[:count])
        launches.append(device.launches - before)
    assert launches[0] == launches[1] <= 120


def test_without_a_crop_the_size_stays() -> None:
    drawn = NO_CROP.draw(24, source_sizes=(20, 28), generator=seeded())
    assert (NO_CROP.output_size, PIPELINE.output_size) == (None, 16)
    assert NO_CROP.apply(images(), drawn).shape == (24, 3, 20, 28)


def test_the_order_of_the_transforms_is_kept():
    grey_last = ViewPipeline((CentralCrop(8), Solarize(threshold=0.5), Grayscale()))
    solarised_last = ViewPipeline((CentralCrop(8), Grayscale(), Solarize(threshold=0.5)))
    drawn = grey_last.draw(2, source_sizes=(8, 8), generator=seeded())
    one, other = grey_last.apply(images(2, 8, 8), drawn), solarised_last.apply(images(2, 8, 8), drawn)
    assert torch.equal(one[:, 0], one[:, 1])
    assert other.max() <= 0.5
    assert (one - other).abs().max() > 0.05


def test_drawing_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    drawn = PIPELINE.draw(24, source_sizes=(20, 28), generator=seeded())
    PIPELINE.apply(images(), drawn)
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- rows of parameters


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
        (torch.tensor([3, 0]), [3, 0]),
        (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
    ],
)
def test_rows_selects_in_every_field(index: slice | Tensor, expected: list[int]):
    chosen = views(4).rows(index)
    assert chosen.crop.top.tolist() == expected
    assert chosen.crop.left.tolist() == [number + 1 for number in expected]
    assert chosen.blur.sigma.tolist() == [number * 0.5 for number in expected]
    assert chosen.crop.output_size == 8
    assert chosen.jitter is None
    assert len(chosen) == len(expected)


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
