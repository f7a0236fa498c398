"""Which glimpses a step sees: the same ones whatever the number of processes, of the image and its map together."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.errors import DataError, UserError
from ssl_equi.views import saliency_maps
from ssl_equi.views.makers import ViewOptions, normalise
from ssl_equi.views.saccades import (
    ACTION_SIZE,
    SaccadeOptions,
    SaccadeSequence,
    SaccadeViews,
    check_glimpse_encoder,
    describe_saccades,
    described_saccades,
)
from ssl_equi.views.saliency import spectral_residual

ONE_PROCESS = SimpleNamespace(rank=0, world_size=1)
SMALL = SaccadeOptions(glimpse_size=9, inhibition_radius_px=5)
UNIFORM = replace(SMALL, saliency="uniform")


@dataclass(frozen=True)
class Options:
    views: ViewOptions = field(default_factory=ViewOptions)
    image_size: int = 32
    batch_size: int = 8
    seed: int = 0
    compile: bool = False


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> DataSource:
    return open_data("3diebench-p", tiny_data, "test", 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency_maps, "user_cache_path", lambda name: tmp_path / name)


def batch_of(collection: Any, objects: Tensor, view: int = 1) -> ViewBatch:
    """One view of each object, as a loader would yield it."""
    count, views = len(objects), torch.full((len(objects), 1), view)
    pixels = np.empty((count, 1, *collection.image_size, 3), dtype=np.uint8)
    sizes = None if collection.fills_image else np.empty((count, 1, 2), dtype=np.int64)
    collection.read_views(objects.numpy(), views.numpy(), pixels, sizes)
    return ViewBatch(
        images=torch.from_numpy(pixels),
        latents=torch.zeros(count, 1, 0),
        quat_xyzw=None,
        labels=torch.zeros(count, dtype=torch.int64),
        object_indices=objects,
        view_indices=views,
        content_sizes=None if sizes is None else torch.from_numpy(sizes),
    )


def glimpses_of(data: DataSource, options: SaccadeOptions, step: int = 3, **changes: Any) -> SaccadeSequence:
    batch = batch_of(data.train, torch.tensor([4, 11, 0, 23, 8, 2, 19, 7]))
    return SaccadeViews(Options(**changes), data, ONE_PROCESS, options, length=4)(batch, step)


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
    batch = batch_of(data.train, torch.tensor([4, 11, 0, 23, 8, 2, 19, 7]))
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
    objects = torch.tensor([4, 11, 0, 23, 8, 2, 19, 7])
    whole = SaccadeViews(Options(), data, ONE_PROCESS, options, length=5)(batch_of(data.train, objects), 6)
    for rank in range(2):
        processes, mine = SimpleNamespace(rank=rank, world_size=2), slice(4 * rank, 4 * rank + 4)
        make_views = SaccadeViews(Options(), data, processes, options, length=5)
        views = make_views(batch_of(data.train, objects[mine]), 6)
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
    batch = ViewBatch(
        images=images[objects[:, None], views],
        latents=torch.zeros(count, 1, 0),
        quat_xyzw=None,
        labels=torch.zeros(count, dtype=torch.int64),
        object_indices=objects,
        view_indices=views,
    )
    options = SaccadeOptions(saliency="file", saliency_file=tmp_path / "dots.npy", glimpse_size=1, inhibition="none")
    return options, batch, places[objects, views[:, 0]]


def brightness(views: SaccadeSequence, data: DataSource) -> Tensor:
    """[B, V] in [0, 1]: of the fixated pixels, before normalisation."""
    mean, std = torch.tensor(data.mean_rgb), torch.tensor(data.std_rgb)
    return (views.images[..., 0, 0] * std + mean).mean(dim=2)


def test_the_gaze_falls_where_the_file_says(data: DataSource, tmp_path: Path) -> None:
    options, batch, places = dotted(data, tmp_path)
    views = SaccadeViews(Options(), data, ONE_PROCESS, options, length=2)(batch, 0)
    assert (views.fixations - places.unsqueeze(1)).abs().max() <= 1
    assert torch.allclose(brightness(views, data), torch.ones(200, 2), atol=1e-5)
    swapped = SaccadeViews(Options(), data, ONE_PROCESS, replace(options, transposed=True), length=2)(batch, 0)
    assert torch.equal(swapped.fixations, views.fixations)
    assert brightness(swapped, data).mean() < 0.2, "the released code looks where row and column are swapped"


def test_crops_and_flips_move_the_image_and_its_map_together(data: DataSource, tmp_path: Path) -> None:
    options, batch, places = dotted(data, tmp_path)
    options = replace(options, augmentation="crop_flip")
    views = SaccadeViews(Options(), data, ONE_PROCESS, options, length=2)(batch, 0)
    assert (views.fixations[:, 0] - places).abs().max() > 8, "nothing was cropped or flipped"
    seen = brightness(views, data)[:, 0]
    # Where a crop left the dot out, the gaze goes anywhere on black; interpolation dims the rim of a dot.
    dot_is_in = seen > 1e-3
    assert 0.3 < dot_is_in.float().mean() < 1
    assert seen[dot_is_in].mean() > 0.6
    anywhere = replace(options, saliency="uniform", saliency_file=None)
    uniform = SaccadeViews(Options(), data, ONE_PROCESS, anywhere, length=2)(batch, 0)
    assert brightness(uniform, data).mean() < 0.1


def test_drawn_fixations_gather_more_saliency_than_uniform_ones(data: DataSource) -> None:
    batch = batch_of(data.train, torch.arange(24))
    maps = spectral_residual(batch.images[:, 0].permute(0, 3, 1, 2).float() / 255)
    padded = torch.nn.functional.pad(maps, (4, 4, 4, 4))
    mass = {}
    for options in (SMALL, UNIFORM):
        views = SaccadeViews(Options(), data, ONE_PROCESS, options, length=3)
        seen = [
            padded[image, row : row + 9, column : column + 9].sum()
            for step in range(5)
            for image, fixations in enumerate(views(batch, step).fixations.tolist())
            for row, column in fixations
        ]
        mass[options.saliency] = float(torch.stack(seen).mean())
    assert mass["spectral_residual"] > 1.5 * mass["uniform"], mass


def test_another_collection_has_maps_of_its_own(data: DataSource, tmp_path: Path) -> None:
    batch = batch_of(data.evaluation, torch.arange(12))
    views = SaccadeViews(Options(), data, ONE_PROCESS, SMALL, length=3, collection=data.evaluation)
    assert views(batch, 0).images.shape == (12, 3, 3, 9, 9)
    assert views.maps is not None
    expected = spectral_residual(batch.images[:, 0].permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(views.maps.read(torch.arange(12), torch.full((12,), 1)), expected, rtol=2e-3, atol=1e-7)
    options, _, _ = dotted(data, tmp_path)
    with pytest.raises(DataError, match=r"maps of 24 objects with 4 views and split 'test' .* holds 12 with 4"):
        SaccadeViews(Options(), data, ONE_PROCESS, options, length=3, collection=data.evaluation)


def test_pictures_of_their_own_sizes_are_cropped_first(mixed_folder: Path) -> None:
    data = open_data("folder", mixed_folder, "val", 32)
    with pytest.raises(UserError, match=r"have different sizes: choose --saccades\.augmentation crop_flip, which"):
        SaccadeViews(Options(), data, ONE_PROCESS, SMALL, length=3)
    make_views = SaccadeViews(Options(), data, ONE_PROCESS, replace(SMALL, augmentation="crop_flip"), length=3)
    views = make_views(batch_of(data.train, torch.arange(12), view=0), 0)
    assert views.images.shape == (12, 3, 3, 9, 9) and views.images.isfinite().all()
    assert views.fixations.max() < 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"glimpse_size": 0}, r"--saccades\.glimpse-size is 0: give a side of at least 1 pixel"),
        ({"augmentation": "simclr"}, r"--saccades\.augmentation is 'simclr': choose none or crop_flip"),
        ({"saliency": "magic"}, r"--saccades\.saliency is 'magic': choose spectral_residual, centre_surround, uni"),
        ({"saliency": "file"}, r"--saccades\.saliency is file and --saccades\.saliency-file is None: give file and"),
        ({"saliency_file": Path("maps.npy")}, r"saliency-file is maps\.npy: give file and a file, or neither"),
        ({"saliency": "file", "saliency_file": Path("nowhere.npy")}, r"nowhere\.npy is missing"),
        ({"inhibition": "disc"}, "the inhibition's shape is 'disc': choose circle, square or none"),
        ({"inhibition_radius_px": -3}, "the inhibition's radius is -3 pixels"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(data: DataSource, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, DataError, ValueError), match=message):
        SaccadeViews(Options(), data, ONE_PROCESS, replace(SMALL, **changes), length=3)


def test_one_glimpse_is_not_a_sequence(data: DataSource) -> None:
    with pytest.raises(UserError, match="--observed-views is 0: observe at least 1 glimpse"):
        SaccadeViews(Options(), data, ONE_PROCESS, SMALL, length=1)


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
