"""Rendering in the place of reading: the same objects, latents and pictures as the stored set, and fresh ones."""

import dataclasses
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import CenterCrop
from ssl_equi.data.loading.rendered import RenderedViews, config_of_stored, fresh_latents, rendered_loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural, plan_objects
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_RANGES, quat_xyzw_from_latents
from ssl_equi.scenes.families import build_object
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.scene import SceneSettings

TENSORS = ("images", "latents", "quat_xyzw", "labels", "object_indices", "view_indices")
# Mean absolute difference in levels of 255 between a picture of 32 pixels and the JPEG made of it; at 64 pixels
# it is 1.
JPEG_LEVELS = 2.5


@pytest.fixture(scope="module", params=["still", "moving"])
def stored(request: pytest.FixtureRequest, tiny_data: Path, tiny_moving_data: Path) -> ShardDataset:
    return ShardDataset(tiny_data if request.param == "still" else tiny_moving_data, "train")


@pytest.fixture(scope="module")
def rendered(stored: ShardDataset) -> RenderedViews:
    return RenderedViews(config_of_stored(stored), "train")


def take(rendered: RenderedViews, count: int, start_step: int = 0, **options: object) -> list[ViewBatch]:
    with rendered_loader(rendered, **({"global_batch_size": 8, "seed": 1} | options)) as loader:  # type: ignore[arg-type]
        return list(itertools.islice(loader.batches(start_step), count))


def levels_apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.int() - other.int()).abs()


def through_jpeg(image: np.ndarray) -> np.ndarray:
    encoded = simplejpeg.encode_jpeg(image, quality=ProceduralConfig().jpeg_quality, colorspace="RGB")
    return simplejpeg.decode_jpeg(encoded, "RGB")


def test_what_is_known_of_objects_and_views_equals_the_stored_set_to_the_bit(
    stored: ShardDataset, rendered: RenderedViews
) -> None:
    for name in ("labels", "latents", "quats_xyzw"):
        np.testing.assert_array_equal(getattr(rendered, name), getattr(stored, name))
        assert getattr(rendered, name).dtype == getattr(stored, name).dtype
    for name in ("num_objects", "num_views", "class_names", "image_size", "mean_rgb", "std_rgb", "split"):
        assert getattr(rendered, name) == getattr(stored, name), name
    assert rendered.fingerprint != stored.fingerprint


def test_batches_are_those_of_the_stored_set_before_they_became_jpeg(
    stored: ShardDataset, rendered: RenderedViews
) -> None:
    with stored_loader(stored, global_batch_size=8, seed=1, views=3) as loader:
        for mine, theirs in zip(take(rendered, 4, views=3), loader.batches()):
            for name in TENSORS[1:]:
                assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
                assert getattr(mine, name).dtype == getattr(theirs, name).dtype
            assert mine.images.dtype == torch.uint8 and mine.images.shape == theirs.images.shape
            by_picture = levels_apart(mine.images, theirs.images).float().flatten(2).mean(2)
            assert 0 < by_picture.max() < JPEG_LEVELS
            again = np.stack([through_jpeg(image) for image in mine.images.flatten(0, 1).numpy()])
            assert (again == theirs.images.flatten(0, 1).numpy()).mean() > 0.999


def test_a_picture_is_the_renderers_of_the_planned_object(rendered: RenderedViews) -> None:
    """One object alone, by the plan, against the same object in a batch: rounding is all that may differ."""
    planned = plan_objects(rendered.config, "train")[5]
    renderer = Renderer([build_object(planned.family, planned.object_seed)], SceneSettings(resolution=32))
    expected = renderer.render(torch.zeros(4, dtype=torch.int64), torch.from_numpy(rendered.exact_latents[5]))
    found = np.empty((3, 4, 32, 32, 3), dtype=np.uint8)
    sizes = np.empty((3, 4, 2), dtype=np.int64)
    rendered.read_views(np.array([2, 5, 9]), np.tile(np.arange(4), (3, 1)), found, sizes)
    apart = levels_apart(torch.from_numpy(found[1]), expected)
    assert apart.max() <= 1 and apart.float().mean() < 0.01
    assert (sizes == 32).all()


def test_an_epoch_may_end_with_a_smaller_batch(stored: ShardDataset, rendered: RenderedViews) -> None:
    options = {"global_batch_size": 10, "rank": 1, "world_size": 2, "keep_incomplete_batch": True}
    mine = take(rendered, 7, **options)
    assert [len(batch.images) for batch in mine] == [5, 5, 2, 5, 5, 2, 5]
    with stored_loader(stored, seed=1, **options) as loader:
        for batch, expected in zip(mine, loader.batches()):
            for name in TENSORS[1:]:
                assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    (fresh,) = take(rendered, 1, start_step=5, fresh_views=True, **options)
    latents = fresh_latents(rendered, 1, 1, fresh.object_indices.numpy(), fresh.view_indices.numpy())
    np.testing.assert_array_equal(fresh.latents.numpy(), latents.astype(np.float32))


def test_pictures_do_not_depend_on_the_threads_that_leave_pytorchs_own_alone(rendered: RenderedViews) -> None:
    before, threads = threading.active_count(), torch.get_num_threads()
    one, three = (take(rendered, 2, threads=count, global_batch_size=24) for count in (1, 3))
    for mine, theirs in zip(one, three, strict=True):
        assert torch.equal(mine.images, theirs.images)
    assert (threading.active_count(), torch.get_num_threads()) == (before, threads)


