"""What every kind of split promises as a `ViewCollection`: one table of kinds, each held to the same tests."""

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ssl_equi.data.cache import CachedViews, DecodedInMemory
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import ResizedViews, TurnedViews, ViewSubset
from ssl_equi.data.images import Canvas, CenterCrop
from ssl_equi.data.loading.device import DecodedOnDevice
from ssl_equi.data.loading.rendered import RenderedViews, config_of_stored
from ssl_equi.data.remote.views import RemoteImages, RemoteShards
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards.format import ImageRecord
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import manifest_path
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.data.stage_seconds import CLOCK
from tests.data.image_sets import write_pictures
from tests.data.numbered_objects import NumberedObjects

OBJECTS = (np.array([3, 0, 5, 5]), np.array([[1, 0], [0, 2], [3, 3], [2, 1]]))  # in no order, and repeated
CHOSEN = (np.array([4, 1, 9, 2, 7, 3]), np.tile([0, 3, 1, 2], (6, 1)))

KINDS: dict[str, Callable[[dict[str, Path]], ViewCollection]] = {
    "rendered objects": lambda folders: ShardDataset(folders["objects"], "train"),
    "remote objects": lambda folders: RemoteShards(folders["objects"], "train"),
    "objects with 3 to 6 views": lambda folders: ShardDataset(folders["uneven"], "train"),
    "remote objects with 3 to 6 views": lambda folders: RemoteShards(folders["uneven"], "train"),
    "rendered while read": lambda folders: RenderedViews(
        config_of_stored(ShardDataset(folders["objects"], "train")), "train"
    ),
    "a subset": lambda folders: ViewSubset(ShardDataset(folders["objects"], "train"), *CHOSEN),
    "resized": lambda folders: ResizedViews(ShardDataset(folders["objects"], "train"), 20),
    "resized, with 3 to 6 views": lambda folders: ResizedViews(ShardDataset(folders["uneven"], "train"), 20),
    "a subset of objects with 3 to 6 views": lambda folders: ViewSubset(
        ShardDataset(folders["uneven"], "train"), np.array([8, 2, 14, 0, 4, 20]), CHOSEN[1]
    ),
    "quarter turns": lambda folders: TurnedViews(ShardDataset(folders["objects"], "train")),
    "any turns": lambda folders: TurnedViews(ShardDataset(folders["objects"], "train"), "any"),
    "cached": lambda folders: CachedViews(ShardDataset(folders["objects"], "train"), folders["cache"]),
    "turned, resized, cached": lambda folders: CachedViews(
        TurnedViews(ResizedViews(ShardDataset(folders["objects"], "train"), 16)), folders["cache"]
    ),
    "turned, cached, with 3 to 6 views": lambda folders: CachedViews(
        TurnedViews(ShardDataset(folders["uneven"], "train"), "any"), folders["cache"]
    ),
    "crops of image shards": lambda folders: SingleViews(ImageShards(folders["images"], "train"), CenterCrop(16, 18)),
    "canvases of image shards": lambda folders: SingleViews(ImageShards(folders["images"], "train"), Canvas(24)),
    "shards of others": lambda folders: SingleViews(ImageShards(folders["others"], "train"), Canvas(40)),
    "remote images": lambda folders: RemoteImages(folders["images"], "train", Canvas(40)),
    "an image folder": lambda folders: SingleViews(ImageFolder(folders["folder"], "train"), Canvas(40)),
    "on a device": lambda folders: DecodedOnDevice(ShardDataset(folders["objects"], "train"), "cpu"),
    "in memory": lambda folders: DecodedInMemory(ShardDataset(folders["objects"], "train")),
    "canvases in memory": lambda folders: DecodedInMemory(
        SingleViews(ImageShards(folders["images"], "train"), Canvas(40))
    ),
    "cached canvases": lambda folders: CachedViews(
        SingleViews(ImageShards(folders["images"], "train"), Canvas(40)), folders["cache"]
    ),
    "numbers": lambda folders: NumberedObjects(7),
}


