"""Capsule layers against their formulas, one input and one output capsule at a time, and what must hold of them."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.func import functional_call

from ssl_equi.encoders.capsules import layers
from ssl_equi.encoders.capsules.layers import CapsuleHead, Capsules, PrimaryCapsules, SelfRouting, gated_product
from tests.encoders.symmetric_encoders import assert_refused


def random_capsules(num: int, side: int, size: tuple[int, int], samples: int = 2, dtype=torch.float32) -> Capsules:
    activations = torch.rand(samples, num, *size, dtype=dtype)
    return Capsules(activations, torch.randn(samples, num, side, side, *size, dtype=dtype))


def with_random_routing(layer: SelfRouting) -> SelfRouting:
    """Freshly made layers route uniformly."""
    nn.init.normal_(layer.routing_weight)
    nn.init.normal_(layer.routing_bias)
    return layer


def routed_by_definition(layer: SelfRouting, capsules: Capsules) -> tuple[np.ndarray, np.ndarray]:
    """Self-routing in loops over samples, output positions, input capsules and output capsules."""
    activations, poses, votes_w, routing_w, routing_b = (
        tensor.detach().double().numpy()
        for tensor in (*capsules, layer.vote_weight, layer.routing_weight, layer.routing_bias)
    )
    samples, num_in, height, width = activations.shape
    (kernel_h, kernel_w), stride, padding, side = layer.kernel_size, layer.stride, layer.padding, layer.pose_side
    out_h, out_w = (height + 2 * padding - kernel_h) // stride + 1, (width + 2 * padding - kernel_w) // stride + 1
    new_activations = np.zeros((samples, layer.num_out, out_h, out_w))
    new_poses = np.zeros((samples, layer.num_out, side, side, out_h, out_w))
    for n, y, x in np.ndindex(samples, out_h, out_w):
        total, received = 0.0, np.zeros(layer.num_out)
        votes = np.zeros((layer.num_out, side, side))
        for i, dy, dx in np.ndindex(num_in, kernel_h, kernel_w):
            row, column, place = y * stride + dy - padding, x * stride + dx - padding, dy * kernel_w + dx
            if not (0 <= row < height and 0 <= column < width):
                continue
            activation, pose = activations[n, i, row, column], poses[n, i, :, :, row, column]
            logits = np.array([pose.ravel() @ w + b for w, b in zip(routing_w[i, place].T, routing_b[i, place])])
            routing = np.exp(logits) / np.exp(logits).sum()
            total += activation
            for j in range(layer.num_out):
                weight = votes_w[j, :, :, i, place]
                vote = weight @ pose if layer.votes == "matrix" else (weight @ pose.ravel()).reshape(side, side)
                received[j] += activation * routing[j]
                votes[j] += activation * routing[j] * vote
        new_activations[n, :, y, x] = received / total
        new_poses[n, :, :, :, y, x] = votes / received[:, None, None]
    return new_activations, new_poses


WINDOWS = [
    ((3, 4), (3, 4), 1, 0), ((4, 5), (2, 3), 2, 1), ((3, 3), 2, 1, 0),
    ((2, 2), 3, 1, 1), ((3, 3), 3, 2, 1), ((1, 1), 1, 1, 0),
]  # fmt: skip
"""Size of the map, kernel, stride, padding."""


@pytest.mark.parametrize("votes", ["free", "matrix"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_routing_is_its_definition(dtype: torch.dtype, tolerance: float, votes: str) -> None:
    torch.manual_seed(0)
    for size, *window in WINDOWS:
        layer = with_random_routing(SelfRouting(3, 4, 3, *window, votes).to(dtype))
        capsules = random_capsules(3, 3, size, dtype=dtype)
        for ours, expected in zip(layer(capsules), routed_by_definition(layer, capsules), strict=True):
            assert ours.shape == expected.shape
            assert np.abs(ours.detach().numpy() - expected).max() < tolerance, (size, window)


@pytest.mark.parametrize("votes", ["free", "matrix"])
def test_gradients_are_those_of_finite_differences(votes: str) -> None:
    torch.manual_seed(0)
    layer = with_random_routing(SelfRouting(2, 3, 2, (1, 2), padding=1, votes=votes).double())
    names, weights = zip(*layer.named_parameters(), strict=True)
    capsules = random_capsules(2, 2, (1, 2), samples=1, dtype=torch.float64)

    def outputs(activations: Tensor, poses: Tensor, *weights: Tensor) -> Capsules:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (Capsules(activations, poses),))

    inputs = [tensor.detach().requires_grad_() for tensor in (*capsules, *weights)]
    assert torch.autograd.gradcheck(outputs, inputs)


def test_the_gated_product_is_its_formula_and_keeps_only_its_inputs_for_the_backward_pass() -> None:
    torch.manual_seed(0)
    inputs, gates, weight = torch.randn(4, 2, 5, 6), torch.rand(7, 4, 6), torch.randn(7, 3, 5, 6)
    for tensor in (inputs, gates, weight):
        tensor.requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        product = gated_product(inputs, gates, weight)
    assert sum(kept.values()) == inputs.numel() + gates.numel() + weight.numel()
    expected = torch.einsum("ncqi,jni,jvqi->jncv", inputs, gates, weight)
    assert torch.allclose(product, expected, atol=1e-5)
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(product, (inputs, gates, weight), gradient),
        torch.autograd.grad(expected, (inputs, gates, weight), gradient),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("side", "total", "matrix_votes"), [(3, 7_438_976, 589_824), (4, 20_399_168, 1_048_576)])
def test_the_head_has_the_published_sizes(side: int, total: int, matrix_votes: int) -> None:
    head = CapsuleHead(512, (8, 8), 32, side)
    matrix_head = CapsuleHead(512, (8, 8), 32, side, votes="matrix")
    assert sum(parameter.numel() for parameter in head.parameters()) == total
    assert matrix_head.routing.vote_weight.numel() == matrix_votes
    assert head.routing.vote_weight.numel() == matrix_votes * side * side


@pytest.mark.parametrize("side", [3, 4], ids=["rotations", "rigid motions"])
def test_matrix_votes_commute_with_right_multiplication_and_free_votes_do_not(side: int) -> None:
    """With uniform routing, layer(P M) is layer(P) M."""
    motions = np.tile(np.eye(side, dtype=np.float32), (16, 1, 1))
    motions[:, :3, :3] = Rotation.random(16, random_state=0).as_matrix()
    motions[:, :3, 3:] = np.random.default_rng(0).uniform(-0.5, 0.5, (16, 3, side - 3))
    for votes in ("matrix", "free"):
        torch.manual_seed(0)
        layer = SelfRouting(8, 6, side, (3, 4), votes=votes)
        activations, poses = random_capsules(8, side, (3, 4), samples=16)
        moved, expected = (
            torch.einsum("nkabhw,nbc->nkachw", own, torch.from_numpy(motions))
            for own in (poses, layer(Capsules(activations, poses)).poses.detach())
        )
        error = (layer(Capsules(activations, moved)).poses - expected).norm() / expected.norm()
        assert error < 1e-6 if votes == "matrix" else error > 0.1


@pytest.mark.parametrize("votes", ["free", "matrix"])
def test_activations_are_a_distribution_and_uniform_at_the_start(votes: str) -> None:
    torch.manual_seed(0)
    layer = SelfRouting(4, 5, 3, 2, padding=1, votes=votes)
    capsules = random_capsules(4, 3, (3, 3))
    assert torch.allclose(layer(capsules).activations, torch.full((2, 5, 4, 4), 0.2))
    activations = with_random_routing(layer)(capsules).activations
    assert (activations > 0).all() and activations.std() > 0.01
    assert torch.allclose(activations.sum(dim=1), torch.ones(2, 4, 4))


@pytest.mark.parametrize("votes", ["free", "matrix"])
def test_a_vote_is_as_large_as_its_pose(votes: str) -> None:
    torch.manual_seed(0)
    for side in (1, 3, 4):
        layer = SelfRouting(1, 2000, side, 1, votes=votes)
        capsules = random_capsules(1, side, (4, 4), samples=4)
        size, expected = (poses.detach().square().mean().item() for poses in (layer(capsules).poses, capsules.poses))
        assert size == pytest.approx(expected, rel=0.15), side


def hard_cases(num: int, dtype: torch.dtype) -> dict[str, Capsules]:
    activations, poses = random_capsules(num, 3, (2, 2))
    one_hot = torch.zeros_like(activations)
    one_hot[:, 0, 0, 0] = 1
    cases = {
        "one-hot activations": (one_hot, poses),
        "zero poses": (activations, torch.zeros_like(poses)),
        "one-hot activations and zero poses": (one_hot, torch.zeros_like(poses)),
        "no activations": (torch.zeros_like(activations), poses),
        "tiny activations": (activations * 1e-30, poses),
        "huge poses": (activations, poses * 1e6),
    }
    return {name: Capsules(*(tensor.to(dtype) for tensor in case)) for name, case in cases.items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16 autocast", "bfloat16 weights"])
@pytest.mark.parametrize("votes", ["free", "matrix"])
@pytest.mark.parametrize("starved", [False, True])
def test_outputs_and_gradients_are_finite_where_sums_vanish(precision: str, votes: str, starved: bool) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    layer = with_random_routing(SelfRouting(4, 3, 3, 2, votes=votes))
    if starved:  # an output capsule that gets nothing
        layer.routing_bias.data[..., 0] = -1e4
    if precision == "bfloat16 weights":
        layer.to(torch.bfloat16)
    for name, capsules in hard_cases(4, dtype).items():
        inputs = Capsules(*(tensor.requires_grad_() for tensor in capsules))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16 autocast"):
            activations, poses = layer(inputs)
        assert activations.dtype == poses.dtype == torch.float32
        gradients = torch.autograd.grad(
            activations.square().sum() + poses.square().sum(), [*inputs, *layer.parameters()]
        )
        for tensor in (activations, poses, *gradients):
            assert torch.isfinite(tensor).all(), name
        assert torch.allclose(activations.sum(dim=1), torch.ones(())), name
        if name == "no activations":
            assert torch.allclose(activations, torch.full((), 1 / 3)) and not poses.any()
        if starved and name != "huge poses" and "no" not in name and "tiny" not in name:
            assert not activations[:, 0].any() and not poses[:, 0].any()


def test_primary_capsules_are_a_convolution_and_a_norm_and_only_activations_are_squashed() -> None:
    torch.manual_seed(0)
    primary = PrimaryCapsules(5, num_capsules=3, pose_side=2)
    feature_map = torch.randn(4, 5, 6, 7)
    activations, poses = primary(feature_map)
    assert activations.shape == (4, 3, 6, 7) and poses.shape == (4, 3, 2, 2, 6, 7)
    maps = nn.functional.conv2d(feature_map, primary.conv.weight, padding=1)
    mean, variance = maps.mean(dim=(0, 2, 3), keepdim=True), maps.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    maps = (maps - mean) / torch.sqrt(variance + 1e-5)
    assert torch.allclose(activations, 1 / (1 + torch.exp(-maps[:, :3])), atol=1e-5)
    assert torch.allclose(poses[:, 1, 0, 1], maps[:, 3 + 4 + 1], atol=1e-5)


def test_the_head_routes_the_whole_map_to_one_set_of_capsules() -> None:
    torch.manual_seed(0)
    head = CapsuleHead(6, (3, 2), num_capsules=4, pose_side=2)
    with_random_routing(head.routing)
    feature_map = torch.randn(5, 6, 3, 2)
    activations, poses = head(feature_map)
    assert activations.shape == (5, 4) and poses.shape == (5, 4, 2, 2)
    head.eval()
    activations, poses = head(feature_map)
    expected_activations, expected_poses = routed_by_definition(head.routing, head.primary(feature_map))
    assert np.allclose(activations.detach(), expected_activations[..., 0, 0], atol=1e-5)
    assert torch.allclose(head(feature_map.contiguous(memory_format=torch.channels_last)).poses, poses, atol=1e-5)
    assert np.allclose(poses.detach(), expected_poses[..., 0, 0], atol=1e-5)


def test_wrong_sizes_votes_and_shapes_are_named() -> None:
    layer, head = SelfRouting(2, 2, 3, 3), CapsuleHead(8, (2, 2))
    assert_refused(
        ("votes_init is 'none': choose 'scale_preserving' or", lambda: SelfRouting(2, 3, 2, 1, votes_init="none")),
        ("votes is 'square': choose 'free' or 'matrix'", lambda: SelfRouting(2, 2, 3, 2, votes="square")),
        ("pose_side is 0", lambda: CapsuleHead(8, (2, 2), pose_side=0)),
        ("num_capsules is 0", lambda: CapsuleHead(8, (2, 2), num_capsules=0)),
        ("kernel_height is 0", lambda: SelfRouting(2, 2, 3, 0)),
        ("padding is -1", lambda: SelfRouting(2, 2, 3, 1, padding=-1)),
        (r"activations .* \(2, 4, 5, 5\): .* takes \[N, 2, h, w\]", lambda: layer(random_capsules(4, 3, (5, 5)))),
        (r"poses have shape \(2, 2, 4, 4, 5, 5\)", lambda: layer(random_capsules(2, 4, (5, 5)))),
        (r"of \(3, 3\) is larger than the map of 2 x 5 with padding 0", lambda: layer(random_capsules(2, 3, (2, 5)))),
        (r"\(1, 8, 3, 2\), but .* was built for \[N, 8, 2, 2\]", lambda: head(torch.zeros(1, 8, 3, 2))),
    )


@pytest.mark.parametrize("gated_bytes", [1, 2**10, 2**28])
def test_a_gpu_multiplies_several_output_capsules_at_once(gated_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "GATED_BYTES", gated_bytes)
    generator = torch.Generator().manual_seed(0)
    sizes = {"inputs": (3, 2, 3, 8), "gates": (5, 3, 8), "weight": (5, 4, 3, 8)}
    inputs, gates, weight = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes.values())
    needing_gradient = [tensor.clone().requires_grad_() for tensor in (inputs, gates, weight)]
    product = gated_product(*needing_gradient)
    gradient = torch.randn(product.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layers._gated_products(inputs, gates, weight), product.detach())
    gradients = layers._gated_product_gradients(gradient.flatten(1, 2), inputs, gates, weight)
    expected = torch.autograd.grad(product, needing_gradient, gradient)
    torch.testing.assert_close(gradients, expected)
