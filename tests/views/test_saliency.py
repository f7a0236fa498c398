"""Saliency maps: where a spot or an odd colour lies, against NumPy; computed once, and refused when of other images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import Canvas, CenterCrop
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from ssl_equi.views import saliency
from ssl_equi.views.saliency import (
    SALIENCY_SOURCES,
    SaliencyMaps,
    centre_surround,
    computed_saliency,
    spectral_residual,
)
from tests.fakes import stored_batch

SOURCES = [spectral_residual, centre_surround]
Source = Callable[[Tensor], Tensor]
Captured = pytest.CaptureFixture[str]


def noisy_images(count: int = 3, height: int = 48, width: int = 40) -> Tensor:
    return 0.4 + 0.1 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [(48, 40), (200, 90), (3, 100), (1, 1)])
def test_maps_are_distributions_of_the_images_size(source: Source, size: tuple[int, int]) -> None:
    maps = source(noisy_images(3, *size))
    assert maps.shape == (3, *size) and maps.dtype == torch.float32
    assert (maps >= 0).all() and torch.allclose(maps.sum(dim=(1, 2)), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_an_image_without_contrast_has_the_uniform_map(source: Source) -> None:
    images = noisy_images()
    images[1] = torch.tensor([0.2, 0.7, 0.4]).view(3, 1, 1)
    images[2] = 0
    maps = source(images)
    alone = torch.cat([source(image) for image in images.split(1)])
    assert torch.allclose(alone, maps, rtol=1e-4), "a map is the same in any batch"
    assert torch.allclose(maps[1:], torch.full((2, 48, 40), 1 / (48 * 40)), rtol=1e-4)
    assert maps[0].max() > 1.5 / (48 * 40)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scale", [1, 3], ids=["as it is", "shrunk to the working size"])
def test_a_bright_spot_is_the_most_salient_place(source: Source, scale: int) -> None:
    images = noisy_images(1, 60, 60)
    images[0, :, 14:18, 40:44] = 1
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    maps = source(images)
    row, column = divmod(int(maps[0].argmax()), 60 * scale)
    assert abs(row / scale - 15.5) <= 2 and abs(column / scale - 41.5) <= 2
    spot = maps[0, 10 * scale : 22 * scale, 36 * scale : 48 * scale].sum()
    assert spot > 2.5 * (12 * 12) / (60 * 60)


def test_an_odd_colour_of_the_same_grey_is_salient_to_the_centre_surround_contrast() -> None:
    images = torch.full((1, 3, 64, 64), 0.5)
    images[0, :, 20:28, 40:48] = torch.tensor([0.7, 0.4, 0.4]).view(3, 1, 1)  # mean 0.5
    row, column = divmod(int(centre_surround(images)[0].argmax()), 64)
    assert 20 <= row < 28 and 40 <= column < 48


def test_the_spectral_residual_is_that_of_a_numpy_formula() -> None:
    images = noisy_images(1, 32, 24)
    red, green, blue = images[0].double().numpy()
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    spectrum = np.fft.fft2(grey - grey.mean())
    log_amplitude = np.log(np.abs(spectrum) + np.sqrt(32 * 24 / 12) / 255)
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    average = np.mean([np.roll(log_amplitude, shift, axis=(0, 1)) for shift in shifts], axis=0)
    residual = np.log(np.abs(spectrum) + 1e-300) - average
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    offsets = np.arange(-8, 9)
    kernel = np.exp(-(offsets**2) / (2 * 2.5**2))
    kernel /= kernel.sum()
    padded = np.pad(energy, 8, mode="reflect")
    smoothed = np.apply_along_axis(np.convolve, 0, padded, kernel, mode="valid")
    smoothed = np.apply_along_axis(np.convolve, 1, smoothed, kernel, mode="valid")
    expected = smoothed / smoothed.sum()
    assert np.allclose(spectral_residual(images)[0].numpy(), expected, rtol=1e-4)


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def train(tiny_data: Path) -> ShardDataset:
    """24 objects with 4 views of 32 x 32 pixels."""
    return ShardDataset(tiny_data, "train")


@pytest.fixture
def save(tmp_path: Path) -> Callable[[np.ndarray], Path]:
    def write(maps: np.ndarray) -> Path:
        np.save(tmp_path / "maps.npy", maps)
        return tmp_path / "maps.npy"

    return write


def pictures_of(collection: ViewCollection, objects: list[int], views: list[int]) -> list[Tensor]:
    """float32 [1, 3, height, width] of each, without what lies around it."""
    batch = stored_batch(collection, torch.tensor(objects), torch.tensor(views))
    images = batch.images[:, 0].permute(0, 3, 1, 2).float() / 255
    sizes = [collection.image_size] * len(images) if batch.content_sizes is None else batch.content_sizes[:, 0].tolist()
    return [image[None, :, :height, :width] for image, (height, width) in zip(images, sizes)]


@pytest.mark.parametrize("source", SALIENCY_SOURCES)
def test_computed_maps_are_those_of_each_view(train: ShardDataset, source: str, tmp_path: Path) -> None:
    maps = computed_saliency(train, source, tmp_path)
    objects, views = [0, 5, 23, 5], [3, 0, 1, 2]
    expected = SALIENCY_SOURCES[source](torch.cat(pictures_of(train, objects, views)))
    found = maps.read(torch.tensor(objects), torch.tensor(views))
    assert found.shape == (4, 32, 32) and found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=2e-3, atol=1e-7)
    assert torch.allclose(found.sum(dim=(1, 2)), torch.ones(4))


def test_maps_of_objects_with_different_numbers_of_views(uneven_data: Path, tmp_path: Path, capsys: Captured) -> None:
    split = ShardDataset(uneven_data, "train")
    maps = computed_saliency(split, "spectral_residual", tmp_path)
    assert f"saliency of train: {split.num_images} maps in" in capsys.readouterr().out
    objects, views = [2, 1, 4, 23], [5, 2, 4, 3]
    expected = spectral_residual(torch.cat(pictures_of(split, objects, views)))
    torch.testing.assert_close(maps.read(torch.tensor(objects), torch.tensor(views)), expected, rtol=2e-3, atol=1e-7)
    assert not maps._maps[1, 3:].any()


def test_maps_are_computed_once_for_each_set_and_source(
    train: ShardDataset, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    first = computed_saliency(train, "spectral_residual", tmp_path / "new")
    assert "computed the spectral_residual saliency of train: 96 maps in" in capsys.readouterr().out
    assert not list(tmp_path.rglob(".writing-*"))
    computed_saliency(train, "centre_surround", tmp_path / "new")
    computed_saliency(ShardDataset(tiny_data, "val"), "spectral_residual", tmp_path / "new")
    assert len(list((tmp_path / "new").glob("*.npy"))) == 3

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(saliency, "_compute", refuse)
    again = computed_saliency(ShardDataset(tiny_data, "train"), "spectral_residual", tmp_path / "new")
    objects, views = np.divmod(np.arange(24 * 4), 4)
    assert again.file == first.file
    assert torch.equal(again.read(objects, views), first.read(objects, views))


def test_the_users_cache_folder_is_the_default(
    train: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saliency, "user_cache_path", lambda name: tmp_path / name)
    assert computed_saliency(train, "spectral_residual").file.parent == tmp_path / "ssl_equi" / "saliency"


def test_a_computation_that_breaks_off_leaves_nothing_behind(
    train: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(images: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setitem(SALIENCY_SOURCES, "spectral_residual", break_off)
        with pytest.raises(KeyboardInterrupt):
            computed_saliency(train, "spectral_residual", tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    computed_saliency(train, "spectral_residual", tmp_path)


def test_a_picture_on_a_canvas_has_its_own_map_and_none_around_it(mixed_folder: Path, tmp_path: Path) -> None:
    images = ImageFolder(mixed_folder, "train")
    canvases = SingleViews(images, Canvas(64))
    maps = computed_saliency(canvases, "spectral_residual", tmp_path).read(np.arange(12), np.zeros(12, dtype=np.int64))
    for number, picture in enumerate(pictures_of(canvases, [*range(12)], [0] * 12)):
        height, width = picture.shape[2:]
        expected = SALIENCY_SOURCES["spectral_residual"](picture)[0]
        assert torch.allclose(maps[number, :height, :width], expected, rtol=2e-3, atol=1e-6)
        assert maps[number, height:].sum() == 0 and maps[number, :, width:].sum() == 0
    cropped = SingleViews(images, CenterCrop(64, 64))
    computed_saliency(cropped, "spectral_residual", tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2, "a canvas and a crop of one size have maps of their own"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_a_users_file_is_read_by_object_and_view(
    dtype: type, save: Callable[[np.ndarray], Path], train: ShardDataset, mixed_folder: Path
) -> None:
    maps = np.random.default_rng(0).integers(1, 200, (24, 4, 32, 32)).astype(dtype)
    found = SaliencyMaps(save(maps), train).read(torch.tensor([7, 2]), torch.tensor([3, 0]))
    expected = maps[[7, 2], [3, 0]].astype(np.float64)
    assert np.allclose(found.numpy(), expected / expected.sum(axis=(1, 2), keepdims=True), rtol=1e-5)
    single = SingleViews(ImageFolder(mixed_folder, "train"), CenterCrop(32, 32))
    found = SaliencyMaps(save(maps[:12, 0]), single).read(torch.tensor([7]), torch.tensor([0]))
    assert np.allclose(found[0].numpy(), maps[7, 0] / maps[7, 0].astype(np.float64).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.ones((24, 4, 32, 30), np.float32), "maps of 32 x 30 pixels and the images of split 'train' have 32 x 32"),
        (np.ones((23, 4, 32, 32), np.float32), "maps of 23 objects with 4 views and split 'train' .* holds 24 with 4"),
        (np.ones((24, 32, 32), np.float32), "maps of 24 objects with 1 views"),
        (np.ones((24, 4, 32, 32), np.int32), r"holds int32 \(24, 4, 32, 32\): give one array of float16, float32 or"),
        (np.ones((24, 32), np.float32), r"holds float32 \(24, 32\): give one array"),
        (np.array([None]), "is not a plain .npy array .*: give a .npy file of saliency maps"),
    ],
)
def test_a_file_of_other_images_is_refused_at_once(
    maps: np.ndarray, message: str, save: Callable[[np.ndarray], Path], train: ShardDataset
) -> None:
    with pytest.raises(DataError, match=message):
        SaliencyMaps(save(maps), train)


def test_a_missing_or_cut_file_is_named(
    save: Callable[[np.ndarray], Path], train: ShardDataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npy is missing: give a \.npy file"):
        SaliencyMaps(tmp_path / "nowhere.npy", train)
    file = save(np.ones((24, 4, 32, 32), np.float32))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"maps\.npy has [\d,]+ bytes where its header"):
        SaliencyMaps(file, train)
    np.savez(tmp_path / "several.npz", maps=np.ones(3))
    with pytest.raises(DataError, match=r"several\.npz is not a plain \.npy array"):
        SaliencyMaps(tmp_path / "several.npz", train)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "the map of object 9, view 2, in .* is zero everywhere: give a uniform map"),
        (-1.0, "the map of object 9, view 2, in .* has negative values: give densities, such as exp of log"),
        (np.nan, "the map of object 9, view 2, in .* has values that are not finite: compute it again"),
        (np.inf, "the map of object 9, view 2, in .* has values that are not finite: compute it again"),
    ],
)
def test_a_bad_map_is_named_when_it_is_read(
    value: float, message: str, save: Callable[[np.ndarray], Path], train: ShardDataset
) -> None:
    maps = np.ones((24, 4, 32, 32), np.float32)
    maps[9, 2] = value
    opened = SaliencyMaps(save(maps), train)
    opened.read(torch.tensor([8, 9]), torch.tensor([2, 1]))
    with pytest.raises(DataError, match=message):
        opened.read(torch.tensor([8, 9]), torch.tensor([2, 2]))


def test_an_unwritable_folder_is_said(train: ShardDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*: free some space or choose another folder"):
        computed_saliency(train, "spectral_residual", tmp_path / "file")