@pytest.fixture(scope="module")
def folders(
    tiny_data: Path, uneven_data: Path, pictures: list[ImageRecord], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    write_pictures(folder / "images", pictures)
    manifest_path(Path(shutil.copytree(folder / "images", folder / "others")), "train").unlink()
    for record in pictures:
        path = folder / "folder" / "train" / f"class {record.label}" / f"{record.key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.data)
    return {
        "objects": tiny_data,
        "uneven": uneven_data,
        **{name: folder / name for name in ("images", "others", "folder", "cache")},
    }


@pytest.fixture(scope="module", params=KINDS)
def views(request: pytest.FixtureRequest, folders: dict[str, Path]) -> ViewCollection:
    return KINDS[request.param](folders)


def some_of(views: ViewCollection) -> tuple[np.ndarray, np.ndarray]:
    objects, of_each = OBJECTS
    return objects, of_each if views.num_views > 1 else np.zeros((4, 1), dtype=np.int64)


def test_attributes_fit_each_other(views: ViewCollection) -> None:
    n, v = views.num_objects, views.num_views
    assert views.labels.shape == (n,) and views.labels.dtype == np.int64
    assert views.labels.min() >= -1 and views.labels.max() < len(views.class_names)
    assert views.latents.shape[:2] == (n, v) and views.latents.dtype == np.float32
    assert (views.quats_xyzw is None) == (views.latents.shape[2] == 0)
    counts = np.full(n, v) if views.view_counts is None else views.view_counts
    assert counts.shape == (n,) and (views.fewest_views, v) == (counts.min(), counts.max())
    assert (views.view_counts is None) == (views.fewest_views == v), "no counts where all are equal"
    assert views.num_images == counts.sum() and (views.keys is None or len(views.keys) == n)
    padding = np.arange(v) >= counts[:, None]
    assert not views.latents[padding].any()
    if views.quats_xyzw is not None:
        assert views.quats_xyzw.shape == (n, v, 4) and views.quats_xyzw.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(views.quats_xyzw[~padding], axis=-1), 1, atol=1e-5)
        assert not views.quats_xyzw[padding].any()
    for name in ("split", "source", "fingerprint", "content_key", "plan_sha256"):
        assert getattr(views, name) and isinstance(getattr(views, name), str), name
    assert isinstance(views.folder, Path) and (views.mean_rgb is None) == (views.std_rgb is None)


def test_views_are_read_in_any_order_over_whatever_the_buffer_held(views: ViewCollection) -> None:
    objects, of_each = some_of(views)
    expected = views.images(objects, of_each)
    assert expected.shape == (*of_each.shape, *views.image_size, 3) and expected.any()
    out, sizes = np.full_like(expected, 77), np.zeros((*of_each.shape, 2), dtype=np.int64)
    began = CLOCK.spent
    views.read_views(objects, of_each, out, sizes)
    spent = CLOCK.spent - began
    assert spent.decoding > 0 and spent.reading >= 0
    if not isinstance(views, NumberedObjects):  # which leaves a channel alone
        np.testing.assert_array_equal(out, expected)
    if views.fills_image:
        assert (sizes == views.image_size).all()
    for image, (height, width) in zip(expected.reshape(-1, *expected.shape[2:]), sizes.reshape(-1, 2).tolist()):
        assert 0 < height <= image.shape[0] and 0 < width <= image.shape[1]
        assert not image[height:].any() and not image[:, width:].any()
    for row, column in np.ndindex(of_each.shape):
        alone = views.images(objects[row : row + 1], of_each[row : row + 1, column : column + 1])
        tolerance = 1 if isinstance(views, RenderedViews) else 0  # other company in a batch may change a level
        assert np.abs(alone[0, 0].astype(int) - expected[row, column]).max() <= tolerance


def test_all_views_are_read_over_whatever_the_buffer_held(views: ViewCollection) -> None:
    objects, counts = np.array([2, 0, 1]), np.broadcast_to(views.views_of_each, views.num_objects)
    out = np.full((3, views.num_views, *views.image_size, 3), 77, dtype=np.uint8)
    if isinstance(views, NumberedObjects):  # which leaves a channel alone
        out[...] = 0
    sizes = np.full((3, views.num_views, 2), 77, dtype=np.int64)
    views.read_all_views(objects, out, sizes)
    for row, number in enumerate(objects.tolist()):
        own_views = np.arange(counts[number])
        alone = views.images(np.array([number]), own_views[None])[0]
        tolerance = 1 if isinstance(views, RenderedViews) else 0  # other company in a batch may change a level
        assert np.abs(out[row, : counts[number]].astype(int) - alone).max() <= tolerance
        assert not out[row, counts[number] :].any() and not sizes[row, counts[number] :].any()
        assert sizes[row, : counts[number]].all()


