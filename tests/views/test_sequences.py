"""Sequences of views: stored ones with the rotations between any two, or augmentations of one image."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.data.actions import POSE_ACTION_KINDS
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import normalise_views
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.errors import UserError
from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.geometry.rotations import quat_positive, quat_to_matrix, random_quat
from ssl_equi.views.makers import ViewOptions, action_size
from ssl_equi.views.sequences import SequenceViews, ViewSequence, describe_sequences

ONE_PROCESS = SimpleNamespace(rank=0, world_size=1)
AUGMENTED = ViewOptions(source="augmented", preset="seq_jepa")


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


def random_batch(count: int = 8, views: int = 4) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)
    return ViewBatch(
        images=torch.randint(0, 256, (count, views, 32, 32, 3), dtype=torch.uint8, generator=generator),
        latents=torch.rand(count, views, 7, generator=generator),
        quat_xyzw=quat_positive(random_quat(count * views, generator)).float().unflatten(0, (count, views)),
        labels=torch.zeros(count, dtype=torch.int64),
        object_indices=torch.arange(count),
        view_indices=torch.arange(views).expand(count, views),
    )


def rows(batch: ViewBatch, start: int, stop: int) -> ViewBatch:
    fields = {name: getattr(batch, name) for name in ("images", "latents", "quat_xyzw", "labels", "object_indices")}
    kept = {name: value[start:stop] for name, value in fields.items()}
    return ViewBatch(**kept, view_indices=batch.view_indices[start:stop])


def present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def test_rendered_actions_compose_along_the_sequence(data: DataSource) -> None:
    batch = random_batch()
    make_views = SequenceViews(Options(), data, ONE_PROCESS, length=4, actions="rotation")
    assert make_views.stored_views == 4
    views = make_views(batch, 0)
    assert torch.equal(views.images, normalise_views(batch.images, data.mean_rgb, data.std_rgb))
    assert views.length == 4
    steps, from_first, to_last = (present(views.steps()), present(views.from_first()), present(views.to_last()))
    assert steps.shape == from_first.shape == to_last.shape == (8, 3, 4)
    matrices = quat_to_matrix(present(batch.quat_xyzw).double())
    step_matrices = quat_to_matrix(steps.double())
    assert torch.allclose(matrices[:, 0] @ step_matrices[:, 0], matrices[:, 1], atol=1e-6)
    composed = step_matrices[:, 0] @ step_matrices[:, 1] @ step_matrices[:, 2]
    assert torch.allclose(composed, quat_to_matrix(from_first[:, 2].double()), atol=1e-6)
    assert torch.equal(from_first[:, 2], to_last[:, 0])
    assert torch.equal(to_last[:, 2], steps[:, 2])


def test_hues_join_the_rotation_and_no_action_is_made_if_nobody_asks(data: DataSource) -> None:
    batch = random_batch()
    views = SequenceViews(Options(), data, ONE_PROCESS, length=4, actions="rotation_color")(batch, 0)
    hues = batch.latents[:, 2, [3, 6]] - batch.latents[:, 1, [3, 6]]
    assert torch.equal(present(views.steps())[:, 1, 4:], hues)
    silent = SequenceViews(Options(), data, ONE_PROCESS, length=4, actions=None)(batch, 0)
    assert silent.steps() is None and silent.from_first() is None and silent.to_last() is None


@pytest.mark.parametrize("kind", POSE_ACTION_KINDS)
def test_rigid_motions_compose_along_the_sequence(data: DataSource, kind: str) -> None:
    with pytest.raises(UserError, match=f"actions {kind} tell of translations and the objects of 3diebench-p"):
        SequenceViews(Options(), data, ONE_PROCESS, length=4, actions=kind)
    batch = random_batch()
    batch = replace(batch, latents=torch.cat([batch.latents, batch.latents[..., :3] - 0.5], dim=-1))
    train = SimpleNamespace(num_views=4, latents=np.zeros((24, 4, 10), np.float32), quats_xyzw=None)
    moving = SimpleNamespace(name="moving", train=train, mean_rgb=data.mean_rgb, std_rgb=data.std_rgb)
    views = SequenceViews(Options(), moving, ONE_PROCESS, length=4, actions=kind)(batch, 0)
    steps, from_first = present(views.steps()), present(views.from_first())
    assert steps.shape == (8, 3, action_size(kind, Options())) == (8, 3, 7)
    motions = matrix_of_action(steps)
    composed = motions[:, 0] @ motions[:, 1] @ motions[:, 2]
    assert torch.allclose(composed, matrix_of_action(from_first[:, 2]), atol=1e-5)


def test_augmented_sequences_depend_on_seed_and_step_only(data: DataSource) -> None:
    make_views = SequenceViews(Options(AUGMENTED), data, ONE_PROCESS, length=4, actions="augmentation")
    assert make_views.stored_views == 1
    batch = random_batch(views=1)
    views, again, later = make_views(batch, 3), make_views(batch, 3), make_views(batch, 4)
    assert views.images.shape == (8, 4, 3, 32, 32)
    assert torch.equal(views.images, again.images) and torch.equal(present(views.steps()), present(again.steps()))
    assert not torch.equal(views.images, later.images)
    assert present(views.steps()).shape == (8, 3, action_size("augmentation", Options(AUGMENTED)))
    for first in range(3):
        assert not torch.equal(views.images[:, first], views.images[:, first + 1])
    whole = present(views.steps())
    for rank in range(2):
        processes, mine = SimpleNamespace(rank=rank, world_size=2), slice(4 * rank, 4 * rank + 4)
        share = SequenceViews(Options(AUGMENTED), data, processes, length=4, actions="augmentation")
        part = share(rows(batch, mine.start, mine.stop), 3)
        assert torch.allclose(part.images, views.images[mine], atol=1e-5)
        assert torch.equal(present(part.steps()), whole[mine])


@pytest.mark.parametrize("encoding", ["standard", "seq_jepa_raw", "seq_jepa_legacy"])
def test_augmented_actions_add_up_along_the_sequence(data: DataSource, encoding: str) -> None:
    options = Options(ViewOptions(source="augmented", preset="seq_jepa", action_encoding=encoding))
    views = SequenceViews(options, data, ONE_PROCESS, length=4, actions="augmentation")(random_batch(views=1), 0)
    steps, from_first = present(views.steps()), present(views.from_first())
    difference = (steps.cumsum(dim=1) - from_first).abs().amax(dim=(0, 1))
    circular = 1 if encoding == "standard" else 0  # the hue takes the short way round
    assert (difference > 1e-3).sum() <= circular


def observed_actions_that_tell_of_the_target(data: DataSource, encoding: str) -> float:
    """How much the observed actions change when only the target view is drawn anew."""
    options = Options(ViewOptions(source="augmented", preset="seq_jepa", action_encoding=encoding))
    make_views = SequenceViews(options, data, ONE_PROCESS, length=4, actions="augmentation")
    batch, steps = random_batch(views=1), []
    for purpose in ("view 3", "another draw"):
        original = make_views.draws.generator
        make_views.draws.generator = lambda step, name, purpose=purpose, original=original: original(
            step, purpose if name == "view 3" else name
        )
        steps.append(present(make_views(batch, 0).steps())[:, :2])
        make_views.draws.generator = original
    return float((steps[1] - steps[0]).abs().max())


def test_the_default_actions_leak_nothing_of_the_target_and_the_legacy_ones_do(data: DataSource) -> None:
    assert observed_actions_that_tell_of_the_target(data, "standard") == 0
    assert observed_actions_that_tell_of_the_target(data, "seq_jepa_raw") == 0
    assert observed_actions_that_tell_of_the_target(data, "seq_jepa_legacy") > 0.05


def test_an_objective_can_be_told_of_some_transforms_only(data: DataSource) -> None:
    named = ViewOptions(source="augmented", preset="seq_jepa", action_transforms=("crop", "blur"))
    batch = random_batch(views=1)
    everything = SequenceViews(Options(AUGMENTED), data, ONE_PROCESS, length=3, actions="augmentation")(batch, 0)
    some = SequenceViews(Options(named), data, ONE_PROCESS, length=3, actions="augmentation")(batch, 0)
    assert action_size("augmentation", Options(named)) == 5
    assert torch.equal(some.images, everything.images)
    assert torch.equal(present(some.steps())[..., :4], present(everything.steps())[..., :4])
    wrong = ViewOptions(source="augmented", preset="seq_jepa", action_transforms=("rotation",))
    with pytest.raises(UserError, match=r"--views.action-transforms is rotation: .* choose from crop"):
        SequenceViews(Options(wrong), data, ONE_PROCESS, length=3, actions="augmentation")


def test_what_cannot_be_made_is_refused(data: DataSource) -> None:
    with pytest.raises(UserError, match=r"--observed-views is 4 and one more .* have 4 views: choose 3 or less"):
        SequenceViews(Options(), data, ONE_PROCESS, length=5, actions="rotation")
    with pytest.raises(UserError, match="--observed-views is 0: observe at least 1 view"):
        SequenceViews(Options(), data, ONE_PROCESS, length=1, actions="rotation")
    with pytest.raises(UserError, match=r"--actions is augmentation and --views\.source is rendered"):
        SequenceViews(Options(), data, ONE_PROCESS, length=3, actions="augmentation")


def test_the_description_names_what_is_needed_to_make_such_sequences_again() -> None:
    assert describe_sequences(Options(), 3, "rotation") == {
        "source": "rendered", "actions": "rotation", "observed_views": 3,
    }  # fmt: skip
    assert describe_sequences(Options(AUGMENTED), 2, "augmentation") == {
        "source": "augmented", "actions": "augmentation", "observed_views": 2, "preset": "seq_jepa",
        "action_encoding": "standard", "action_transforms": [],
    }  # fmt: skip


def test_a_sequence_without_actions_has_none() -> None:
    assert ViewSequence(torch.zeros(2, 3, 3, 4, 4), None).steps() is None
