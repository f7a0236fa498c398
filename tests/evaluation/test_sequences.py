"""Encoded sequences: which views, which actions, and the same ones for every model."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.sequences.embed import POSITION_NAMES, encode_sequences, sequences_of_cache
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.geometry.rotations import quat_multiply, quat_to_matrix, rotation_6d_from_matrix
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.schema import THREEDIEBENCH_T, Latent, LatentSchema
from ssl_equi.views.makers import ViewSequence
from tests.fakes import feature_cache


def cache_that_names_its_views(num_objects: int = 5, num_views: int = 6) -> FeatureCache:
    """Features are (object, view); latents are random poses and hues."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.rand(num_objects, num_views, 7, generator=generator)
    latents[..., :3] = (latents[..., :3] - 0.5) * torch.pi
    objects, views = torch.meshgrid(torch.arange(num_objects), torch.arange(num_views), indexing="ij")
    features = torch.stack([objects, views], dim=-1).float()
    return feature_cache(features, torch.arange(num_objects) % 2, latents, quat_xyzw_from_latents(latents))


def test_views_of_a_sequence_are_distinct_views_of_one_object():
    sequences = sequences_of_cache(cache_that_names_its_views(), ["rotation"], length=4, per_object=3, seed=0)
    assert sequences.features.shape == (15, 4, 2)
    objects, views = sequences.features.long().unbind(dim=2)
    assert torch.equal(objects, sequences.objects[:, None].expand(15, 4))
    assert torch.equal(sequences.labels, sequences.objects % 2)
    assert sequences.objects.tolist() == [number // 3 for number in range(15)]
    assert all(len(set(row.tolist())) == 4 for row in views)
    assert len({tuple(row.tolist()) for row in views}) > 10


def test_actions_are_body_frame_rotations_and_differences_of_hues():
    cache = cache_that_names_its_views()
    sequences = sequences_of_cache(cache, ["rotation_color"], length=4, per_object=2, seed=0)
    matrices = quat_to_matrix(cache.quats_xyzw)
    for number in (0, 5, 9):
        objects, views = sequences.features[number].long().unbind(dim=1)
        for i in range(4):
            for j in range(4):
                first, second = matrices[objects[i], views[i]], matrices[objects[j], views[j]]
                action = sequences.actions[number, i, j]
                assert torch.allclose(quat_to_matrix(action[:4]), first.T @ second, atol=1e-5)
                hues = cache.latents[objects[j], views[j]] - cache.latents[objects[i], views[i]]
                assert torch.allclose(action[4:], hues[[3, 6]], atol=1e-6)


def test_hues_are_asked_for_beside_what_the_model_is_told():
    cache = cache_that_names_its_views()
    for kind, columns in (("rotation_6d", 6), ("rotation_matrix", 9)):
        told = sequences_of_cache(cache, [kind], length=4, per_object=2, seed=0)
        plain = sequences_of_cache(cache, ["rotation"], length=4, per_object=2, seed=0)
        assert told.told_columns == tuple(range(columns)) and told.action_names[columns:] == plain.action_names
        assert torch.equal(told.actions[..., columns:], plain.actions)
        matrices = quat_to_matrix(plain.actions)
        written = rotation_6d_from_matrix(matrices) if columns == 6 else matrices.flatten(-2)
        assert torch.equal(told.actions[..., :columns], written)
    with_hues = sequences_of_cache(cache, ["rotation"], length=4, per_object=2, seed=0, ask_for_hues=True)
    both = sequences_of_cache(cache, ["rotation_color"], length=4, per_object=2, seed=0, ask_for_hues=True)
    assert torch.equal(with_hues.actions, both.actions) and with_hues.action_names == both.action_names
    assert with_hues.told_columns == (0, 1, 2, 3) and both.told_columns is None


@pytest.mark.parametrize("kind", ["pose_base", "pose_object"])
def test_rigid_motions_between_views_of_objects_that_move(kind: str):
    still = cache_that_names_its_views()
    with pytest.raises(UserError, match=f"action '{kind}' is none of this data's"):
        sequences_of_cache(still, [kind], length=4, per_object=2, seed=0)
    cache = replace(
        still, latents=torch.cat([still.latents, still.latents[..., 3:6] - 0.5], dim=-1), schema=THREEDIEBENCH_T
    )
    told = sequences_of_cache(cache, [kind], length=4, per_object=2, seed=0)
    assert told.action_names[4:] == tuple(f"{kind.removeprefix('pose_')}_translation_{axis}" for axis in "xyz")
    assert torch.equal(told.actions[..., :4], sequences_of_cache(cache, ["rotation"], 4, 2, seed=0).actions)
    motions = matrix_of_action(told.actions)
    assert torch.allclose(motions[:, 0, 1] @ motions[:, 1, 3], motions[:, 0, 3], atol=1e-5)
    asked = sequences_of_cache(cache, [kind], length=4, per_object=2, seed=0, ask_for_hues=True)
    assert asked.told_columns == tuple(range(7)) and torch.equal(asked.told_steps(0, 3), told.steps(0, 3))
    assert asked.action_names == (*told.action_names, "floor_hue", "light_hue")


def test_actions_obey_the_group_laws_with_their_signs():
    actions = sequences_of_cache(cache_that_names_its_views(), ["rotation"], length=5, per_object=2, seed=0).actions
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert torch.allclose(actions[:, 2, 2], identity.expand(10, 4), atol=1e-6)
    assert torch.allclose(quat_multiply(actions[:, 1, 3], actions[:, 3, 4]), actions[:, 1, 4], atol=1e-6)
    assert torch.allclose(quat_multiply(actions[:, 0, 2], actions[:, 2, 0]), identity.expand(10, 4), atol=1e-6)


def test_two_models_are_given_the_same_sequences():
    cache = cache_that_names_its_views()
    other = replace(cache, features=torch.randn(5, 6, 3))
    mine, theirs = [sequences_of_cache(each, ["rotation"], length=4, per_object=2, seed=7) for each in (cache, other)]
    assert torch.equal(mine.actions, theirs.actions)
    objects, views = mine.features.long().unbind(dim=2)
    assert torch.equal(theirs.features, other.features[objects, views])
    assert not torch.equal(mine.actions, sequences_of_cache(cache, ["rotation"], 4, 2, seed=8).actions)


def test_steps_are_the_actions_between_neighbours_and_told_in_part():
    sequences = sequences_of_cache(cache_that_names_its_views(), ["rotation_color"], length=5, per_object=1, seed=0)
    steps = sequences.steps(1, 3)
    assert torch.equal(steps[:, 0], sequences.actions[:, 1, 2])
    assert torch.equal(steps[:, 2], sequences.actions[:, 3, 4])
    assert torch.equal(sequences.told_steps(1, 3), steps)
    told = replace(sequences, told_columns=(0, 1, 2, 3))
    assert torch.equal(told.told_steps(1, 3), steps[..., :4])
    assert told.steps(0, 0).shape == (5, 0, 6)


def test_one_per_object_is_the_first_sequence_of_each():
    sequences = sequences_of_cache(cache_that_names_its_views(), ["rotation"], length=4, per_object=3, seed=0)
    first = sequences.one_per_object()
    assert torch.equal(first.features, sequences.features[::3])
    assert torch.equal(first.objects, torch.arange(5))
    assert sequences.num_objects == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 7}, "of 7 distinct views were asked for and objects have 6"),
        ({"length": 0}, "of 0 distinct views"),
        ({"per_object": 0}, "0 sequences"),
        ({"told": ["translation"]}, "action 'translation' is none of this data's: choose from rotation_color"),
    ],
)
def test_sequences_that_cannot_be_are_refused(changes, message):
    with pytest.raises((ValueError, UserError), match=message):
        sequences_of_cache(
            cache_that_names_its_views(), **({"told": ["rotation"], "length": 4, "per_object": 1, "seed": 0} | changes)
        )