def test_images_are_numbered_object_by_object(views: ViewCollection) -> None:
    counts = np.broadcast_to(views.views_of_each, views.num_objects).tolist()
    expected = [(number, view) for number, count in enumerate(counts) for view in range(count)]
    objects, numbers = views.numbered(np.arange(views.num_images))
    assert list(zip(objects.tolist(), numbers.tolist(), strict=True)) == expected


def test_threads_read_the_same_pixels(views: ViewCollection) -> None:
    objects, of_each = some_of(views)
    expected = views.images(objects, of_each)
    with ThreadPoolExecutor(4) as pool:
        for pixels in pool.map(lambda _: views.images(objects, of_each), range(8)):
            np.testing.assert_array_equal(pixels, expected)


def test_what_is_sent_to_another_process_is_the_same_split(views: ViewCollection) -> None:
    if isinstance(views, (RenderedViews, RemoteImages, RemoteShards, DecodedOnDevice)):
        pytest.skip("these stay in the process that trains")
    again = pickle.loads(pickle.dumps(views))
    assert again.fingerprint == views.fingerprint and again.image_size == views.image_size
    np.testing.assert_array_equal(again.latents, views.latents)
    np.testing.assert_array_equal(again.images(*some_of(views)), views.images(*some_of(views)))


def test_wrong_requests_are_refused(views: ViewCollection) -> None:
    out, zero = np.zeros((1, 1, *views.image_size, 3), dtype=np.uint8), np.array([0])
    for number in (views.num_objects, -1):
        with pytest.raises(IndexError, match=rf"object index lies outside 0\.\.{views.num_objects - 1}"):
            views.read_views(np.array([number]), zero[None], out)
    with pytest.raises(IndexError, match=rf"view index lies outside 0\.\.{views.num_views - 1}"):
        views.read_views(zero, np.array([[views.num_views]]), out)
    lacking = np.flatnonzero(np.broadcast_to(views.views_of_each, views.num_objects) < views.num_views)
    for number in lacking[:3].tolist():  # in whose rows of all arrays there is padding
        count = int(views.view_counts[number])
        with pytest.raises(IndexError, match=f"object {number} has {count} views and view {count} is asked for"):
            views.read_views(np.array([number]), np.array([[count]]), out)
    with pytest.raises(ValueError, match="do not belong together"):
        views.read_views(zero, zero, out)
    for wrong in (out[:, :, ::2], out.astype(np.float32), np.zeros((1, 1, 7, 9, 3), dtype=np.uint8)):
        with pytest.raises(ValueError, match="contiguous uint8 array of shape"):
            views.read_views(zero, zero[None], wrong)
    with pytest.raises(ValueError, match="give an int64 array of shape"):
        views.read_views(zero, zero[None], out, np.zeros((1, 2), dtype=np.int64))


def test_derived_splits_have_hashes_of_their_own(folders: dict[str, Path]) -> None:
    stored = ShardDataset(folders["objects"], "train")
    derived = [
        stored, ViewSubset(stored, *CHOSEN), ResizedViews(stored, 20), ResizedViews(stored, 40), TurnedViews(stored),
        TurnedViews(stored, seed=1), TurnedViews(stored, "any"),
    ]  # fmt: skip
    for name in ("fingerprint", "content_key", "plan_sha256"):
        assert len({getattr(views, name) for views in derived}) == len(derived), name
    assert CachedViews(stored, folders["cache"]).fingerprint == stored.fingerprint
    # What checkpoints and published numbers name: these must never change.
    assert ResizedViews(NumberedObjects(2), 4).fingerprint.startswith("9785f925440c")
    assert TurnedViews(NumberedObjects(2)).fingerprint.startswith("554f85485262")
    subset = ViewSubset(NumberedObjects(3), np.array([2, 0]), np.array([[1, 4], [0, 3]]))
    assert subset.fingerprint.startswith("a52b70db7cab")
