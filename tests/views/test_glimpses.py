"""Glimpses lie where the gaze rests, and the gaze rests where saliency and inhibition of return say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.errors import DataError, UserError
from ssl_equi.views import saliency
from ssl_equi.views.glimpses import (
    ACTION_SIZE,
    Glimpses,
    GlimpseSequence,
    SaccadeOptions,
    check_glimpse_encoder,
    describe_saccades,
    described_saccades,
    draw_fixations,
    extract_glimpses,
    fixation_positions,
)
from ssl_equi.views.makers import normalise
from ssl_equi.views.saliency import spectral_residual
from tests.fakes import Processes, ViewsConfig, stored_batch, view_batch

SMALL = SaccadeOptions(glimpse_size=9, inhibition_radius_px=5)
UNIFORM = replace(SMALL, saliency="uniform")


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_maps(count: int, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(1)) ** 4


def painted(height: int, width: int, row: int, column: int) -> Tensor:
    """An image [1, 1, height, width] whose only bright pixel is that one."""
    image = torch.zeros(1, 1, height, width)
    image[0, 0, row, column] = 1
    return image


def bright_pixel(glimpse: Tensor) -> tuple[int, int]:
    return divmod(int(glimpse.flatten().argmax()), glimpse.shape[-1])


@pytest.mark.parametrize("size", [1, 2, 5, 32, 33])
@pytest.mark.parametrize("place", [(0, 0), (20, 60), (47, 95), (20, 0)])
def test_the_centre_of_a_glimpse_is_its_fixation_to_half_a_pixel(size: int, place: tuple[int, int]) -> None:
    glimpse = extract_glimpses(painted(48, 96, *place), torch.tensor([[place]]), size)[0, 0, 0]
    assert glimpse.sum() == 1
    assert all(abs(found - (size - 1) / 2) <= 0.5 for found in bright_pixel(glimpse))


def test_glimpses_are_pixels_of_the_image_at_a_pitch_of_one_and_zero_outside() -> None:
    images = torch.rand(3, 2, 20, 30, generator=torch.Generator().manual_seed(0))
    fixations = torch.tensor([[[10, 15], [0, 0]], [[19, 29], [3, 28]], [[7, 7], [7, 7]]])
    glimpses = extract_glimpses(images, fixations, 6)
    assert glimpses.shape == (3, 2, 2, 6, 6)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)))
    for image, glimpse in np.ndindex(3, 2):
        row, column = fixations[image, glimpse].tolist()
        expected = padded[image, :, row : row + 6, column : column + 6]
        assert np.array_equal(glimpses[image, glimpse].numpy(), expected)


def test_a_glimpse_is_not_transposed_unless_the_released_code_is_to_be_replicated() -> None:
    fixation = torch.tensor([[[20, 60]]])
    straight = painted(96, 96, 20, 60)
    swapped = painted(96, 96, 60, 20)
    assert bright_pixel(extract_glimpses(straight, fixation, 32)[0, 0, 0]) == (16, 16)
    assert extract_glimpses(swapped, fixation, 32).sum() == 0
    assert bright_pixel(extract_glimpses(swapped, fixation, 32, transposed=True)[0, 0, 0]) == (16, 16)
    assert extract_glimpses(straight, fixation, 32, transposed=True).sum() == 0
    # The patch itself stays upright: what lies one row below is one row below.
    below = extract_glimpses(painted(96, 96, 61, 20), fixation, 32, transposed=True)[0, 0, 0]
    assert bright_pixel(below) == (17, 16)
    wide = extract_glimpses(torch.ones(1, 1, 20, 96), torch.tensor([[[5, 90]]]), 4, transposed=True)
    assert wide.sum() == 0, "row 90 of an image of 20 rows is off the image"


def test_the_gradient_of_a_pixel_counts_the_glimpses_that_show_it() -> None:
    images = torch.rand(2, 1, 6, 5, requires_grad=True)
    fixations = torch.tensor([[[0, 0], [3, 2]], [[5, 4], [5, 4]]])
    extract_glimpses(images, fixations, 3).sum().backward()
    expected = torch.zeros(2, 1, 6, 5)
    expected[0, 0, :2, :2] += 1
    expected[0, 0, 2:5, 1:4] += 1
    expected[1, 0, 4:, 3:] += 2
    assert torch.equal(images.grad, expected)


def test_fixations_follow_the_saliency() -> None:
    saliency = random_maps(1, 8, 10)
    draws = 40_000
    found = draw_fixations(saliency.expand(draws, -1, -1), uniforms(draws, 1), "none")[:, 0]
    counts = torch.bincount(found[:, 0] * 10 + found[:, 1], minlength=80).double().numpy()
    expected = draws * (saliency / saliency.sum()).double().flatten().numpy()
    frequent = expected >= 5
    chi_square = ((counts - expected)[frequent] ** 2 / expected[frequent]).sum()
    freedom = frequent.sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_the_draw_is_the_inverse_of_the_cumulated_saliency() -> None:
    saliency, numbers = random_maps(50), uniforms(50, 1)
    found = draw_fixations(saliency, numbers, "none")[:, 0]
    for image in range(50):
        cumulated = np.cumsum(saliency[image].double().numpy().ravel())
        pixel = np.searchsorted(cumulated, numbers[image, 0].item() * cumulated[-1], side="right")
        assert tuple(found[image].tolist()) == divmod(int(pixel), 32)


@pytest.mark.parametrize("saliency", ["peaked", "uniform", "zero"])
@pytest.mark.parametrize("shape", ["circle", "square"])
def test_no_fixation_lies_within_the_inhibited_surroundings_of_an_earlier_one(shape: str, saliency: str) -> None:
    maps = {"peaked": random_maps(300) ** 3, "uniform": torch.ones(300, 24, 32), "zero": torch.zeros(300, 24, 32)}
    found = draw_fixations(maps[saliency], uniforms(300, 5), shape, 5).double()
    apart = found.unsqueeze(1) - found.unsqueeze(2)
    distance = apart.square().sum(dim=3).sqrt() if shape == "circle" else apart.abs().amax(dim=3)
    different = ~torch.eye(5, dtype=torch.bool)
    assert distance[:, different].min() > 5
    assert (found >= 0).all() and (found[..., 0] < 24).all() and (found[..., 1] < 32).all()


def test_without_inhibition_the_gaze_returns() -> None:
    found = draw_fixations(random_maps(300) ** 8, uniforms(300, 5), "none")
    assert (found[:, 0] == found[:, 1]).all(dim=1).any()


def test_pixels_without_saliency_are_looked_at_only_when_nothing_salient_is_left() -> None:
    maps = torch.zeros(4000, 21, 21)
    maps[:, 10, 10] = 3
    found = draw_fixations(maps, uniforms(4000, 2), "circle", 4)
    assert (found[:, 0] == 10).all()
    rows = torch.arange(21).view(-1, 1)
    left = (rows - 10) ** 2 + (rows.T - 10) ** 2 > 16
    counts = torch.bincount(found[:, 1, 0] * 21 + found[:, 1, 1], minlength=441).view(21, 21)
    assert (counts[~left] == 0).all()
    expected = 4000 / int(left.sum())
    chi_square = float(((counts[left] - expected) ** 2 / expected).sum())
    assert abs(chi_square - int(left.sum())) < 5 * (2 * int(left.sum())) ** 0.5


def test_inhibition_is_lifted_when_it_has_taken_every_pixel() -> None:
    saliency = torch.zeros(50, 8, 8)
    saliency[:, 2, 3] = 1
    found = draw_fixations(saliency, uniforms(50, 12), "square", 3)
    first, times = torch.tensor([2, 3]), (found == torch.tensor([2, 3])).all(dim=2)
    assert (found[:, 0] == first).all()
    assert (times.sum(dim=1) > 1).all(), "all four quarters were seen, and the gaze starts anew at the salient pixel"


def test_the_same_numbers_give_the_same_fixations_in_any_batch() -> None:
    saliency, numbers = random_maps(40), uniforms(40, 5)
    whole = draw_fixations(saliency, numbers, "circle", 6)
    halves = [draw_fixations(saliency[rows], numbers[rows], "circle", 6) for rows in (slice(0, 20), slice(20, 40))]
    assert torch.equal(torch.cat(halves), whole)
    assert torch.equal(draw_fixations(saliency * 8, numbers, "circle", 6), whole), "a factor doesn't matter"


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_fall_on_salient_pixels(number: float) -> None:
    saliency = torch.zeros(1, 6, 7)
    saliency[0, 2, 3], saliency[0, 4, 1] = 0.1, 0.7
    found = draw_fixations(saliency, torch.tensor([[number]], dtype=torch.float64), "none")
    # The lowest numbers, less than a billionth of all, belong to the pixels before the first salient one.
    assert found.flatten().tolist() == ([0, 0] if number == 0 else [5, 6])
    inner = torch.tensor([[1e-6 if number == 0 else 1 - 1e-6]], dtype=torch.float64)
    found = draw_fixations(saliency, inner, "none")
    assert found.flatten().tolist() == ([2, 3] if number == 0 else [4, 1])


def test_positions_are_in_units_of_the_sides() -> None:
    positions = fixation_positions(torch.tensor([[[20, 60], [0, 0]]]), 40, 80)
    assert torch.equal(positions, torch.tensor([[[0.5, 0.75], [0.0, 0.0]]]))


# ---------------------------------------------------------------- of a batch


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> DataSource:
    return open_data("3diebench-p", tiny_data, "test", 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency, "user_cache_path", lambda name: tmp_path / name)


EIGHT = torch.tensor([4, 11, 0, 23, 8, 2, 19, 7])


def glimpses_of(data: DataSource, options: SaccadeOptions, step: int = 3, **changes: Any) -> GlimpseSequence:
    batch = stored_batch(data.train, EIGHT, 1)
    return Glimpses(ViewsConfig(**changes), data, Processes(), options, length=4)(batch, step)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_glimpses_come_with_the_jumps_between_them(data: DataSource, augmentation: str) -> None:
    views = glimpses_of(data, replace(SMALL, augmentation=augmentation))
    assert views.images.shape == (8, 4, 3, 9, 9) and views.images.dtype == torch.float32
    assert views.fixations.shape == views.positions.shape == (8, 4, 2)
    assert torch.equal(views.positions, views.fixations / 32)
    steps, from_first, to_last = views.steps(), views.from_first(), views.to_last()
    assert steps is not None and from_first is not None and to_last is not None
    assert steps.shape == (8, 3, ACTION_SIZE)
    assert torch.equal(steps, views.positions[:, 1:] - views.positions[:, :-1])
    assert torch.allclose(steps.sum(dim=1), from_first[:, -1], atol=1e-6)
    assert torch.equal(from_first[:, -1], to_last[:, 0])
    apart = (views.fixations.unsqueeze(1) - views.fixations.unsqueeze(2)).double().square().sum(dim=3).sqrt()
    assert apart[:, ~torch.eye(4, dtype=torch.bool)].min() > 5


def test_glimpses_are_pixels_of_the_normalised_image_with_its_mean_around(data: DataSource) -> None:
    views = glimpses_of(data, SMALL)
    batch = stored_batch(data.train, EIGHT, 1)
    images = normalise(batch.images[:, 0].permute(0, 3, 1, 2).float() / 255, data)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    for image, glimpse in np.ndindex(8, 4):
        row, column = views.fixations[image, glimpse].tolist()
        assert torch.equal(views.images[image, glimpse], padded[image, :, row : row + 9, column : column + 9])


@pytest.mark.parametrize("options", [SMALL, UNIFORM, replace(SMALL, augmentation="crop_flip")])
def test_glimpses_are_a_function_of_seed_and_step(data: DataSource, options: SaccadeOptions) -> None:
    first, again = glimpses_of(data, options), glimpses_of(data, options)
    assert torch.equal(first.images, again.images) and torch.equal(first.fixations, again.fixations)
    assert not torch.equal(glimpses_of(data, options, step=4).fixations, first.fixations)
    assert not torch.equal(glimpses_of(data, options, seed=1).fixations, first.fixations)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_two_processes_see_the_glimpses_of_one(data: DataSource, augmentation: str) -> None:
    options = replace(SMALL, augmentation=augmentation)
    whole = Glimpses(ViewsConfig(), data, Processes(), options, length=5)(stored_batch(data.train, EIGHT, 1), 6)
    for rank in range(2):
        processes, mine = Processes(rank, 2), slice(4 * rank, 4 * rank + 4)
        make_views = Glimpses(ViewsConfig(), data, processes, options, length=5)
        views = make_views(stored_batch(data.train, EIGHT[mine], 1), 6)
        assert torch.equal(views.fixations, whole.fixations[mine])
        assert torch.allclose(views.images, whole.images[mine], atol=1e-6)


def dotted(data: DataSource, tmp_path: Path, count: int = 200) -> tuple[SaccadeOptions, ViewBatch, Tensor]:
    """Black images whose saliency is where a bright square of 3 x 3 pixels lies, centred on rows [count, 2]."""
    places = torch.randint(4, 28, (24, 4, 2), generator=torch.Generator().manual_seed(0))
    maps = np.zeros((24, 4, 32, 32), dtype=np.float32)
    images = torch.zeros(24, 4, 32, 32, 3, dtype=torch.uint8)
    for number, view in np.ndindex(24, 4):
        row, column = places[number, view].tolist()
        maps[number, view, row - 1 : row + 2, column - 1 : column + 2] = 1
        images[number, view, row - 1 : row + 2, column - 1 : column + 2] = 255
    np.save(tmp_path / "dots.npy", maps)
    generator = torch.Generator().manual_seed(1)
    objects = torch.randint(24, (count,), generator=generator)
    views = torch.randint(4, (count, 1), generator=generator)
    batch = view_batch(images[objects[:, None], views], object_indices=objects, view_indices=views)
    options = SaccadeOptions(saliency="file", saliency_file=tmp_path / "dots.npy", glimpse_size=1, inhibition="none")
    return options, batch, places[objects, views[:, 0]]


def brightness(views: GlimpseSequence, data: DataSource) -> Tensor:
    """[B, V] in [0, 1]: of the fixated pixels, before normalisation."""
    mean, std = torch.tensor(data.mean_rgb), torch.tensor(data.std_rgb)
    return (views.images[..., 0, 0] * std + mean).mean(dim=2)


def test_the_gaze_falls_where_the_file_says(data: DataSource, tmp_path: Path) -> None:
    options, batch, places = dotted(data, tmp_path)
    views = Glimpses(ViewsConfig(), data, Processes(), options, length=2)(batch, 0)
    assert (views.fixations - places.unsqueeze(1)).abs().max() <= 1
    assert torch.allclose(brightness(views, data), torch.ones(200, 2), atol=1e-5)
    swapped = Glimpses(ViewsConfig(), data, Processes(), replace(options, transposed=True), length=2)(batch, 0)
    assert torch.equal(swapped.fixations, views.fixations)
    assert brightness(swapped, data).mean() < 0.2, "the released code looks where row and column are swapped"


def test_crops_and_flips_move_the_image_and_its_map_together(data: DataSource, tmp_path: Path) -> None:
    options, batch, places = dotted(data, tmp_path)
    options = replace(options, augmentation="crop_flip")
    views = Glimpses(ViewsConfig(), data, Processes(), options, length=2)(batch, 0)
    assert (views.fixations[:, 0] - places).abs().max() > 8, "nothing was cropped or flipped"
    seen = brightness(views, data)[:, 0]
    # Where a crop left the dot out, the gaze goes anywhere on black; interpolation dims the rim of a dot.
    dot_is_in = seen > 1e-3
    assert 0.3 < dot_is_in.float().mean() < 1
    assert seen[dot_is_in].mean() > 0.6
    anywhere = replace(options, saliency="uniform", saliency_file=None)
    uniform = Glimpses(ViewsConfig(), data, Processes(), anywhere, length=2)(batch, 0)
    assert brightness(uniform, data).mean() < 0.1


def test_drawn_fixations_gather_more_saliency_than_uniform_ones(data: DataSource) -> None:
    batch = stored_batch(data.train, torch.arange(24), 1)
    maps = spectral_residual(batch.images[:, 0].permute(0, 3, 1, 2).float() / 255)
    padded = torch.nn.functional.pad(maps, (4, 4, 4, 4))
    mass = {}
    for options in (SMALL, UNIFORM):
        views = Glimpses(ViewsConfig(), data, Processes(), options, length=3)
        seen = [
            padded[image, row : row + 9, column : column + 9].sum()
            for step in range(5)
            for image, fixations in enumerate(views(batch, step).fixations.tolist())
            for row, column in fixations
        ]
        mass[options.saliency] = float(torch.stack(seen).mean())
    assert mass["spectral_residual"] > 1.5 * mass["uniform"], mass


def test_another_collection_has_maps_of_its_own(data: DataSource, tmp_path: Path) -> None:
    batch = stored_batch(data.evaluation, torch.arange(12), 1)
    views = Glimpses(ViewsConfig(), data, Processes(), SMALL, length=3, collection=data.evaluation)
    assert views(batch, 0).images.shape == (12, 3, 3, 9, 9)
    assert views.maps is not None
    expected = spectral_residual(batch.images[:, 0].permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(views.maps.read(torch.arange(12), torch.full((12,), 1)), expected, rtol=2e-3, atol=1e-7)
    options, _, _ = dotted(data, tmp_path)
    with pytest.raises(DataError, match=r"maps of 24 objects with 4 views and split 'test' .* holds 12 with 4"):
        Glimpses(ViewsConfig(), data, Processes(), options, length=3, collection=data.evaluation)


def test_pictures_of_their_own_sizes_are_cropped_first(mixed_folder: Path) -> None:
    data = open_data("folder", mixed_folder, "val", 32)
    with pytest.raises(UserError, match=r"have different sizes: choose --saccades\.augmentation crop_flip, which"):
        Glimpses(ViewsConfig(), data, Processes(), SMALL, length=3)
    make_views = Glimpses(ViewsConfig(), data, Processes(), replace(SMALL, augmentation="crop_flip"), length=3)
    views = make_views(stored_batch(data.train, torch.arange(12)), 0)
    assert views.images.shape == (12, 3, 3, 9, 9) and views.images.isfinite().all()
    assert views.fixations.max() < 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"glimpse_size": 0}, "--glimpse-size is 0"),
        ({"augmentation": "simclr"}, "--augmentation is '?simclr'?: choose"),
        ({"saliency": "magic"}, "--saliency is '?magic'?: choose"),
        ({"saliency": "file"}, r"--saccades\.saliency is file and --saccades\.saliency-file is None: give file and"),
        ({"saliency_file": Path("maps.npy")}, r"saliency-file is maps\.npy: give file and a file, or neither"),
        ({"saliency": "file", "saliency_file": Path("nowhere.npy")}, r"nowhere\.npy is missing"),
        ({"inhibition": "disc"}, "--inhibition is '?disc'?: choose"),
        ({"inhibition_radius_px": -3}, "--inhibition-radius-px is -3"),
        (
            {"inhibition_radius_px": 23},
            "is 23, which leaves nothing of an image of 32 x 32 .* give less than 23",
        ),
        ({"inhibition": "square", "inhibition_radius_px": 16}, "after a look at its middle: give less than 16"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(data: DataSource, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, DataError, ValueError), match=message):
        Glimpses(ViewsConfig(), data, Processes(), replace(SMALL, **changes), length=3)


def test_an_encoder_of_fixed_input_size_is_refused_before_training() -> None:
    check_glimpse_encoder("resnet18", 96, SaccadeOptions(glimpse_size=32))
    check_glimpse_encoder("vit_tiny_patch16_224", 96, SaccadeOptions(glimpse_size=96))
    with pytest.raises(
        UserError, match="--encoder vit_tiny_patch16_224 takes images of one size, and glimpses have 32"
    ):
        check_glimpse_encoder("vit_tiny_patch16_224", 96, SaccadeOptions(glimpse_size=32))


def test_a_description_gives_the_options_back_for_other_images() -> None:
    options = replace(SMALL, saliency="file", saliency_file=Path("train.npy"), augmentation="crop_flip")
    described = describe_saccades(options, observed_views=4)
    assert described["source"] == "saccades" and described["observed_views"] == 4
    assert described["glimpses"]["saliency_file"] == "train.npy"
    expected = replace(options, saliency_file=Path("test.npy"), augmentation="none")
    assert described_saccades(described, Path("test.npy")) == expected
    with pytest.raises(UserError, match="the sequences of this model are rendered, not saccades"):
        described_saccades({"source": "rendered"})