def test_views_without_latents_have_no_sequences():
    cache = cache_that_names_its_views()
    unknown = replace(cache, quats_xyzw=None, latents=cache.latents[..., :0], schema=None)
    with pytest.raises(UserError, match="actions rotation are made from latents, and none are known of these views"):
        sequences_of_cache(unknown, ["rotation"], 4, 1, 0)


def test_poses_are_asked_for_beside_other_latents():
    cache = cache_that_names_its_views()
    schema = LatentSchema((Latent("pose", Rotation(), 0), Latent("shade", Number((0, 2)), 3)))
    posed = replace(cache, latents=cache.latents[..., :4], schema=schema)
    asked = sequences_of_cache(posed, ["shade"], 4, 1, 0, ask_for_hues=True)
    assert asked.action_names == ("shade", "pose_x", "pose_y", "pose_z", "pose_w") and asked.told_columns == (0,)
    assert torch.equal(asked.actions[..., 1:], sequences_of_cache(cache, ["rotation"], 4, 1, 0).actions)
    shades = posed.latents[asked.objects[:, None], asked.features[..., 1].long()][..., 3]
    torch.testing.assert_close(asked.told_steps(0, 3)[..., 0], shades.diff(dim=1) / 2)
    turntable = replace(
        cache, latents=cache.latents[..., :1], schema=LatentSchema((Latent("azimuth", Angle(), 0),)), quats_xyzw=None
    )
    assert sequences_of_cache(turntable, ["azimuth"], 4, 1, 0).action_names == ("azimuth_0", "azimuth_1")


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@dataclass(frozen=True)
class OneViewCollection(ViewCollection):
    """Objects with one or two stored views of different sizes; the first pixel shows object and view."""

    num_objects: int = 5
    num_views: int = 2
    image_size: tuple[int, int] = (4, 4)
    fills_image: bool = False

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.num_objects) % 3

    def read_views(self, object_indices, view_indices, out, content_sizes_out=None) -> None:
        out[...] = (10 * object_indices[:, None] + view_indices)[..., None, None, None]
        content_sizes_out[...] = (3, 2)


