"""EquiCaps against its formulas, and its behaviour on given capsules."""

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssl_equi.encoders.capsules.layers import Capsules
from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.objectives.equicaps import EquiCaps, EquiCapsConfig
from tests.fakes import capsule_network
from tests.objectives.case import SIDE
from tests.references.capsules import equicaps, matrices_of_actions
from tests.references.comparison import SmallMapEncoder, disagreements
from tests.references.table import APART, EQUICAPS, JOINT, reference


def random_batch(size: int, pose_side: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Views, and rotations or rigid motions."""
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, SIDE, SIDE, generator=generator, dtype=dtype)
    actions = torch.randn(size, {3: 4, 4: 7}[pose_side], generator=generator, dtype=dtype)
    actions[:, :4] /= actions[:, :4].norm(dim=1, keepdim=True)
    return views, actions


@pytest.mark.parametrize("pose_side", [3, 4])
@pytest.mark.parametrize("variance_target", ["reachable", "published"])
@pytest.mark.parametrize("pose_norm", ["turned_columns", "published"])
@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formulas(pose_side: int, variance_target: str, pose_norm: str, separate: bool) -> None:
    network = CapsuleNetwork(SmallMapEncoder(), SIDE, 5, pose_side, "free")
    expected = reference(
        equicaps,
        actions=({3: 4, 4: 7}[pose_side],),
        objects=20,
        calls=APART if separate else JOINT,
        pose_side=pose_side,
        unit_columns=3 if pose_norm == "turned_columns" else pose_side,
        hinge_share=0.5 if variance_target == "reachable" else None,
        weights=EQUICAPS,
    )
    config = EquiCapsConfig(variance_target=variance_target, pose_norm=pose_norm, separate_batch_norm=separate)
    assert not disagreements(EquiCaps(network, config), expected)


class GivenCapsules(EquiCaps):
    """The objective with capsules that are given instead of computed."""

    def __init__(self, activations: Tensor, poses: Tensor, **options: object) -> None:
        super().__init__(capsule_network(poses.shape[-1], activations.shape[-1]), EquiCapsConfig(**options))
        features = torch.zeros(2 * len(poses), 6, dtype=poses.dtype)
        capsules = Capsules(activations.flatten(0, 1), poses.flatten(0, 1))
        self.network.features_and_capsules = lambda images: (features, capsules)


@pytest.mark.parametrize("pose_side", [3, 4])
def test_poses_that_follow_the_object_have_no_equivariance_term(pose_side: int) -> None:
    """P = A M1 and P' = A M2 for any A of each capsule: then P M1^-1 M2 = P', and only then."""
    generator = torch.Generator().manual_seed(1)
    _, first = random_batch(16, pose_side)
    views, second = random_batch(17, pose_side)
    views, second = views[:16], second[:16]
    m1, m2 = (matrices_of_actions(pose) for pose in (first, second))
    relative = torch.linalg.inv(m1) @ m2
    quat = torch.from_numpy(Rotation.from_matrix(relative[:, :3, :3].numpy()).as_quat())
    action = quat if pose_side == 3 else torch.cat([quat, relative[:, :3, 3]], dim=1)
    a = torch.randn(5, pose_side, pose_side, dtype=torch.float64, generator=generator)
    poses = torch.stack([a @ m1[:, None], a @ m2[:, None]], dim=1)
    activations = torch.rand(16, 2, 5, dtype=torch.float64, generator=generator).softmax(-1)
    assert GivenCapsules(activations, poses)(views, action).terms["equivariance"] < 1e-12
    left = torch.stack([m1[:, None] @ a, m2[:, None] @ a], dim=1)
    assert GivenCapsules(activations, left)(views, action).terms["equivariance"] > 0.05


def test_the_reachable_variance_can_be_reached_and_the_published_one_cannot() -> None:
    """Each capsule alone in turn, poses in all four corners: every column is at its largest standard deviation."""
    num_capsules, size = 4, 512
    generator = torch.Generator().manual_seed(0)
    activations = torch.eye(num_capsules).repeat(size // num_capsules, 1)
    poses = torch.randint(0, 2, (size, 2, num_capsules, 3, 3), generator=generator) * 2.0 - 1
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(size, 4)
    views = torch.zeros(size, 2, 3, SIDE, SIDE)
    pairs = activations[:, None].expand(size, 2, num_capsules)
    reachable = GivenCapsules(pairs, poses)(views, identity).terms
    published = GivenCapsules(pairs, poses, variance_target="published")(views, identity).terms
    assert reachable["variance"] == 0
    assert published["variance"] > 1 - 0.45
    assert reachable["std_inv"].item() == pytest.approx(1, abs=0.01)
    assert reachable["std_equi"].item() == pytest.approx(1, abs=0.01)
    assert reachable["missing_entropy"].item() == pytest.approx(0, abs=1e-5)
    assert reachable["entropy"].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("pose_side", [3, 4])
def test_gradients_are_finite_for_one_hot_activations_and_zero_poses(pose_side: int) -> None:
    activations = torch.eye(4).repeat(4, 1)[:, None].repeat(1, 2, 1).flip(0)
    activations[:, 1] = activations[:, 1].roll(1, dims=-1)  # the views contradict each other: log 0
    activations = activations.bfloat16().requires_grad_()
    poses = torch.zeros(16, 2, 4, pose_side, pose_side, dtype=torch.bfloat16, requires_grad=True)
    objective = GivenCapsules(activations, poses)
    views, actions = random_batch(16, pose_side, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(views, actions)
    output.loss.backward()
    assert output.loss.isfinite() and output.loss.dtype == torch.float32
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (activations, poses))


def test_poses_that_no_action_multiplies_are_refused() -> None:
    network = CapsuleNetwork(SmallMapEncoder(), SIDE, 4, 2, "free")
    with pytest.raises(ValueError, match="pose_side is 2: make the capsules' poses 3 x 3 for rotations"):
        EquiCaps(network)


def test_poses_on_their_last_column_follow_any_action_only_under_the_published_norm() -> None:
    """What says nothing of the rotation has almost no equivariance term if the whole matrix has norm 1."""
    generator = torch.Generator().manual_seed(2)
    poses = 0.01 * torch.randn(16, 2, 4, 4, 4, dtype=torch.float64, generator=generator)
    poses[..., 3] = 1
    activations = torch.full((16, 2, 4), 0.25, dtype=torch.float64)
    batch = random_batch(16, 4)
    assert GivenCapsules(activations, poses, pose_norm="published")(*batch).terms["equivariance"] < 1e-3
    assert GivenCapsules(activations, poses)(*batch).terms["equivariance"] > 0.05


@pytest.mark.parametrize("option", ["variance_target", "pose_norm"])
def test_an_unknown_variance_target_or_norm_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 'one': choose '.*' or 'published'"):
        EquiCaps(capsule_network(3), EquiCapsConfig(**{option: "one"}))
