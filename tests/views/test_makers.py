"""Which views a step sees: the same ones whatever the number of processes, and again after a resume."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.data.images import normalise_views
from ssl_equi.errors import UserError
from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.geometry.rotations import quat_to_matrix, relative_quat
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.number import Number
from ssl_equi.latents.schema import Latent, LatentSchema
from ssl_equi.views import operations
from ssl_equi.views.groups import GROUPS
from ssl_equi.views.makers import AugmentedViews, TransformedSmallViews, ViewSequence, views
from ssl_equi.views.options import SmallViewOptions, ViewOptions, action_size
from ssl_equi.views.presets import PRESETS
from tests.fakes import Processes, Source, Split, ViewsConfig, random_batch, rows_of, view_batch
from tests.simulated_device import SimulatedDevice

DATA = Source()
MOVING = Source(Split(np.zeros((24, 4, 10), np.float32)), name="moving")
ALONE = Processes()
RENDERED = ViewsConfig()


def augmented(preset: str = "mocov2", **options: Any) -> ViewsConfig:
    return ViewsConfig(ViewOptions(source="augmented", preset=preset, **options))


def small_views(
    config: ViewsConfig = RENDERED, processes: Processes = ALONE, *, relative: bool = False, **options: Any
) -> TransformedSmallViews:
    small = SmallViewOptions(**{"size": 16} | options)
    return TransformedSmallViews(config, small, DATA, processes, relative=relative)


def present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


# ---------------------------------------------------------------- stored views


def test_rendered_views_are_the_stored_ones_with_the_actions_between_them() -> None:
    batch = random_batch(views=4)
    make_views = views(RENDERED, DATA, ALONE, length=4, actions=("rotation_color",))
    assert make_views.stored_views == 4
    made = make_views(batch, 0)
    assert made.length == 4
    assert torch.equal(made.images, normalise_views(batch.images, DATA.mean_rgb, DATA.std_rgb))
    for first, second in ((0, 1), (1, 2), (3, 0)):
        quats = present(batch.quat_xyzw)
        hues = (batch.latents[:, second] - batch.latents[:, first])[:, [3, 6]]
        expected = torch.cat([relative_quat(quats[:, first], quats[:, second]), hues], dim=1)
        assert torch.equal(present(made.action_between)(first, second), expected)
    assert torch.equal(present(made.action), made.action_between(0, 1))
    assert batch.augmenting.seconds > 0


def test_actions_of_other_latents_are_sines_cosines_and_shares_of_the_range() -> None:
    """Azimuths come round, elevations don't; nothing is known of a rotation."""
    azimuths_deg = np.array([[350.0, 10.0, 180.0], [90.0, 45.0, 0.0]])
    elevations_deg = np.array([[0.0, 30.0, 90.0], [60.0, 60.0, 15.0]])
    latents = np.stack([azimuths_deg, elevations_deg], axis=-1).astype(np.float32)
    schema = LatentSchema((Latent("azimuth", Angle(), 0), Latent("elevation", Number((0, 90), "deg"), 1)))
    data = Source(Split(latents, schema=schema), name="turntable")
    images = torch.zeros(2, 3, 4, 4, 3, dtype=torch.uint8)
    batch = view_batch(images, latents=torch.from_numpy(latents), quat_xyzw=None)
    made = views(RENDERED, data, ALONE, length=3, actions=("elevation", "azimuth"))(batch, 0)
    for first, second in ((0, 1), (2, 0), (1, 1)):
        turns_rad = np.radians(azimuths_deg[:, second] - azimuths_deg[:, first])
        shares = (elevations_deg[:, second] - elevations_deg[:, first]) / 90
        expected = np.stack([shares, np.sin(turns_rad), np.cos(turns_rad)], axis=1)
        np.testing.assert_allclose(present(made.action_between)(first, second), expected, atol=1e-6)
    assert action_size(replace(RENDERED, told=("elevation", "azimuth")), data) == 3
    assert action_size(RENDERED, data) == 0


