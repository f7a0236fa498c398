"""VICReg-Traj against its formula, the trajectory on known geometry, and VICReg against itself."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.objectives.vicreg_traj import VICRegTraj, VICRegTrajConfig, trajectory_term
from tests.fakes import ConvolutionEncoder
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.sequences import vicreg_traj
from tests.references.table import APART, JOINT, VICREG_HEAD, VICREG_OF_SIE, reference

BATCH = 10


def make(weight: float = 0.5, **changes: object) -> VICRegTraj:
    torch.manual_seed(0)
    base = VICReg(ConvolutionEncoder(7), VICRegConfig(**{"projector": (12, 8)} | changes))
    return VICRegTraj(base, VICRegTrajConfig(weight=weight))


def random_views(number: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(BATCH, number, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def random_embeddings(count: int = 20, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numpy_trajectory(embeddings: np.ndarray) -> float:
    """With the projector I - u u^T onto the tangent plane as a matrix, object by object."""
    cosines = []
    for path in embeddings:
        u1, u2, u3 = (z / np.linalg.norm(z) for z in path)
        onto_plane = np.eye(len(u2)) - np.outer(u2, u2)
        a, b = onto_plane @ (u2 - u1), onto_plane @ (u3 - u2)
        cosines.append(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return -float(np.mean(cosines))


def test_the_term_equals_numpy():
    embeddings = random_embeddings()
    expected = numpy_trajectory(embeddings.numpy())
    assert trajectory_term(embeddings).item() == pytest.approx(expected, rel=1e-10)
    assert trajectory_term(embeddings.float()).item() == pytest.approx(expected, rel=1e-5)


def arc(angles_deg: list[float], width: int = 5, seed: int = 3) -> Tensor:
    """Points [1, V, E] of different lengths on one great circle of any direction."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.linalg.qr(torch.randn(width, 2, generator=generator, dtype=torch.float64))[0]
    angles = torch.deg2rad(torch.tensor(angles_deg, dtype=torch.float64))
    points = torch.stack([angles.cos(), angles.sin()], dim=1) @ plane.T
    return (points * torch.tensor([[1.0], [3.0], [0.2]], dtype=torch.float64)).unsqueeze(0)


@pytest.mark.parametrize(
    ("angles_deg", "expected"),
    [([0, 25, 50], -1.0), ([0, 5, 170], -1.0), ([10, -60, -200], -1.0), ([0, 25, 0], 1.0), ([0, 25, 10], 1.0)],
)
def test_along_a_great_circle_it_is_straight_or_goes_back(angles_deg: list[float], expected: float):
    assert trajectory_term(arc(angles_deg)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("turn_deg", "expected"), [(0, -1.0), (60, -0.5), (90, 0.0), (135, 0.5**0.5), (180, 1.0)])
def test_it_is_minus_the_cosine_of_the_turn_in_the_middle(turn_deg: float, expected: float):
    """From the north pole's neighbour in the west over the pole, and on with a turn to the left."""
    turn, step = np.deg2rad(turn_deg), np.deg2rad(40)
    west, pole = [-np.sin(step), 0, np.cos(step)], [0, 0, 1]
    onwards = [np.cos(turn) * np.sin(step), np.sin(turn) * np.sin(step), np.cos(step)]
    path = torch.tensor(np.array([[west, pole, onwards]]))
    assert trajectory_term(path).item() == pytest.approx(expected, abs=1e-12)


