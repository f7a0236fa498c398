"""The factored hypernetwork against the naive one that builds every sample's matrix."""

import itertools

import pytest
import torch
from torch import Tensor

from ssl_equi.objectives.parts.predictors import Hypernetwork, MLPPredictor, ProjectedPredictor
from tests.objectives.case import in_turn

VARIANTS = [
    {},
    {"hypernetwork_bias": True},
    {"predicted_bias": True},
    {"hidden_layers": 2},
    {"hidden_layers": 2, "hypernetwork_bias": True, "predicted_bias": True},
]
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}


def naive_prediction(predictor: Hypernetwork, embedding: Tensor, actions: Tensor) -> Tensor:
    """Runs the hypernetwork to the end: one weight matrix [D, D] and one bias [D] a sample, then y = W x + b."""
    coefficients = predictor.hidden(actions)
    if predictor.hypernetwork_bias:
        coefficients = torch.cat([coefficients, coefficients.new_ones(len(actions), 1)], dim=1)
    matrix_per_sample = torch.einsum("bk,kij->bij", coefficients, predictor.matrices)
    prediction = torch.einsum("bij,bj->bi", matrix_per_sample, embedding)
    if predictor.vectors is not None:
        prediction = prediction + coefficients @ predictor.vectors
    return prediction


def prediction_and_gradients(predict, predictor, embedding: Tensor, actions: Tensor) -> list[Tensor]:
    embedding, actions = embedding.clone().requires_grad_(), actions.clone().requires_grad_()
    prediction = predict(embedding, actions)
    weights = torch.linspace(-1, 1, prediction.numel(), dtype=prediction.dtype).reshape(prediction.shape)
    gradients = torch.autograd.grad((prediction * weights).sum(), [embedding, actions, *predictor.parameters()])
    return [prediction.detach(), *gradients]


@in_turn({combination: combination for combination in itertools.product(range(len(VARIANTS)), (1, 4, 6), TOLERANCES)})
def test_factored_equals_naive(combination: tuple[int, int, torch.dtype]):
    number, action_dim, dtype = combination
    variant, tolerance = VARIANTS[number], TOLERANCES[dtype]
    torch.manual_seed(0)
    predictor = Hypernetwork(48, action_dim, **variant).to(dtype)
    embedding, actions = torch.randn(20, 48, dtype=dtype), torch.randn(20, action_dim, dtype=dtype)

    def naive(embedding: Tensor, actions: Tensor) -> Tensor:
        return naive_prediction(predictor, embedding, actions)

    factored = prediction_and_gradients(predictor, predictor, embedding, actions)
    reference = prediction_and_gradients(naive, predictor, embedding, actions)
    for ours, theirs in zip(factored, reference, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


def test_negating_the_action_negates_the_prediction():
    predictor = Hypernetwork(16, 4)
    embedding, actions = torch.randn(5, 16), torch.randn(5, 4)
    assert torch.equal(predictor(embedding, -actions), -predictor(embedding, actions))


def test_a_basis_action_selects_its_matrix():
    predictor = Hypernetwork(6, 4)
    embedding = torch.randn(3, 6)
    identity_rotation = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(3, 4)
    torch.testing.assert_close(predictor(embedding, identity_rotation), embedding @ predictor.matrices[3].T)


@pytest.mark.parametrize(
    ("dim", "action_dim", "expected"), [(1024, 4, 4_194_304), (1024, 6, 6_291_456), (2048, 4, 16_777_216)]
)
def test_parameter_counts_of_the_released_hypernetworks(dim: int, action_dim: int, expected: int):
    with torch.device("meta"):
        predictor = Hypernetwork(dim, action_dim)
    assert sum(parameter.numel() for parameter in predictor.parameters()) == expected


def test_released_initialisation_has_the_range_of_a_linear_layer_on_the_action():
    matrices = Hypernetwork(64, 4, init="released").matrices
    assert matrices.abs().max() <= 0.5
    assert matrices.std().item() == pytest.approx(1 / 12**0.5, rel=0.02)


def test_no_tensor_of_per_sample_matrices_is_kept_for_backward():
    predictor, batch, dim = Hypernetwork(64, 4), 32, 64
    saved_sizes: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        saved_sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        predictor(torch.randn(batch, dim, requires_grad=True), torch.randn(batch, 4))
    assert 0 < max(saved_sizes) <= predictor.matrices.numel() < batch * dim * dim


def test_mlp_predictor_equals_its_formula():
    predictor = MLPPredictor(dim=8, action_dim=4, layers=2)
    embedding, actions = torch.randn(5, 8), torch.randn(5, 4)
    first, second = predictor.layers[0], predictor.layers[2]
    hidden = actions @ first.weight[:, :4].T + embedding @ first.weight[:, 4:].T + first.bias
    expected = hidden.clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(predictor(embedding, actions), expected)
    assert sum(p.numel() for p in MLPPredictor(1024, 4).parameters()) == 1024 * 1028 + 1024


@pytest.mark.parametrize("action_dim", [4, 6])
def test_initial_scale_of_the_prediction(action_dim: int) -> None:
    """scale_preserving keeps the length of the embedding; the released start multiplies it by sqrt(D / (3 A))."""
    torch.manual_seed(0)
    dim = 256
    embedding = torch.randn(512, dim)
    actions = torch.nn.functional.normalize(torch.randn(512, action_dim))
    expected = {"scale_preserving": 1.0, "released": (dim / (3 * action_dim)) ** 0.5}
    for init, ratio in expected.items():
        prediction = Hypernetwork(dim, action_dim, init=init)(embedding, actions)
        assert (prediction.norm(dim=1) / embedding.norm(dim=1)).mean().item() == pytest.approx(ratio, rel=0.03)


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(ValueError, match="init is 'large'"):
        Hypernetwork(8, 4, init="large")


@pytest.mark.parametrize("variant", [*VARIANTS, None])
def test_several_actions_from_the_same_embeddings_share_their_products(
    variant: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    predictor = MLPPredictor(8, 4) if variant is None else Hypernetwork(8, 4, **variant)
    asked, embeddings, along = (
        ProjectedPredictor(8, slice(0, 8), None, predictor),
        torch.randn(70, 8),
        torch.randn(3, 70, 4),
    )
    expected = [asked.advance(embeddings, actions) for actions in along]
    calls = []
    multiply = Hypernetwork.products
    monkeypatch.setattr(Hypernetwork, "products", lambda self, embedding: calls.append(1) or multiply(self, embedding))
    found = asked.advance_each(embeddings, list(along))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(calls) == (variant is not None)
