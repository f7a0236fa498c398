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
        RandomResizedCrop(16), HorizontalFlip(probability=0.5), ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
        Grayscale(probability=0.2), GaussianBlur(5, probability=0.5), Solarize(probability=0.2),
    )
)  # fmt: skip


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 24, height: int = 20, width: int = 28) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(1))


def draw(pipeline: ViewPipeline = PIPELINE, count: int = 24, seed: int = 0, shared_by: int = 1) -> ViewParameters:
    return pipeline.draw(count, source_sizes=(20, 28), generator=seeded(seed), shared_by=shared_by)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_views_are_replayed_to_the_bit() -> None:
    state, batch, drawn = torch.get_rng_state(), images(), draw()
    before = batch.clone()
    views = PIPELINE.apply(batch, drawn)
    again = PIPELINE.draw(24, source_sizes=torch.tensor([[20, 28]] * 24), generator=seeded())
    assert torch.equal(views, PIPELINE.apply(batch, again)) and torch.equal(batch, before)
    assert views.shape == (24, 3, 16, 16) and views.dtype == torch.float32 and not views.requires_grad
    assert 0 <= views.min() <= views.max() <= 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views, PIPELINE.apply(batch, drawn)), "autocast doesn't coarsen the pixels"
    stored = (batch * 255).to(torch.uint8)
    assert torch.equal(PIPELINE.apply(stored, drawn), PIPELINE.apply(stored.float() / 255, drawn))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_batches_blocks_and_memory_formats_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, batch = draw(), images()
    views = PIPELINE.apply(batch, drawn)
    alone = [PIPELINE.apply(batch[row : row + 1], drawn.rows(slice(row, row + 1))) for row in range(24)]
    assert_close(torch.cat(alone), views)
    assert_close(PIPELINE.apply(batch.contiguous(memory_format=torch.channels_last), drawn), views)
    order = torch.randperm(24, generator=seeded())
    assert_close(PIPELINE.apply(batch[order], drawn.rows(order)), views[order])
    first, second = draw(count=8), draw(count=16, seed=1)
    separate = torch.cat([PIPELINE.apply(batch[:8], first), PIPELINE.apply(batch[8:], second)])
    assert_close(PIPELINE.apply(batch, concatenate([first, second])), separate)
    monkeypatch.setattr(pipeline_module, "CPU_BLOCK_BYTES", 5 * 3 * 4 * 16 * 16)
    assert_close(PIPELINE.apply(batch, drawn), views)


def test_two_draws_differ_and_rows_differ() -> None:
    generator = seeded()
    first, second = (PIPELINE.draw(24, source_sizes=(20, 28), generator=generator) for _ in range(2))
    assert first.crop and second.crop and first.jitter
    assert not torch.equal(first.crop.top, second.crop.top)
    assert len(first.jitter.order.unique(dim=0)) > 5


def test_a_chunk_shares_one_draw() -> None:
    drawn = draw(shared_by=6)
    chunks = PIPELINE.apply(images(1).expand(24, -1, -1, -1), drawn).unflatten(0, (4, 6))
    assert_close(chunks, chunks[:, :1].expand_as(chunks))
    for other in range(1, 4):
        assert (chunks[0, 0] - chunks[other, 0]).abs().max() > 0.05
    alone = draw(count=4)
    assert drawn.jitter and drawn.crop and alone.jitter and alone.crop
    assert torch.equal(drawn.jitter.order, alone.jitter.order.repeat_interleave(6, dim=0))
    assert torch.equal(drawn.crop.top, alone.crop.top.repeat_interleave(6))


def test_a_chunk_of_different_sizes_shares_the_crop_relative_to_the_source() -> None:
    sizes = torch.tensor([[100, 200], [50, 400], [1, 1], [300, 300]])
    crop = PIPELINE.draw(4, source_sizes=sizes, generator=seeded(), shared_by=4).crop
    assert crop is not None
    assert torch.equal(torch.stack([crop.source_height, crop.source_width], dim=1), sizes.float())
    for start, length, source in (
        (crop.top, crop.height, crop.source_height),
        (crop.left, crop.width, crop.source_width),
    ):
        assert (start >= 0).all() and (length >= 1).all() and (start + length <= source).all()
        relative = (start / source)[[0, 1, 3]]
        assert_close(relative, relative[:1].expand(3), 0.02)


def test_a_padded_canvas_gives_the_same_views_and_is_never_read() -> None:
    sizes = torch.tensor([[20, 28], [13, 9], [1, 1], [20, 5]])
    canvas = torch.full((4, 3, 20, 28), float("nan"))
    each = [images(1, *size) for size in sizes.tolist()]
    for row, (image, (height, width)) in enumerate(zip(each, sizes.tolist())):
        canvas[row, :, :height, :width] = image[0]
    drawn = PIPELINE.draw(4, source_sizes=sizes, generator=seeded())
    views = PIPELINE.apply(canvas, drawn)
    assert torch.isfinite(views).all()
    alone = [PIPELINE.apply(image, drawn.rows(slice(row, row + 1))) for row, image in enumerate(each)]
    assert_close(views, torch.cat(alone))