def test_the_lengths_of_the_embeddings_and_the_orientation_of_the_space_do_not_matter():
    embeddings = random_embeddings()
    expected = trajectory_term(embeddings).item()
    lengths = torch.rand(20, 3, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1
    turned = embeddings @ torch.linalg.qr(random_embeddings(2, 6, seed=6).flatten(0, 1))[0].T
    assert trajectory_term(1e3 * lengths * embeddings).item() == pytest.approx(expected, rel=1e-12)
    assert trajectory_term(turned).item() == pytest.approx(expected, rel=1e-12)
    assert trajectory_term(embeddings.flip(dims=(1,))).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    embeddings, change = random_embeddings(4).requires_grad_(), 1e-6 * random_embeddings(4, seed=1)
    trajectory_term(embeddings).backward()
    with torch.no_grad():
        difference = (trajectory_term(embeddings + change) - trajectory_term(embeddings - change)) / 2
    assert (embeddings.grad * change).sum().item() == pytest.approx(difference.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("same", [(0, 1), (1, 2), (0, 1, 2)])
def test_equal_or_opposite_embeddings_count_as_nothing_and_give_no_gradient(same: tuple[int, ...], dtype: torch.dtype):
    embeddings = random_embeddings(4).to(dtype)
    expected = trajectory_term(embeddings[2:]).item()
    embeddings[0, list(same)] = embeddings[0, 1].clone()
    embeddings[1, list(same)] = embeddings[1, 1].clone()
    embeddings[1, 1] *= -1
    embeddings.requires_grad_()
    term = trajectory_term(embeddings)
    term.backward()
    assert term.item() == pytest.approx(expected / 2, rel=1e-5)
    assert torch.equal(embeddings.grad[:2], torch.zeros(2, 3, 6, dtype=dtype))
    assert torch.isfinite(embeddings.grad).all() and embeddings.grad[2:].abs().min() > 0


def test_nearly_equal_embeddings_give_no_exploding_gradient():
    first = random_embeddings(8).float()[:, 0]
    for distance in 10.0 ** np.arange(-9, -2):
        middle = first + distance * random_embeddings(8, seed=9).float()[:, 1]
        path = torch.stack([first, middle, random_embeddings(8, seed=10).float()[:, 2]], dim=1).requires_grad_()
        trajectory_term(path).backward()
        assert path.grad.abs().max() < 1e4


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("on_sphere", [False, True])
def test_it_agrees_with_the_formula(on_sphere: bool, separate: bool):
    base = VICReg(SmallEncoder(), VICRegConfig(projector=(24, 20, 12), separate_batch_norm=separate))
    expected = reference(
        vicreg_traj,
        views=3,
        calls=APART if separate else JOINT,
        projector=VICREG_HEAD,
        on_sphere=on_sphere,
        weights=VICREG_OF_SIE | {"trajectory": 0.7},
    )
    assert not disagreements(VICRegTraj(base, VICRegTrajConfig(0.7, on_sphere)), expected)


def test_with_weight_zero_the_third_view_is_not_used():
    objective, views = make(weight=0.0), random_views()
    assert objective.num_views == 2
    assert torch.equal(objective(views[:, :2]).loss, make(weight=0.0)(views).loss)


def test_training_straightens_the_path():
    objective = make(weight=10.0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    views, terms = random_views(), []
    for _ in range(30):
        output = objective(views)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        terms.append(output.terms["trajectory"].item())
    assert terms[-1] < terms[0] - 0.3


def test_encoder_parts_width_and_number_of_views():
    objective = make()
    assert (objective.num_features, objective.parts, objective.num_views) == (7, {"all": slice(0, 7)}, 3)


def test_defaults_are_the_papers():
    config = VICRegConfig()
    assert VICRegTrajConfig().weight == 0.01
    assert (config.inv_weight, config.variance_weight, config.covariance_weight) == (10.0, 10.0, 1.0)
    assert config.projector == (2048, 2048, 2048)


def test_wrong_views_are_refused_with_weight_zero_too():
    with pytest.raises(ValueError, match=r"views have shape \(4, 1, 3, 6, 6\)"):
        make(weight=0.0)(torch.zeros(4, 1, 3, 6, 6))


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_an_impossible_weight_is_refused(weight: float):
    with pytest.raises(ValueError, match="weight is"):
        make(weight=weight)


def test_another_base_is_refused():
    with pytest.raises(ValueError, match=r"the base objective is VICRegTraj: pass VICReg\(encoder\)"):
        VICRegTraj(make())
    with pytest.raises(ValueError, match="the base Linear is no objective"):
        VICRegTraj(nn.Linear(2, 3))
