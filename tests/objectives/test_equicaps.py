"""EquiCaps' loss against an independent NumPy computation from the capsules, and its behaviour."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from ssl_equi.encoders.capsules.layers import Capsules
from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.objectives.equicaps import EquiCaps, EquiCapsConfig

IMAGE_SIZE = 8


class SmallBackbone(nn.Module):
    """A map of 2 x 2 positions and its mean, with batch norm."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6), nn.ReLU())

    def forward_features(self, images: Tensor) -> Tensor:
        return self.map(images)

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def make_objective(pose_side: int = 3, num_capsules: int = 5, **options: object) -> EquiCaps:
    torch.manual_seed(0)
    network = CapsuleNetwork(SmallBackbone(), IMAGE_SIZE, num_capsules, pose_side, "free")
    with torch.no_grad():  # uniform routing at the start would hide what depends on it
        for name, parameter in network.head.named_parameters():
            if "routing" in name:
                parameter.normal_()
    return EquiCaps(network, EquiCapsConfig(**options))  # type: ignore[arg-type]


def random_batch(size: int, pose_side: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=dtype)
    actions = torch.randn(size, {3: 4, 4: 7}[pose_side], generator=generator, dtype=dtype)
    actions[:, :4] = nn.functional.normalize(actions[:, :4], dim=1)
    return views, actions


