"""Saliency maps in files: computed once, read back as they were, and refused when they are of other images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.fit import Canvas, CenterCrop
from ssl_equi.data.image_folder import ImageFolder
from ssl_equi.data.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from ssl_equi.views import saliency_maps
from ssl_equi.views.saliency_maps import SALIENCY_SOURCES, SaliencyMaps, computed_saliency

ALL_VIEWS = [(number, view) for number in range(24) for view in range(4)]


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


def pixels_of(collection: ViewCollection, objects: list[int], views: list[int]) -> torch.Tensor:
    """float32 [b, 3, H, W]"""
    pixels = np.empty((len(objects), 1, *collection.image_size, 3), dtype=np.uint8)
    sizes = np.empty((len(objects), 1, 2), dtype=np.int64)
    collection.read_views(np.array(objects), np.array(views)[:, None], pixels, sizes)
    return torch.from_numpy(pixels[:, 0]).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("source", SALIENCY_SOURCES)
def test_computed_maps_are_those_of_each_view(train: ShardDataset, source: str, tmp_path: Path) -> None:
    maps = computed_saliency(train, source, tmp_path)
    objects, views = [0, 5, 23, 5], [3, 0, 1, 2]
    expected = SALIENCY_SOURCES[source](pixels_of(train, objects, views))
    found = maps.read(torch.tensor(objects), torch.tensor(views))
    assert found.shape == (4, 32, 32) and found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=2e-3, atol=1e-7)
    assert torch.allclose(found.sum(dim=(1, 2)), torch.ones(4))


def test_maps_are_computed_once_for_each_set_and_source(
    train: ShardDataset,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = computed_saliency(train, "spectral_residual", tmp_path / "new")
    assert "computed the spectral_residual saliency of train: 96 maps in" in capsys.readouterr().out
    assert not list(tmp_path.rglob(".writing-*"))
    computed_saliency(train, "centre_surround", tmp_path / "new")
    computed_saliency(ShardDataset(tiny_data, "val"), "spectral_residual", tmp_path / "new")
    assert len(list((tmp_path / "new").glob("*.npy"))) == 3

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(saliency_maps, "_compute", refuse)
    again = computed_saliency(ShardDataset(tiny_data, "train"), "spectral_residual", tmp_path / "new")
    objects, views = np.array(ALL_VIEWS).T
    assert again.file == first.file
    assert torch.equal(again.read(objects, views), first.read(objects, views))


def test_the_users_cache_folder_is_the_default(
    train: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saliency_maps, "user_cache_path", lambda name: tmp_path / name)
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
    pixels = np.empty((12, 1, 64, 64, 3), dtype=np.uint8)
    sizes = np.empty((12, 1, 2), dtype=np.int64)
    canvases.read_views(np.arange(12), np.zeros((12, 1), dtype=np.int64), pixels, sizes)
    for number, (height, width) in enumerate(sizes[:, 0].tolist()):
        picture = torch.from_numpy(pixels[number, 0, :height, :width]).permute(2, 0, 1).float()[None] / 255
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


def test_unknown_sources_and_unwritable_folders_are_said(train: ShardDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the source of saliency is 'magic': choose spectral_residual or centre_surr"):
        computed_saliency(train, "magic", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*: free some space or choose another folder"):
        computed_saliency(train, "spectral_residual", tmp_path / "file")
