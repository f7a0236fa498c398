"""CARE against its formula, its Gram term pair by pair, and its two ways of making the shared views."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.objectives.care import CARE, CAREConfig, gram_difference, mean_pair_weight
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.supervised import Supervised
from tests.fakes import ConvolutionEncoder, recorded_calls
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.extensions import care as care_formula
from tests.references.invariant import simclr as simclr_formula
from tests.references.table import APART, JOINT, TWO_LAYERS, reference

CHUNK = 4
BATCH = 12


def simclr() -> SimCLR:
    return SimCLR(ConvolutionEncoder(), SimCLRConfig(projector=(16, 8)))


def care(**options: object) -> CARE:
    torch.manual_seed(0)
    return CARE(simclr(), CAREConfig(**{"chunk_size": CHUNK} | options))


def random_views(seed: int = 1) -> Tensor:
    return torch.randn(BATCH, 2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def numpy_sum_over_pairs(chunk: np.ndarray) -> float:
    """Squared differences of cosines over the ordered pairs of one chunk [N, 2, E], one by one."""
    f, f_prime = unit(chunk[:, 0]), unit(chunk[:, 1])
    count = len(chunk)
    return sum((f[i] @ f[j] - f_prime[i] @ f_prime[j]) ** 2 for i in range(count) for j in range(count) if i != j)


def numpy_gram_difference(embeddings: np.ndarray, chunk_size: int) -> float:
    chunks = embeddings.reshape(-1, chunk_size, *embeddings.shape[1:])
    return float(np.mean([numpy_sum_over_pairs(chunk) / (chunk_size * (chunk_size - 1)) for chunk in chunks]))


def random_embeddings(count: int, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize(("count", "chunk_size"), [(12, 4), (12, 12), (6, 2), (24, 8)])
def test_gram_difference_equals_its_definition(count: int, chunk_size: int):
    embeddings = random_embeddings(count)
    expected = numpy_gram_difference(embeddings.numpy(), chunk_size)
    assert gram_difference(embeddings, chunk_size).item() == pytest.approx(expected, rel=1e-12)
    assert gram_difference(embeddings.float(), chunk_size).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("chunk_size", "ratio"), [(8, 14), (16, 30), (32, 62), (64, 126)])
def test_the_weight_converts_from_the_released_sum(chunk_size: int, ratio: int):
    embeddings = random_embeddings(2 * chunk_size)
    chunks = embeddings.numpy().reshape(2, chunk_size, 2, -1)
    released = np.mean([2 / chunk_size * numpy_sum_over_pairs(chunk) for chunk in chunks])
    ours = gram_difference(embeddings, chunk_size).item()
    assert mean_pair_weight(1.0, chunk_size) == ratio
    assert mean_pair_weight(0.01, chunk_size) * ours == pytest.approx(0.01 * released, rel=1e-10)


def test_weights_of_the_documentation():
    lambdas = [(0.01, 16), (0.03, 16), (0.001, 64), (0.01, 32), (0.005, 8), (0.01, 8)]
    weights = [mean_pair_weight(released, size) for released, size in lambdas]
    assert weights == pytest.approx([0.3, 0.9, 0.126, 0.62, 0.07, 0.14])


def test_one_orthogonal_matrix_a_chunk_costs_nothing():
    first = random_embeddings(BATCH)[:, 0]
    turned = torch.cat([chunk @ rotation(5, seed).T for seed, chunk in enumerate(first.split(CHUNK))])
    lengths = 1 + torch.arange(BATCH, dtype=torch.float64)[:, None]  # directions only count
    assert gram_difference(torch.stack([first, lengths * turned], dim=1), CHUNK) < 1e-28
    assert gram_difference(torch.stack([first, turned], dim=1), BATCH) > 0.01


def test_different_matrices_within_a_chunk_cost():
    first = random_embeddings(BATCH)[:, 0]
    turned = torch.stack([row @ rotation(5, seed).T for seed, row in enumerate(first)])
    assert gram_difference(torch.stack([first, turned], dim=1), CHUNK) > 0.01


def test_identical_embeddings_cost_exactly_nothing():
    first = random_embeddings(BATCH)[:, 0].float()
    assert gram_difference(torch.stack([first, first], dim=1), CHUNK) == 0
    assert gram_difference(torch.ones(BATCH, 2, 5), CHUNK) == 0


def test_opposite_placement_is_the_largest_difference():
    line = torch.tensor([[1.0, 0], [1.0, 0]])
    opposite = torch.tensor([[1.0, 0], [-1.0, 0]])
    assert gram_difference(torch.stack([line, opposite], dim=1), 2) == 4


def test_gradient():
    embeddings = random_embeddings(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: gram_difference(z, 3), (embeddings,))


@pytest.mark.parametrize(("reuse_views", "shared_statistics"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formula(reuse_views: bool, shared_statistics: bool, separate: bool):
    calls = APART if separate else JOINT
    expected = reference(
        care_formula,
        shared_views=0 if reuse_views else 2,
        objects=12,
        calls=calls,
        chunk_size=CHUNK,
        paper_lambda=0.05,
        shared_views_remembered=shared_statistics,
        base=reference(simclr_formula, calls=calls, projector=TWO_LAYERS, temperature=0.5, candidates="2N - 1"),
    )
    base = SimCLR(SmallEncoder(), SimCLRConfig(projector=(24, 8), separate_batch_norm=separate))
    config = CAREConfig(mean_pair_weight(0.05, CHUNK), CHUNK, reuse_views, not shared_statistics)
    assert not disagreements(CARE(base, config), expected)


def test_shared_views_are_encoded_in_one_call():
    objective = care()
    calls = recorded_calls(objective.encoder)
    objective(random_views(1), None, random_views(2))
    assert calls == [(2 * BATCH, 3, 6, 6)] * 2


def test_a_base_that_cannot_embed_is_refused():
    with pytest.raises(ValueError, match="the base objective Supervised has no projector"):
        CARE(Supervised(ConvolutionEncoder()))
    with pytest.raises(ValueError, match="the base Identity is no objective"):
        CARE(nn.Identity())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -0.1}, "weight is -0.1: give a number of at least 0"),
        ({"weight": float("nan")}, "weight is nan: give a number of at least 0"),
        ({"chunk_size": 1}, "chunk_size is 1: a chunk needs 2"),
        ({"chunk_size": 0}, "chunk_size is 0: a chunk needs 2"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        care(**options)


def test_a_batch_that_leaves_a_piece_of_a_chunk_is_refused():
    with pytest.raises(ValueError, match="a process has 12 images but chunk_size is 5"):
        care(chunk_size=5)(random_views(), None, random_views())


def test_missing_and_superfluous_shared_views_are_refused():
    views = random_views()
    with pytest.raises(ValueError, match="shared_views are missing"):
        care()(views)
    with pytest.raises(ValueError, match="reuse_views is on but shared_views were passed"):
        care(reuse_views=True)(views, None, views)
    with pytest.raises(ValueError, match="weight is 0 but shared_views were passed"):
        care(weight=0.0)(views, None, views)
    with pytest.raises(ValueError, match=r"views have shape \(12, 3, 6, 6\)"):
        care()(views, None, views[:, 0])


def test_a_base_without_embeddings_has_none_to_reuse():
    base = BYOL(ConvolutionEncoder(), BYOLConfig(projector=(16, 8), predictor_hidden_width=6))
    with pytest.raises(ValueError, match="the base objective BYOL does not embed both views"):
        CARE(base, CAREConfig(chunk_size=CHUNK, reuse_views=True))
    asymmetric = MoCo(ConvolutionEncoder(), MoCoConfig(projector=(16, 8), queue_size=24))
    with pytest.raises(ValueError, match="the base objective MoCo does not embed both views"):
        CARE(asymmetric, CAREConfig(chunk_size=CHUNK, reuse_views=True))