def test_fresh_views_are_new_in_each_epoch_and_lie_in_the_ranges(rendered: RenderedViews) -> None:
    objects, views = np.arange(24), np.tile(np.arange(6), (24, 1))  # more views than are stored
    drawn = [fresh_latents(rendered, 1, epoch, objects, views) for epoch in range(3)]
    latents = np.concatenate(drawn).reshape(3 * 24 * 6, -1)
    assert len(np.unique(latents, axis=0)) == len(latents)
    low, high = np.array([LATENT_RANGES[name] for name in LATENT_NAMES[: latents.shape[1]]]).T
    shares = (latents - low) / (high - low)
    assert ((shares.min(0) >= 0) & (shares.min(0) < 0.05) & (shares.max(0) > 0.95) & (shares.max(0) <= 1)).all()
    assert np.abs(shares.mean(0) - 0.5).max() < 5 / np.sqrt(12 * len(latents))
    stored_rows = {row.tobytes() for row in rendered.exact_latents.reshape(-1, latents.shape[1])}
    assert not stored_rows & {row.tobytes() for row in latents}


def test_fresh_batches_hold_those_latents_and_their_poses(rendered: RenderedViews) -> None:
    (batch,) = take(rendered, 1, start_step=7, fresh_views=True, views=5)
    objects, views = batch.object_indices.numpy(), batch.view_indices.numpy()
    expected = fresh_latents(rendered, 1, 2, objects, views)  # the third epoch of three steps each
    np.testing.assert_array_equal(batch.latents.numpy(), expected.astype(np.float32))
    np.testing.assert_allclose(batch.quat_xyzw, quat_xyzw_from_latents(batch.latents), atol=1e-6, rtol=0)
    assert sorted(views[0].tolist()) == list(range(5))


def test_fresh_latents_of_a_view_depend_on_nothing_else(rendered: RenderedViews) -> None:
    alone = fresh_latents(rendered, 7, 3, np.array([11]), np.array([[2]]))
    among_others = fresh_latents(rendered, 7, 3, np.array([4, 11]), np.array([[0, 1], [5, 2]]))
    np.testing.assert_array_equal(alone[0, 0], among_others[1, 1])
    assert len(np.unique(among_others.reshape(4, -1), axis=0)) == 4
    for seed, epoch in ((8, 3), (7, 4)):
        assert (fresh_latents(rendered, seed, epoch, np.array([11]), np.array([[2]])) != alone).all()


def test_a_fresh_picture_shows_its_latents(rendered: RenderedViews) -> None:
    """Latents that are handed out in float32 give the picture that was rendered from float64."""
    (batch,) = take(rendered, 1, fresh_views=True)
    again = rendered.render(batch.object_indices.numpy(), batch.latents.double().numpy())
    apart = levels_apart(batch.images, again).float()
    assert apart.mean() < 0.02
    other = rendered.render(batch.object_indices.numpy(), batch.latents.flip(0).double().numpy())
    assert levels_apart(batch.images, other).float().mean() > 5


def test_other_seeds_and_rotations_are_found_again(tiny_config: ProceduralConfig, tmp_path: Path) -> None:
    small = dataclasses.replace(tiny_config, rotation="uniform", seed=3, train_objects=2, views=2, image_size=16)
    build_procedural(tmp_path, small, ("train",), workers=1, show_progress=False)
    found = config_of_stored(ShardDataset(tmp_path, "train"))
    for name in ("families", "train_objects", "views", "image_size", "rotation", "translation", "seed"):
        assert getattr(found, name) == getattr(small, name), name


def test_sets_that_are_not_rendered_here_are_refused(shared_split: Path, tiny_data: Path, mixed_folder: Path) -> None:
    folder = SingleViews(ImageFolder(mixed_folder, "train"), CenterCrop(16, 16))
    for other in (ShardDataset(shared_split, "train"), ShardDataset(tiny_data, "val"), folder):
        with pytest.raises(DataError, match="is not one that this version renders: leave --render-views out"):
            config_of_stored(other)


def test_fresh_batches_are_functions_of_seed_and_step_that_ranks_share(rendered: RenderedViews) -> None:
    whole = take(rendered, 5, fresh_views=True)  # three steps an epoch
    for mine, theirs in zip(take(rendered, 3, start_step=2, fresh_views=True), whole[2:], strict=True):
        for name in TENSORS:
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert not torch.equal(whole[0].latents, take(rendered, 1, seed=2, fresh_views=True)[0].latents)
    ranks = [take(rendered, 1, start_step=4, rank=rank, world_size=4, fresh_views=True)[0] for rank in range(4)]
    for name in TENSORS[1:]:
        assert torch.equal(torch.cat([getattr(batch, name) for batch in ranks]), getattr(whole[4], name)), name
    assert levels_apart(torch.cat([batch.images for batch in ranks]), whole[4].images).max() <= 1


@pytest.mark.cuda
def test_cuda_renders_the_same_batches(rendered: RenderedViews) -> None:
    on_cuda = RenderedViews(rendered.config, "train", "cuda")
    for mine, theirs in zip(take(on_cuda, 3), take(rendered, 3), strict=True):
        assert mine.images.device.type == "cuda" and mine.to("cuda").images.data_ptr() == mine.images.data_ptr()
        assert torch.equal(mine.latents, theirs.latents)
        assert levels_apart(mine.images.cpu(), theirs.images).float().mean() < 0.05