def numpy_matrices(actions: Tensor) -> np.ndarray:
    """Rotations [B, 3, 3], or rigid motions [B, 4, 4] whose last column is the translation."""
    rotations = Rotation.from_quat(actions[:, :4].numpy()).as_matrix()
    if actions.shape[1] == 4:
        return rotations
    matrices = np.tile(np.eye(4), (len(actions), 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = rotations, actions[:, 4:].numpy()
    return matrices


def numpy_unit(poses: np.ndarray, columns: int) -> np.ndarray:
    return poses / np.sqrt((poses[..., :columns] ** 2).sum((2, 3), keepdims=True))


def numpy_variance(embedding: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(np.maximum(0, 1 - np.sqrt((embedding / targets).var(0, ddof=1) + 1e-4))))


def numpy_covariance(embedding: np.ndarray) -> float:
    covariance = np.cov(embedding, rowvar=False)
    return float(((covariance**2).sum() - (np.diag(covariance) ** 2).sum()) / embedding.shape[1])


def numpy_terms(objective: EquiCaps, activations: np.ndarray, poses: np.ndarray, actions: Tensor) -> dict[str, float]:
    """Every term from activations [B, 2, K] and poses [B, 2, K, d, d]."""
    num_capsules, side = poses.shape[2], poses.shape[3]
    columns = side if objective.config.pose_norm == "published" else 3
    moved = numpy_unit(np.einsum("bkij,bjl->bkil", poses[:, 0], numpy_matrices(actions)), columns)
    target = numpy_unit(poses[:, 1], columns)
    embeddings = [
        np.concatenate([activations[:, view], unit.reshape(len(unit), -1)], axis=1)
        for view, unit in enumerate((moved, target))
    ]
    targets = np.ones(embeddings[0].shape[1])
    if objective.config.variance_target == "reachable":
        targets[:num_capsules] = 0.5 * math.sqrt(num_capsules - 1) / num_capsules
        targets[num_capsules:] = 0.5 / math.sqrt(columns * side)
    means = activations.mean(0)
    return {
        "invariance": float(-(activations[:, 1] * np.log(activations[:, 0])).sum(1).mean()),
        "equivariance": float(((moved - target) ** 2).mean()),
        "missing_entropy": float(2 * math.log(num_capsules) + (means * np.log(means)).sum()),
        "variance": (numpy_variance(embeddings[0], targets) + numpy_variance(embeddings[1], targets)) / 2,
        "covariance": numpy_covariance(embeddings[0]) + numpy_covariance(embeddings[1]),
    }


def capsules_in_numpy(objective: EquiCaps, views: Tensor, separate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Activations [B, 2, K] and poses [B, 2, K, d, d] of the network as it stands."""
    with torch.no_grad():
        if separate:
            both = [objective.network.features_and_capsules(view)[1] for view in views.unbind(1)]
            return tuple(np.stack([capsules[i].numpy() for capsules in both], axis=1) for i in range(2))  # type: ignore[return-value]
        capsules = objective.network.features_and_capsules(views.flatten(0, 1))[1]
    return tuple(part.unflatten(0, (len(views), 2)).numpy() for part in capsules)  # type: ignore[return-value]


@pytest.mark.parametrize("pose_side", [3, 4])
@pytest.mark.parametrize("variance_target", ["reachable", "published"])
@pytest.mark.parametrize("pose_norm", ["turned_columns", "published"])
@pytest.mark.parametrize("separate_batch_norm", [False, True])
def test_terms_and_loss_equal_numpy(
    pose_side: int, variance_target: str, pose_norm: str, separate_batch_norm: bool
) -> None:
    options = {"variance_target": variance_target, "pose_norm": pose_norm, "separate_batch_norm": separate_batch_norm}
    objective = make_objective(pose_side, **options).double()
    views, actions = random_batch(20, pose_side)
    output = objective(views, actions)
    expected = numpy_terms(objective, *capsules_in_numpy(objective, views, separate_batch_norm), actions)

    assert set(output.terms) - {"std_inv", "std_equi", "entropy"} == set(expected)
    for name, value in expected.items():
        assert value > 0
        assert output.terms[name].item() == pytest.approx(value, rel=1e-6), name
    weights = {"invariance": 0.1, "equivariance": 5, "missing_entropy": 1, "variance": 10, "covariance": 1}
    assert output.loss.item() == pytest.approx(sum(weights[name] * expected[name] for name in weights), rel=1e-10)
    features = objective.encoder(views.flatten(0, 1)) if not separate_batch_norm else None
    if features is not None:
        torch.testing.assert_close(output.features, features.unflatten(0, (20, 2)).detach())


class GivenCapsules(EquiCaps):
    """The objective with capsules that are given instead of computed."""

    def __init__(self, activations: Tensor, poses: Tensor, **options: object) -> None:
        base = make_objective(poses.shape[-1], activations.shape[-1])
        super().__init__(base.network, EquiCapsConfig(**options))  # type: ignore[arg-type]
        features = torch.zeros(2 * len(poses), 6, dtype=poses.dtype)
        capsules = Capsules(activations.flatten(0, 1), poses.flatten(0, 1))
        self.network.features_and_capsules = lambda images: (features, capsules)  # type: ignore[method-assign]


@pytest.mark.parametrize("pose_side", [3, 4])
def test_poses_that_follow_the_object_have_no_equivariance_term(pose_side: int) -> None:
    """P = A M1 and P' = A M2 for any A of each capsule: then P M1^-1 M2 = P', and only then."""
    generator = torch.Generator().manual_seed(1)
    _, first = random_batch(16, pose_side)
    views, second = random_batch(17, pose_side)
    views, second = views[:16], second[:16]
    m1, m2 = (torch.from_numpy(numpy_matrices(pose)) for pose in (first, second))
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
    views = torch.zeros(size, 2, 3, IMAGE_SIZE, IMAGE_SIZE)
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


@pytest.mark.parametrize("pose_side", [3, 4])
def test_a_step_in_bf16_is_finite_and_close_to_float32(pose_side: int) -> None:
    views, actions = random_batch(32, pose_side, torch.float32)
    objective = make_objective(pose_side)
    exact = objective(views, actions).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(views, actions)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(exact, rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


def test_some_steps_on_one_batch_bring_every_term_down() -> None:
    objective = make_objective(num_capsules=8)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    views, actions = random_batch(48, 3, torch.float32)
    first = objective(views, actions)
    for _ in range(60):
        optimizer.zero_grad()
        output = objective(views, actions)
        output.loss.backward()
        optimizer.step()
    assert output.loss < first.loss - 0.5
    assert output.terms["equivariance"] < 0.5 * first.terms["equivariance"]
    assert output.terms["std_inv"] > first.terms["std_inv"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"views": torch.zeros(4, 3, 3, 8, 8)}, r"views have shape \(4, 3, 3, 8, 8\): pass \[B, 2, C, H, W\]"),
        ({"views": torch.zeros(1, 2, 3, 8, 8), "actions": torch.zeros(1, 4)}, "views hold 1 object"),
        ({"actions": torch.zeros(4, 7)}, "actions have 7 columns but action_dim is 4"),
        ({"actions": torch.full((4, 4), math.nan)}, "the action in row 0 is"),
        ({"actions": None}, "actions are None"),
    ],
)
def test_malformed_input_is_refused(change: dict[str, Tensor], sentence: str) -> None:
    views, actions = random_batch(4, 3, torch.float32)
    with pytest.raises(ValueError, match=sentence):
        make_objective()(**({"views": views, "actions": actions} | change))


def test_poses_that_no_action_multiplies_are_refused() -> None:
    network = CapsuleNetwork(SmallBackbone(), IMAGE_SIZE, 4, 2, "free")
    with pytest.raises(ValueError, match="the capsules' poses are 2 x 2: make them 3 x 3 for rotations"):
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


def test_an_unknown_variance_target_or_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="variance_target is 'one': choose 'reachable' or 'published'"):
        make_objective(variance_target="one")
    with pytest.raises(ValueError, match="pose_norm is 'one': choose 'turned_columns' or 'published'"):
        make_objective(pose_norm="one")


def test_with_matrix_votes_every_weight_learns() -> None:
    objective = EquiCaps(CapsuleNetwork(SmallBackbone(), IMAGE_SIZE, 5, 3, "matrix")).double()
    objective(*random_batch(12)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