@pytest.mark.parametrize("kind", ["rotation", "pose_base", "pose_object"])
def test_rendered_actions_compose_along_the_sequence(kind: str) -> None:
    batch = random_batch(views=4, num_latents=10)
    made = views(RENDERED, MOVING, ALONE, length=4, actions=(kind,))(batch, 0)
    steps, from_first, to_last = present(made.steps()), present(made.from_first()), present(made.to_last())
    assert (
        steps.shape == from_first.shape == to_last.shape == (8, 3, action_size(replace(RENDERED, told=(kind,)), MOVING))
    )
    motions = matrix_of_action(steps.double())
    if kind == "rotation":
        poses = quat_to_matrix(present(batch.quat_xyzw).double())
        assert torch.allclose(poses[:, 0] @ motions[:, 0], poses[:, 1], atol=1e-6)
    composed = motions[:, 0] @ motions[:, 1] @ motions[:, 2]
    assert torch.allclose(composed, matrix_of_action(from_first[:, 2].double()), atol=1e-5)
    assert torch.equal(from_first[:, 2], to_last[:, 0]) and torch.equal(to_last[:, 2], steps[:, 2])


def test_no_action_is_made_if_nobody_asks() -> None:
    for made in (
        views(RENDERED, DATA, ALONE, length=4)(random_batch(views=4), 0),
        views(augmented(), DATA, ALONE)(random_batch(), 0),
        ViewSequence(torch.zeros(2, 3, 3, 4, 4), None),
    ):
        assert made.action is None and made.steps() is None and made.from_first() is None and made.to_last() is None


def test_quaternions_beyond_the_euler_box_are_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    latents = np.zeros((24, 4, 7), np.float32)
    latents[..., 2] = np.linspace(-3, 3, 4)
    turntable = Source(Split(latents), name="turntable")
    rotation = ("rotation",)
    for actions, rank, warned in ((rotation, 0, 1), (rotation, 1, 0), (("rotation_6d",), 0, 0), (None, 0, 0)):
        views(RENDERED, turntable, Processes(rank, 2), actions=actions)
        assert capsys.readouterr().err.count("warning: views of split 'train' turn by up to 172 degrees") == warned


# ---------------------------------------------------------------- augmented views


@pytest.mark.parametrize(("preset", "length"), [*((preset, 2) for preset in PRESETS), ("seq_jepa", 4)])
def test_augmented_views_are_different_changes_of_the_first_image(preset: str, length: int) -> None:
    config = augmented(preset)
    make_views = views(config, DATA, ALONE, length=length, actions=("augmentation",))
    assert make_views.stored_views == 1
    batch = random_batch()
    made, again, later = make_views(batch, 3), make_views(batch, 3), make_views(batch, 4)
    assert made.images.shape == (8, length, 3, 32, 32) and made.images.dtype == torch.float32
    assert made.images.isfinite().all()
    for first in range(length - 1):
        assert not torch.equal(made.images[:, first], made.images[:, first + 1])
    steps = present(made.steps())
    assert (
        steps.shape == (8, length - 1, action_size(replace(config, told=("augmentation",)))) and steps.isfinite().all()
    )
    assert torch.equal(made.images, again.images) and torch.equal(steps, present(again.steps()))
    assert not torch.equal(made.images, later.images)
    assert not torch.equal(views(replace(config, seed=1), DATA, ALONE, length=length)(batch, 3).images, made.images)
    assert batch.augmenting.seconds > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_on_a_gpu_the_views_are_the_same_in_channels_last_memory(preset: str, device: SimulatedDevice) -> None:
    make_views = views(augmented(preset), DATA, ALONE, actions=("augmentation",))
    expected, found = (make_views(random_batch().to(place), step=0) for place in ("cpu", "cuda"))
    assert found.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert (found.images.cpu() - expected.images).abs().max() < 2e-5  # five times that of values in [0, 1]
    assert torch.equal(present(found.action).cpu(), present(expected.action))