SHORTER = ViewPipeline((RandomResizedCrop(16, scale=(0.5, 1.0)), *PIPELINE.transforms[2:4]))
OTHER_ORDER = ViewPipeline((PIPELINE.transforms[0], PIPELINE.transforms[3], PIPELINE.transforms[2]))
OTHER_BLUR = ViewPipeline((*PIPELINE.transforms[:2], GaussianBlur(3)))
NO_CROP = ViewPipeline(PIPELINE.transforms[1:3])


def test_several_views_are_those_of_each_pipeline_alone(
    device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a GPU makes some of them together, as many as its block holds."""
    pipelines = [SHORTER, PIPELINE, OTHER_ORDER, PIPELINE, OTHER_BLUR, NO_CROP, SHORTER]
    drawn = [draw(pipeline, seed=seed) for seed, pipeline in enumerate(pipelines)]
    expected = [pipeline.apply(images(), parameters) for pipeline, parameters in zip(pipelines, drawn)]
    for view, alone in zip(apply_each(pipelines, images(), drawn), expected):
        assert torch.equal(view, alone)
    for bytes_of_a_block in (pipeline_module.GPU_BLOCK_BYTES, 2 * 24 * 3 * 4 * 16 * 16, 1):
        monkeypatch.setattr(pipeline_module, "GPU_BLOCK_BYTES", bytes_of_a_block)
        for view, alone in zip(apply_each(pipelines, images().to("cuda"), drawn), expected):
            assert_close(view.cpu(), alone, 1e-5)


def test_on_a_gpu_views_that_are_alike_cost_the_launches_of_one(device: SimulatedDevice) -> None:
    pipelines = [PIPELINE, PIPELINE, SHORTER, PIPELINE]
    drawn = [draw(pipeline, seed=1) for pipeline in pipelines]
    there, launches = images().to("cuda"), []
    apply_each([PIPELINE], there, drawn[:1])  # makes the constants
    for count in (1, 4):
        before = device.launches
        apply_each(pipelines[:count], there, drawn[:count])
        launches.append(device.launches - before)
    assert launches[0] == launches[1] <= 120


def test_without_a_crop_the_size_stays() -> None:
    assert (NO_CROP.output_size, PIPELINE.output_size) == (None, 16)
    assert NO_CROP.apply(images(), draw(NO_CROP)).shape == (24, 3, 20, 28)


def test_the_order_of_the_transforms_is_kept() -> None:
    grey_last = ViewPipeline((CentralCrop(8), Solarize(threshold=0.5), Grayscale()))
    solarised_last = ViewPipeline((CentralCrop(8), Grayscale(), Solarize(threshold=0.5)))
    drawn = draw(grey_last)
    one, other = grey_last.apply(images(), drawn), solarised_last.apply(images(), drawn)
    assert torch.equal(one[:, 0], one[:, 1])
    assert other.max() <= 0.5 and (one - other).abs().max() > 0.05


# ---------------------------------------------------------------- rows of parameters


def five_rows() -> ViewParameters:
    numbers, whole = torch.arange(5.0), torch.full((5,), 32.0)
    applied = torch.arange(5) % 2 == 0
    crop = CropParameters(applied | True, numbers, numbers + 1, whole / 2, whole / 4, whole, whole, output_size=8)
    return ViewParameters(crop=crop, blur=BlurParameters(applied, numbers * 0.5))


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, 3), [1, 2]), (torch.tensor([3, 0]), [3, 0]), (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
    ],
)  # fmt: skip
def test_rows_are_chosen_in_every_field(index: slice | Tensor, expected: list[int]) -> None:
    chosen = five_rows().rows(index)
    assert chosen.crop and chosen.blur and chosen.jitter is None
    assert chosen.crop.top.tolist() == expected and chosen.crop.left.tolist() == [number + 1 for number in expected]
    assert chosen.blur.sigma.tolist() == [number * 0.5 for number in expected]
    assert chosen.crop.output_size == 8 and len(chosen) == len(chosen.crop) == len(expected)


def test_rows_move_and_are_joined_again() -> None:
    whole = five_rows()
    moved, joined = whole.to("meta"), concatenate([whole.rows(slice(0, 2)), whole.rows(slice(2, 5))])
    assert whole.crop and whole.blur and moved.crop and moved.blur and joined.crop and joined.blur
    assert moved.crop.top.device.type == moved.blur.applied.device.type == "meta"
    assert torch.equal(joined.crop.width, whole.crop.width) and torch.equal(joined.blur.applied, whole.blur.applied)
    assert moved.crop.output_size == joined.crop.output_size == 8
    assert len(ViewParameters()) == 0
