"""Which views a step sees: the same ones whatever the number of processes, and again after a resume."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.data.actions import POSE_ACTION_KINDS, action_from_batch, relative_hues, relative_rotation
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import normalise_views
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.errors import UserError
from ssl_equi.views import operations
from ssl_equi.views.groups import GROUPS
from ssl_equi.views.makers import (
    SharedViews,
    SmallViewOptions,
    TrainingViews,
    TransformedSmallViews,
    ViewOptions,
    action_size,
    views_to_load,
)
from ssl_equi.views.presets import PRESETS
from tests.simulated_device import SimulatedDevice

ONE_PROCESS = SimpleNamespace(rank=0, world_size=1)
AUGMENTED = ViewOptions(source="augmented", preset="mocov2")


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


def batch_of(images: Tensor, content_sizes: Tensor | None = None) -> ViewBatch:
    generator = torch.Generator().manual_seed(1)
    count, views = images.shape[:2]
    quats = torch.nn.functional.normalize(torch.randn(count, views, 4, generator=generator), dim=-1)
    return ViewBatch(
        images=images,
        latents=torch.rand(count, views, 7, generator=generator),
        quat_xyzw=quats,
        labels=torch.zeros(count, dtype=torch.int64),
        object_indices=torch.arange(count),
        view_indices=torch.arange(views).expand(count, views),
        content_sizes=content_sizes,
    )


def random_batch(count: int = 8, views: int = 2) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)
    return batch_of(torch.randint(0, 256, (count, views, 32, 32, 3), dtype=torch.uint8, generator=generator))


def moved(batch: ViewBatch) -> ViewBatch:
    """The same views with ten latents."""
    translations = torch.rand(*batch.latents.shape[:2], 3, generator=torch.Generator().manual_seed(3)) - 0.5
    return replace(batch, latents=torch.cat([batch.latents, translations], dim=-1))


def moving(data: DataSource) -> SimpleNamespace:
    """The same data as if its views had ten latents."""
    train = SimpleNamespace(split="train", num_views=4, latents=np.zeros((24, 4, 10), np.float32), quats_xyzw=None)
    return SimpleNamespace(name="moving", train=train, mean_rgb=data.mean_rgb, std_rgb=data.std_rgb)


def rows(batch: ViewBatch, start: int, stop: int) -> ViewBatch:
    sizes = None if batch.content_sizes is None else batch.content_sizes[start:stop]
    return batch_of(batch.images[start:stop], sizes)


def test_rendered_views_are_the_stored_ones_with_the_action_between_them(data: DataSource) -> None:
    batch = random_batch()
    views = TrainingViews(Options(), data, ONE_PROCESS, actions="rotation_color")(batch, step=0)
    assert torch.equal(views.images, normalise_views(batch.images, data.mean_rgb, data.std_rgb))
    assert batch.quat_xyzw is not None
    expected = torch.cat([relative_rotation(batch.quat_xyzw), relative_hues(batch.latents)], dim=1)
    assert torch.equal(views.actions, expected)
    assert TrainingViews(Options(), data, ONE_PROCESS)(batch, 0).actions is None
    assert (views_to_load(ViewOptions()), views_to_load(AUGMENTED)) == (2, 1)


@pytest.mark.parametrize("kind", POSE_ACTION_KINDS)
def test_views_of_moving_objects_have_the_rigid_motion_between_them(data: DataSource, kind: str) -> None:
    batch = moved(random_batch())
    views = TrainingViews(Options(), moving(data), ONE_PROCESS, actions=kind)(batch, step=0)
    assert views.actions is not None and views.actions.shape == (8, action_size(kind, Options())) == (8, 7)
    assert torch.equal(views.actions, action_from_batch(batch, kind))
    with pytest.raises(UserError, match=rf"actions {kind} tell of translations .* choose a set with translations"):
        TrainingViews(Options(), data, ONE_PROCESS, actions=kind)


def test_augmented_views_are_two_changed_versions_of_the_first_image(data: DataSource) -> None:
    make_views = TrainingViews(Options(AUGMENTED), data, ONE_PROCESS, actions="augmentation")
    batch = random_batch()
    views = make_views(batch, step=3)
    assert views.images.shape == (8, 2, 3, 32, 32) and views.images.dtype == torch.float32
    assert not torch.equal(views.images[:, 0], views.images[:, 1])
    assert views.actions is not None
    assert views.actions.shape == (8, action_size("augmentation", Options(AUGMENTED)))
    again = make_views(batch, step=3)
    assert torch.equal(again.images, views.images) and torch.equal(again.actions, views.actions)
    assert not torch.equal(make_views(batch, step=4).images, views.images)
    other_seed = TrainingViews(Options(AUGMENTED, seed=1), data, ONE_PROCESS)(batch, 3)
    assert not torch.equal(other_seed.images, views.images)


@pytest.mark.parametrize("preset", PRESETS)
def test_on_a_gpu_the_views_are_the_same_in_channels_last_memory(
    data: DataSource, preset: str, device: SimulatedDevice
) -> None:
    options = Options(ViewOptions(source="augmented", preset=preset))
    make_views = TrainingViews(options, data, ONE_PROCESS, actions="augmentation")
    expected, found = (make_views(random_batch().to(place), step=0) for place in ("cpu", "cuda"))
    assert found.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert (found.images.cpu() - expected.images).abs().max() < 2e-5  # five times that of values in [0, 1]
    assert found.actions is not None and torch.equal(found.actions.cpu(), expected.actions)


def test_a_gpu_runs_compiled_code_if_asked(
    data: DataSource, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled is run as it is here; on a GPU tests/test_cuda.py compiles it."""
    calls: list[tuple[int, ...]] = []

    def noted(images: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        calls.append(images.shape)
        return operations._adjust_at_once(images, values, positions)

    monkeypatch.setattr(operations, "compiled_adjust_at_once", lambda: noted)
    options, small = Options(AUGMENTED, compile=True), SmallViewOptions(size=16)
    make_small_views = TransformedSmallViews(options, small, data, ONE_PROCESS, relative=False)
    for place, expected in (("cpu", []), ("cuda", [(16, 3, 32, 32), (16, 3, 32, 32), (8, 3, 16, 16)])):
        batch = random_batch().to(place)
        TrainingViews(options, data, ONE_PROCESS)(batch, 0)
        SharedViews(options, data, ONE_PROCESS, shared_by=1)(batch, 0)
        make_small_views(batch, 0)
        TrainingViews(Options(AUGMENTED), data, ONE_PROCESS)(batch, 0)
        assert calls == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_actions_of_the_stated_size(data: DataSource, preset: str) -> None:
    options = Options(ViewOptions(source="augmented", preset=preset))
    views = TrainingViews(options, data, ONE_PROCESS, actions="augmentation")(random_batch(), step=0)
    assert views.images.shape == (8, 2, 3, 32, 32) and views.images.isfinite().all()
    assert views.actions is not None and views.actions.isfinite().all()
    assert views.actions.shape == (8, action_size("augmentation", options))


@pytest.mark.parametrize("canvas", [False, True], ids=["full images", "pictures of their own sizes"])
def test_two_processes_make_the_views_of_one(data: DataSource, canvas: bool) -> None:
    batch = random_batch()
    if canvas:
        sizes = torch.randint(8, 33, (8, 2, 2), generator=torch.Generator().manual_seed(2))
        batch = replace(batch, content_sizes=sizes)
    options = Options(AUGMENTED)
    whole = TrainingViews(options, data, ONE_PROCESS, actions="augmentation")(batch, 5)
    shared = SharedViews(options, data, ONE_PROCESS, shared_by=4)(batch, 5)
    small = TransformedSmallViews(options, SmallViewOptions(size=16, elements=2), data, ONE_PROCESS, relative=False)(
        batch, 5
    )
    for rank in range(2):
        processes, mine = SimpleNamespace(rank=rank, world_size=2), slice(4 * rank, 4 * rank + 4)
        part = rows(batch, mine.start, mine.stop)
        views = TrainingViews(options, data, processes, actions="augmentation")(part, 5)
        assert torch.allclose(views.images, whole.images[mine], atol=1e-5)
        assert torch.allclose(views.actions, whole.actions[mine], atol=1e-6)
        assert torch.allclose(SharedViews(options, data, processes, shared_by=4)(part, 5), shared[mine], atol=1e-5)
        images, elements = TransformedSmallViews(
            options, SmallViewOptions(size=16, elements=2), data, processes, relative=False
        )(part, 5)
        assert torch.allclose(images, small[0][mine], atol=1e-5) and torch.equal(elements, small[1][mine])


def test_chunks_share_their_pair_of_augmentations_and_each_has_its_own(data: DataSource) -> None:
    same_image = random_batch(count=1).images.expand(8, 2, 32, 32, 3).contiguous()
    shared = SharedViews(Options(AUGMENTED), data, ONE_PROCESS, shared_by=4)(batch_of(same_image), 0)
    for chunk in shared.split(4):
        assert torch.allclose(chunk, chunk[:1].expand_as(chunk), atol=1e-5)
        assert (chunk[:, 0] - chunk[:, 1]).abs().max() > 0.1
    assert (shared[0] - shared[4]).abs().max() > 0.1


def test_small_views_come_under_every_element_with_its_label(data: DataSource) -> None:
    options = SmallViewOptions(size=16)
    make_small_views = TransformedSmallViews(Options(), options, data, ONE_PROCESS, relative=False)
    images, elements = make_small_views(random_batch(), step=0)
    assert images.shape == (8, 4, 3, 16, 16)
    assert torch.equal(elements, torch.arange(4).expand(8, 4))
    for turns in range(4):
        assert torch.allclose(images[:, turns], torch.rot90(images[:, 0], turns, dims=(2, 3)))


def test_drawn_elements_are_different_ones_of_each_image(data: DataSource) -> None:
    options = SmallViewOptions(group="jigsaw", size=16, elements=5)
    make_small_views = TransformedSmallViews(Options(), options, data, ONE_PROCESS, relative=False)
    images, elements = make_small_views(random_batch(), step=0)
    assert images.shape[:2] == elements.shape == (8, 5)
    assert all(len(set(row)) == 5 for row in elements.tolist())
    assert not torch.equal(elements[0], elements[1])


def test_relative_small_views_are_two_crops_under_two_elements(data: DataSource) -> None:
    make_small_views = TransformedSmallViews(Options(), SmallViewOptions(size=16), data, ONE_PROCESS, relative=True)
    images, elements = make_small_views(random_batch(count=64), step=0)
    assert images.shape == (64, 2, 3, 16, 16) and elements.shape == (64, 2)
    assert set(elements.flatten().tolist()) == {0, 1, 2, 3}
    upright = [GROUPS["four_fold_rotation"].apply(images[:, view], (4 - elements[:, view]) % 4) for view in range(2)]
    assert (upright[0] - upright[1]).flatten(1).abs().amax(dim=1).min() > 0.05


def test_quaternions_beyond_the_euler_box_are_warned_of_once(
    data: DataSource, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = np.zeros((24, 4, 7), np.float32)
    latents[..., 2] = np.linspace(-3, 3, 4)
    train = SimpleNamespace(split="train", num_views=4, latents=latents, quats_xyzw=np.zeros((24, 4, 4), np.float32))
    turntable = SimpleNamespace(name="turntable", train=train, mean_rgb=data.mean_rgb, std_rgb=data.std_rgb)
    for actions, rank, warned in (("rotation", 0, 1), ("rotation", 1, 0), ("rotation_6d", 0, 0), (None, 0, 0)):
        TrainingViews(Options(), turntable, SimpleNamespace(rank=rank, world_size=2), actions=actions)
        assert capsys.readouterr().err.count("warning: views of split 'train' turn by up to 172 degrees") == warned


@pytest.mark.parametrize(
    ("options", "actions", "message"),
    [
        (ViewOptions(), "augmentation", "choose one of rotation, rotation_color, rotation_6d"),
        (AUGMENTED, "rotation", "choose --actions augmentation"),
    ],
)
def test_actions_must_go_with_the_views(data: DataSource, options: ViewOptions, actions: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingViews(Options(options), data, ONE_PROCESS, actions=actions)


def test_what_cannot_be_made_is_refused(data: DataSource) -> None:
    with pytest.raises(UserError, match="rendered views share no augmentations"):
        TrainingViews(Options(), data, ONE_PROCESS, shared_by=4)
    with pytest.raises(UserError, match=r"--small-view\.group is 'spin': choose from four_fold_rotation"):
        TransformedSmallViews(Options(), SmallViewOptions(group="spin"), data, ONE_PROCESS, relative=False)
    with pytest.raises(UserError, match=r"--small-view\.elements is 5: four_fold_rotation has 4"):
        TransformedSmallViews(Options(), SmallViewOptions(elements=5), data, ONE_PROCESS, relative=False)
    with pytest.raises(ValueError, match="there are no views named 'none'"):
        TrainingViews(Options(ViewOptions(source="augmented", preset="none")), data, ONE_PROCESS)
    single = SimpleNamespace(name="folder", train=SimpleNamespace(num_views=1))
    with pytest.raises(UserError, match=r"folder holds one view of each image: choose --views\.source augmented"):
        TrainingViews(Options(), single, ONE_PROCESS)