def jumps(batch: ViewBatch, step: int) -> ViewSequence:
    """Four views of the stored image, each brighter by its number than the last; positions depend on the step."""
    assert batch.content_sizes.tolist() == [[[3, 2]]] * len(batch.images)
    image = batch.images[:, 0].permute(0, 3, 1, 2).float()
    positions = torch.arange(4)[None, :, None] * (batch.object_indices[:, None, None] + 100 * step) + torch.zeros(2)
    return ViewSequence(
        torch.stack([image + number / 8 for number in range(4)], dim=1),
        lambda first, second: positions[:, second] - positions[:, first],
    )


def test_made_sequences_go_through_the_collection_in_order():
    sequences = encode_sequences(
        MeanColour(), OneViewCollection(), jumps, POSITION_NAMES, length=3, per_object=3, batch_size=2
    )
    assert sequences.objects.tolist() == [0, 1, 2, 3, 4] * 3
    assert sequences.labels.tolist() == [0, 1, 2, 0, 1] * 3
    stored_view = torch.tensor([0, 1, 0]).repeat_interleave(5)  # the third sequence begins anew
    expected = (10 * sequences.objects + stored_view)[:, None] + torch.arange(3) / 8
    assert torch.allclose(sequences.features, expected[..., None].expand(15, 3, 3))
    steps = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8])
    speeds = (sequences.objects + 100 * steps).float()
    for first in range(3):
        for second in range(3):
            expected = ((second - first) * speeds)[:, None].expand(15, 2)
            assert torch.equal(sequences.actions[:, first, second], expected)


def test_made_sequences_leave_the_encoder_as_it_was_and_are_told_of_faults():
    encoder = nn.Sequential(nn.BatchNorm2d(3), MeanColour())
    encode_sequences(encoder, OneViewCollection(), jumps, POSITION_NAMES, length=3)
    assert encoder.training and encoder[0].num_batches_tracked == 0
    with pytest.raises(RuntimeError, match="not finite"):
        encode_sequences(
            MeanColour(),
            OneViewCollection(),
            lambda batch, step: replace(
                jumps(batch, step), images=torch.full((len(batch.labels), 3, 3, 4, 4), torch.nan)
            ),
            POSITION_NAMES,
            length=3,
        )
