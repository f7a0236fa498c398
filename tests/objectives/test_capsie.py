"""CapsIE's loss against an independent NumPy computation from the capsules, and its behaviour."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.objectives.capsie import CapsIE, CapsIEConfig

IMAGE_SIZE = 8


class SmallBackbone(nn.Module):
    """A map of 2 x 2 positions and its mean."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6), nn.ReLU())

    def forward_features(self, images: Tensor) -> Tensor:
        return self.map(images)

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))


def make_objective(pose_side: int = 4, num_capsules: int = 5, **options: object) -> CapsIE:
    torch.manual_seed(0)
    network = CapsuleNetwork(SmallBackbone(), IMAGE_SIZE, num_capsules, pose_side, "free")
    with torch.no_grad():  # uniform routing at the start would hide what depends on it
        network.head.routing.routing_weight.normal_()
    objective = CapsIE(network, CapsIEConfig(**options))  # type: ignore[arg-type]
    with torch.no_grad():  # so that the hinge on the prediction's variance is active
        objective.predictor.matrices.mul_(0.3)
    return objective


def random_batch(size: int, action_dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=dtype)
    actions = torch.randn(size, action_dim, generator=generator, dtype=dtype)
    return views, nn.functional.normalize(actions, dim=1)


def numpy_softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def numpy_variance(embedding: np.ndarray) -> float:
    return float(np.mean(np.maximum(0, 1 - np.sqrt(embedding.var(0, ddof=1) + 1e-4))))


def numpy_covariance(embedding: np.ndarray) -> float:
    covariance = np.cov(embedding, rowvar=False)
    return float(((covariance**2).sum() - (np.diag(covariance) ** 2).sum()) / embedding.shape[1])


def numpy_terms(objective: CapsIE, views: Tensor, actions: Tensor, target_temperature: float) -> dict[str, float]:
    with torch.no_grad():
        _, capsules = objective.network.features_and_capsules(views.flatten(0, 1))
    activations = capsules.activations.unflatten(0, (len(views), 2)).numpy()
    poses = capsules.poses.flatten(1).unflatten(0, (len(views), 2)).numpy()
    predictions, targets = numpy_softmax(activations / 0.1), numpy_softmax(activations / target_temperature)
    matrices = objective.predictor.matrices.detach().numpy()
    predicted = np.einsum("bk,kij,bj->bi", actions.numpy(), matrices, poses[:, 0])
    means = predictions.mean(0)
    crossed = [-(targets[:, 1 - view] * np.log(predictions[:, view])).sum(1).mean() for view in range(2)]
    return {
        "invariance": float(np.mean(crossed)),
        "equivariance": float(((predicted - poses[:, 1]) ** 2).mean()),
        "missing_entropy": float(2 * math.log(activations.shape[2]) + (means * np.log(means)).sum()),
        "variance": (numpy_variance(poses[:, 0]) + numpy_variance(poses[:, 1])) / 2,
        "variance_prediction": numpy_variance(predicted),
        "covariance": numpy_covariance(poses[:, 0]) + numpy_covariance(poses[:, 1]),
    }


@pytest.mark.parametrize(("pose_side", "action_dim"), [(4, 4), (3, 7)])
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_terms_and_loss_equal_numpy(pose_side: int, action_dim: int, progress: float) -> None:
    objective = make_objective(pose_side, action_dim=action_dim).double()
    objective.soften_targets(progress)
    views, actions = random_batch(20, action_dim)
    output = objective(views, actions)
    expected = numpy_terms(objective, views, actions, target_temperature=0.025 + 0.06 * progress)

    assert set(output.terms) - {"std_inv", "std_equi", "entropy"} == set(expected)
    for name, value in expected.items():
        assert value > 0, name
        assert output.terms[name].item() == pytest.approx(value, rel=1e-5), name
    weights = {
        "invariance": 10, "equivariance": 4.5, "missing_entropy": 10, "variance": 10, "variance_prediction": 5,
        "covariance": 1,
    }  # fmt: skip
    assert output.loss.item() == pytest.approx(sum(weights[name] * expected[name] for name in weights), rel=1e-9)


def test_targets_take_no_gradient() -> None:
    """With only the invariance term, the gradient is that of predictions towards constants."""
    objective = make_objective(
        inv_weight=1.0, equi_weight=0.0, entropy_weight=0.0, variance_weight=0.0, covariance_weight=0.0
    ).double()
    views, actions = random_batch(6)
    objective(views, actions).loss.backward()
    weight = objective.network.head.routing.routing_weight
    found = weight.grad.clone()

    _, capsules = objective.network.features_and_capsules(views.flatten(0, 1))
    activations = capsules.activations.unflatten(0, (6, 2))
    targets = (activations / 0.025).softmax(-1).flip(1).detach()
    loss = -(targets * (activations / 0.1).log_softmax(-1)).sum(-1).mean()
    expected = torch.autograd.grad(loss, weight)[0]
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-10)


def test_the_targets_temperature_follows_the_training() -> None:
    objective = make_objective()
    temperatures = []
    for progress in (0.0, 0.5, 1.0):
        objective.soften_targets(progress)
        temperatures.append(objective.target_temperature)
    assert temperatures == pytest.approx([0.025, 0.055, 0.085])


def test_gradients_are_finite_in_bf16() -> None:
    objective = make_objective()
    views, actions = random_batch(16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(views, actions)
    output.loss.backward()
    assert output.loss.isfinite() and output.loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_temperature": 0.0}, "temperature is 0.0"),
        ({"prediction_temperature": -1.0}, "temperature is -1.0"),
        ({"action_dim": 0}, "action_dim is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_objective(**options)


def test_actions_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="actions have 7 columns but action_dim is 4"):
        make_objective()(*random_batch(4, 7, torch.float32))