def test_a_gpu_runs_compiled_code_if_asked(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is run as it is here; on a GPU tests/test_cuda.py compiles it."""
    calls: list[tuple[int, ...]] = []

    def noted(images: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        calls.append(images.shape)
        return operations._adjust_at_once(images, values, positions)

    monkeypatch.setattr(operations, "compiled_adjust_at_once", lambda: noted)
    config = replace(augmented(), compile=True)
    for place, expected in (("cpu", []), ("cuda", [(16, 3, 32, 32), (16, 3, 32, 32), (8, 3, 16, 16)])):
        batch = random_batch().to(place)
        views(config, DATA, ALONE)(batch, 0)
        AugmentedViews(config, DATA, ALONE, name="shared view")(batch, 0)
        small_views(config)(batch, 0)
        views(augmented(), DATA, ALONE)(batch, 0)
        assert calls == expected


@pytest.mark.parametrize("canvas", [False, True], ids=["full images", "pictures of their own sizes"])
def test_two_processes_make_the_views_of_one(canvas: bool) -> None:
    batch = random_batch()
    if canvas:
        sizes = torch.randint(8, 33, (8, 2, 2), generator=torch.Generator().manual_seed(2))
        batch = replace(batch, content_sizes=sizes)

    def made(processes: Processes, rows: slice) -> list[Tensor]:
        part, config = rows_of(batch, rows), augmented()
        pairs = views(config, DATA, processes, length=3, actions=("augmentation",))(part, 5)
        chunks = AugmentedViews(config, DATA, processes, shared_by=4, name="shared view")(part, 5)
        found = [pairs.images, present(pairs.steps()), chunks.images]
        for options in ({"elements": 2}, {"relative": True}):
            found += small_views(config, processes, **options)(part, 5)
        return found

    whole = made(ALONE, slice(0, 8))
    for rank in range(2):
        rows = slice(4 * rank, 4 * rank + 4)
        for part, everything in zip(made(Processes(rank, 2), rows), whole, strict=True):
            assert torch.allclose(part, everything[rows], atol=1e-5)


@pytest.mark.parametrize("encoding", ["standard", "seq_jepa_raw", "seq_jepa_legacy"])
def test_augmented_actions_add_up_along_the_sequence(encoding: str) -> None:
    config = augmented("seq_jepa", action_encoding=encoding)
    made = views(config, DATA, ALONE, length=4, actions=("augmentation",))(random_batch(views=1), 0)
    difference = (present(made.steps()).cumsum(dim=1) - present(made.from_first())).abs().amax(dim=(0, 1))
    circular = 1 if encoding == "standard" else 0  # the hue takes the short way round
    assert (difference > 1e-3).sum() <= circular


@pytest.mark.parametrize(("encoding", "leak"), [("standard", 0), ("seq_jepa_raw", 0), ("seq_jepa_legacy", 0.05)])
def test_observed_actions_tell_nothing_of_the_target_but_for_the_legacy_ones(encoding: str, leak: float) -> None:
    """How much the observed actions change when only the target view is drawn anew."""
    config = augmented("seq_jepa", action_encoding=encoding)
    make_views = views(config, DATA, ALONE, length=4, actions=("augmentation",))
    assert isinstance(make_views, AugmentedViews)
    original = make_views.draws.generator
    told = []
    for purpose in ("view 3", "another draw"):
        names = {"view 3": purpose}
        make_views.draws.generator = lambda step, name, names=names: original(step, names.get(name, name))
        told.append(present(make_views(random_batch(views=1), 0).steps())[:, :2])
    change = float((told[1] - told[0]).abs().max())
    assert change > leak if leak else change == 0


def test_an_objective_can_be_told_of_some_transforms_only() -> None:
    some = augmented("seq_jepa", action_transforms=("crop", "blur"))
    batch = random_batch(views=1)
    of_all, of_some = (
        views(config, DATA, ALONE, length=3, actions=("augmentation",))(batch, 0)
        for config in (augmented("seq_jepa"), some)
    )
    assert action_size(replace(some, told=("augmentation",))) == 5
    assert torch.equal(of_some.images, of_all.images)
    assert torch.equal(present(of_some.steps())[..., :4], present(of_all.steps())[..., :4])
    with pytest.raises(UserError, match=r"--views.action-transforms is rotation: .* choose from crop"):
        views(augmented("seq_jepa", action_transforms=("rotation",)), DATA, ALONE, actions=("augmentation",))


def test_chunks_share_their_pair_of_augmentations_and_each_has_its_own() -> None:
    same_image = view_batch(random_batch(count=1).images.expand(8, 2, 32, 32, 3).contiguous())
    shared = AugmentedViews(augmented(), DATA, ALONE, shared_by=4, name="shared view")(same_image, 0).images
    for chunk in shared.split(4):
        assert torch.allclose(chunk, chunk[:1].expand_as(chunk), atol=1e-5)
        assert (chunk[:, 0] - chunk[:, 1]).abs().max() > 0.1
    assert (shared[0] - shared[4]).abs().max() > 0.1


# ---------------------------------------------------------------- small views


def test_small_views_come_under_every_element_with_its_label() -> None:
    images, elements = small_views()(random_batch(), step=0)
    assert images.shape == (8, 4, 3, 16, 16)
    assert torch.equal(elements, torch.arange(4).expand(8, 4))
    for turns in range(4):
        assert torch.allclose(images[:, turns], torch.rot90(images[:, 0], turns, dims=(2, 3)))


def test_drawn_elements_are_different_ones_of_each_image() -> None:
    images, elements = small_views(group="jigsaw", elements=5)(random_batch(), step=0)
    assert images.shape[:2] == elements.shape == (8, 5)
    assert all(len(set(row)) == 5 for row in elements.tolist())
    assert not torch.equal(elements[0], elements[1])


def test_every_element_is_drawn_about_equally_often() -> None:
    _, elements = small_views(elements=2)(random_batch(count=2000, views=1, side=8), step=0)
    counts = torch.bincount(elements.flatten(), minlength=4)
    assert (counts - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_relative_small_views_are_two_crops_under_two_elements() -> None:
    images, elements = small_views(relative=True)(random_batch(count=64), step=0)
    assert images.shape == (64, 2, 3, 16, 16) and elements.shape == (64, 2)
    assert set(elements.flatten().tolist()) == {0, 1, 2, 3}
    upright = [GROUPS["four_fold_rotation"].apply(images[:, view], (4 - elements[:, view]) % 4) for view in range(2)]
    assert (upright[0] - upright[1]).flatten(1).abs().amax(dim=1).min() > 0.05


# ---------------------------------------------------------------- what is said of them


def test_the_description_names_what_is_needed_to_make_such_sequences_again() -> None:
    assert views(RENDERED, DATA, ALONE, length=4, actions=("rotation",)).describe() == {
        "source": "rendered", "actions": {"names": ["rotation"], "kinds": ["rotation"], "widths": [4]},
        "observed_views": 3,
    }  # fmt: skip
    augmentation = {"names": ["augmentation"], "kinds": ["augmentation"], "widths": [12]}
    assert views(augmented("seq_jepa"), DATA, ALONE, length=3, actions=("augmentation",)).describe() == {
        "source": "augmented", "actions": augmentation, "observed_views": 2, "preset": "seq_jepa",
        "action_encoding": "standard", "action_transforms": [],
    }  # fmt: skip
    for config in (RENDERED, augmented("seq_jepa")):
        assert views(config, DATA, ALONE).describe()["actions"] is None


SINGLE = Source(Split(np.zeros((24, 1, 0), np.float32)), name="folder")
UNKNOWN = Source(Split(np.zeros((24, 4, 0), np.float32)), name="views")


@pytest.mark.parametrize(
    ("config", "data", "options", "message"),
    [
        (RENDERED, SINGLE, {}, r"folder holds one view of each image: choose --views\.source augmented"),
        (RENDERED, DATA, {"length": 5}, r"sequences of 5 views .* have 4: choose --observed-views 3 or less"),
        (RENDERED, DATA, {"actions": ("pose_base",)}, "action 'pose_base' is none of this data's: choose from"),
        (
            RENDERED,
            DATA,
            {"actions": ("augmentation",)},
            "--actions is augmentation .* choose from rotation_color, r",
        ),
        (RENDERED, UNKNOWN, {"actions": ("augmentation",)}, "choose names of the data's latents"),
        (RENDERED, UNKNOWN, {"actions": ("rotation",)}, "actions rotation are made from latents, and none are known"),
        (
            RENDERED,
            DATA,
            {"actions": ("augmentation", "light")},
            "--actions is augmentation light and augmentation go",
        ),
        (augmented(), DATA, {"actions": ("light", "augmentation")}, "goes with no latents: name it alone, or leave it"),
        (RENDERED, DATA, {"shared_by": 4}, "rendered views share no augmentations"),
        (augmented(), DATA, {"actions": ("rotation",)}, "choose --actions augmentation"),
        (augmented(), DATA, {"shared_by": 3}, "--batch-size is 8 and chunks of 3 images .*: choose a multiple of 3"),
        (augmented("none"), DATA, {}, "there are no views named 'none'"),
    ],
)
def test_what_cannot_be_made_is_refused(config: ViewsConfig, data: Source, options: dict, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        views(config, data, ALONE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "spin"}, r"--small-view\.group is 'spin': choose from four_fold_rotation"),
        ({"elements": 5}, r"--small-view\.elements is 5: four_fold_rotation has 4"),
    ],
)
def test_small_views_that_cannot_be_made_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_views(**options)
