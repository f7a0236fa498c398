"""Rendered views that are stored in another size than the run asks for: the same pixels by every way to them."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_equi.data.cache import CachedViews
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import resized as resized_to
from ssl_equi.data.loading.gpu import encoded_views, gpu_loader, resize_images
from ssl_equi.data.loading.rendered import config_of_stored
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.remote.streaming import streamed_loader
from ssl_equi.data.remote.views import RemoteShards
from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.sources import open_data, open_ood_rotation
from ssl_equi.errors import DataError
from tests.data.test_loader_promise import decode_on_cpu

SIDES = {"shrunk": 20, "enlarged": 48}


def all_views(collection: ViewCollection) -> np.ndarray:
    """uint8 [n, V, H, W, 3]."""
    every = np.tile(np.arange(collection.num_views), (collection.num_objects, 1))
    return collection.images(np.arange(collection.num_objects), every)


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES.keys())
def test_every_reader_gives_pillows_pixels(tiny_data: Path, tmp_path: Path, side: int) -> None:
    stored, resized = ShardDataset(tiny_data, "train"), resized_to(ShardDataset(tiny_data, "train"), side)
    pixels = all_views(resized)
    expected = Image.fromarray(all_views(stored)[3, 1]).resize((side, side), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels[3, 1], np.asarray(expected))
    cached = CachedViews(resized, tmp_path)
    assert cached.cache_folder != CachedViews(stored, tmp_path).cache_folder
    np.testing.assert_array_equal(all_views(cached), pixels)
    np.testing.assert_array_equal(all_views(resized_to(RemoteShards(tiny_data, "train"), side)), pixels)


def test_every_loader_gives_these_pixels(tiny_data: Path) -> None:
    resized = resized_to(ShardDataset(tiny_data, "train"), 20)
    pixels = all_views(resized)
    options = {"global_batch_size": 24, "views": 4, "seed": 0}
    sent_to_a_worker = pickle.loads(pickle.dumps(resized))
    assert sent_to_a_worker.fingerprint == resized.fingerprint
    loaders = [
        stored_loader(sent_to_a_worker, **options),
        streamed_loader(tiny_data, "train", image_size=20, **options),
    ]
    for loader in loaders:
        with loader:
            batch = next(loader.batches())
            objects, views = batch.object_indices.numpy(), batch.view_indices.numpy()
            np.testing.assert_array_equal(batch.images.numpy(), pixels[objects[:, None], views])


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES.keys())
def test_a_device_resizes_as_pillow_does_but_for_rounding(tiny_data: Path, side: int) -> None:
    resized = resized_to(ShardDataset(tiny_data, "train"), side)
    pixels = all_views(resized).astype(np.int16)
    loader = gpu_loader(
        encoded_views(resized), global_batch_size=24, views=4, seed=0, device=torch.device("cpu"),
        decode=decode_on_cpu,
    )  # fmt: skip
    with loader:
        batch = next(loader.batches())
    objects, views = batch.object_indices.numpy(), batch.view_indices.numpy()
    differences = np.abs(batch.images.numpy().astype(np.int16) - pixels[objects[:, None], views])
    assert batch.content_sizes is None and differences.max() <= 1
    unchanged = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
    assert resize_images(unchanged, (5, 5)) is unchanged


def test_the_stored_size_is_equal_to_the_bit_and_others_say_so(tiny_data: Path) -> None:
    stored, same = ShardDataset(tiny_data, "train"), open_data("3diebench-p", tiny_data, "test", 32)
    assert same.notes == () and same.train.fingerprint == stored.fingerprint == stored.manifest.fingerprint
    assert same.train.plan_sha256 == stored.plan_sha256 and same.train.source == stored.source
    np.testing.assert_array_equal(all_views(same.train), all_views(stored))
    small, large = (open_data("3diebench-p", tiny_data, "test", side) for side in SIDES.values())
    assert small.notes == ("the stored images of 3diebench-p have 32 x 32 pixels and are shrunk to 20 x 20",)
    assert large.notes == (
        "the stored images of 3diebench-p have 32 x 32 pixels and are enlarged, which adds no detail, to 48 x 48",
    )
    for name in ("fingerprint", "plan_sha256", "source"):
        assert len({getattr(data.train, name) for data in (same, small, large)}) == 3
    assert small.evaluation.image_size == (20, 20) and small.train.source.endswith("resized to 20 pixels")
    streamed = open_data("3diebench-p", tiny_data, "test", 20, "streamed")
    assert streamed.train.fingerprint == small.train.fingerprint and streamed.notes == small.notes


def test_what_an_embedded_set_lacks_is_rendered_in_its_stored_size(
    tmp_path: Path, tiny_config: ProceduralConfig
) -> None:
    build_procedural(tmp_path, tiny_config, ("train", "val", "test"), workers=1, show_progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ssl_equi.data.sets.rendered.ProceduralConfig", lambda **sizes: dataclasses.replace(tiny_config, **sizes)
        )
        judged = open_ood_rotation(open_data("3diebench-p", tmp_path, "test", 20))
    assert judged.stored.image_size == (32, 32) and judged.image_size == (20, 20)


def test_views_rendered_in_training_have_the_size_that_is_asked_for(tiny_data: Path) -> None:
    assert config_of_stored(resized_to(ShardDataset(tiny_data, "train"), 20)).image_size == 20


def test_only_squares_of_one_size_are_resized(
    shared_split: Path, tiny_data: Path, tiny_config: ProceduralConfig, tmp_path: Path
) -> None:
    sentence = r"split 'train' have 24 x 32 pixels and only squares can be resized to --image-size 20: pad or crop"
    with pytest.raises(DataError, match=sentence):
        resized_to(ShardDataset(shared_split, "train"), 20)
    with pytest.raises(DataError, match=sentence):
        streamed_loader(shared_split, "train", image_size=20, global_batch_size=8, seed=0)
    for split, side in (("train", 32), ("test", 48)):
        build_procedural(tmp_path / split, dataclasses.replace(tiny_config, image_size=side), (split,), workers=1)
    for path in (tmp_path / "test").glob("test*"):
        path.rename(tmp_path / "train" / path.name)
    with pytest.raises(DataError, match=r"'train' has images of 32 x 32 pixels and 'test' in .* of 48 x 48: give the"):
        open_data("3diebench", tmp_path / "train", "test", 32)
