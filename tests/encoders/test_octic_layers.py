"""Octic layers: the split into irreducible parts is that of the group, every layer commutes with every element."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders.octic.features import (
    OcticFeatures,
    act_on_components,
    features_to_regular,
    irreps_to_regular,
    regular_to_irreps,
    regular_to_tokens,
    split_components,
    steerable_maps,
    tokens_to_regular,
)
from ssl_equi.encoders.octic.layers import (
    OcticAttention,
    OcticBlock,
    OcticDropPath,
    OcticGELU,
    OcticLinear,
    OcticMlp,
    OcticPatchEmbed,
    OcticRMSNorm,
    OcticScale,
    _RegularGELU,
    positions,
)
from ssl_equi.encoders.square import symmetries as square_symmetries
from ssl_equi.encoders.square.symmetries import ELEMENTS, act_on_image, compose, irrep_matrix
from tests.encoders.symmetric_encoders import assert_refused, relative_error

DIM = 48
ALL = range(ELEMENTS)

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: OcticLinear(DIM, 72),
    "linear without bias": lambda: OcticLinear(DIM, 8, bias=False),
    "scale": lambda: OcticScale(DIM, 0.5),
    "norm": lambda: OcticRMSNorm(DIM),
    "gelu": OcticGELU,
    "attention": lambda: OcticAttention(DIM, 3),
    "perceptron": lambda: OcticMlp(DIM, 96),
    "block": lambda: OcticBlock(DIM, 2, init_values=0.5),
}


def randomised(layer: nn.Module) -> nn.Module:
    """With every parameter random, biases and scales as well, in float64."""
    torch.manual_seed(0)
    layer = layer.double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def random_tokens(tokens: int = 5, dim: int = DIM) -> Tensor:
    return torch.randn(3, tokens, dim, dtype=torch.float64)


def apply(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens to tokens, whichever form the layer takes and returns."""
    found = layer(OcticFeatures.from_tokens(tokens) if isinstance(layer, OcticGELU) else tokens)
    return found.to_tokens() if isinstance(found, OcticFeatures) else found


def test_the_sums_in_stages_are_the_matrix_of_the_group() -> None:
    values = torch.randn(ELEMENTS, 2, 3, dtype=torch.float64)
    a1, a2, b1, b2, first_x, second_x, first_y, second_y = irreps = regular_to_irreps(values)
    by_copy = torch.stack([a1, a2, b1, b2, first_x, first_y, second_x, second_y])
    expected = torch.tensordot(square_symmetries.regular_to_irreps(), values, dims=1)
    assert torch.allclose(by_copy, expected, atol=1e-14)
    assert torch.allclose(torch.stack(irreps_to_regular(irreps)), values, atol=1e-14)


def test_features_are_stored_as_the_docs_say() -> None:
    tokens = random_tokens()
    features = OcticFeatures.from_tokens(tokens)
    assert features.ones.shape == (4, 3, 5, DIM // 8) and features.twos.shape == (2, 3, 5, DIM // 4)
    assert torch.equal(features.to_tokens(), tokens)
    assert torch.equal(torch.cat(tuple(features.ones), dim=-1), tokens[..., : DIM // 2])
    assert torch.equal(torch.cat(tuple(features.twos), dim=-1), tokens[..., DIM // 2 :])
    ones, twos = split_components(tokens)
    assert torch.equal(ones.movedim(-2, 0), features.ones) and torch.equal(twos.movedim(-2, 0), features.twos)
    regular = torch.stack(features_to_regular(features))
    assert regular.shape == (ELEMENTS, 3, 5, DIM // 8)
    assert torch.allclose(regular.square().sum(), tokens.square().sum())
    assert torch.equal(torch.stack(tokens_to_regular(tokens)), regular)
    assert torch.allclose(regular_to_tokens(regular.unbind()), tokens, atol=1e-14)


def test_the_action_on_feature_vectors_is_that_of_the_group() -> None:
    tokens = random_tokens()
    channels = DIM // 8
    for g in ALL:
        blocks = [irrep_matrix(name, g).repeat_interleave(channels) for name in ("A1", "A2", "B1", "B2")]
        rows = torch.kron(irrep_matrix("E", g), torch.eye(2 * channels, dtype=torch.float64))
        matrix = torch.block_diag(torch.diag(torch.cat(blocks)), rows)
        assert torch.equal(act_on_components(g, tokens), tokens @ matrix.T)
        for h in ALL:
            both = act_on_components(g, act_on_components(h, tokens))
            assert torch.equal(both, act_on_components(compose(g, h), tokens))
        regular = torch.stack(features_to_regular(OcticFeatures.from_tokens(act_on_components(g, tokens))))
        moved = torch.stack(features_to_regular(OcticFeatures.from_tokens(tokens)))
        assert torch.allclose(regular[[compose(g, h) for h in ALL]], moved, atol=1e-14)
    each = act_on_components(torch.tensor([3, 0, 6]), tokens[:, 0])
    assert torch.equal(each, torch.stack([act_on_components(g, v) for g, v in zip((3, 0, 6), tokens[:, 0])]))


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "ordinary linear": lambda: nn.Linear(DIM, DIM),
    "ordinary gelu": nn.GELU,
    "ordinary norm": lambda: nn.LayerNorm(DIM),
}


@pytest.mark.parametrize("name", [*LAYERS, *ORDINARY])
def test_every_layer_commutes_with_every_element_and_no_ordinary_one_does(name: str) -> None:
    layer, tokens = randomised((LAYERS | ORDINARY)[name]()), random_tokens()
    expected = apply(layer, tokens)
    for g in ALL:
        found = apply(layer, act_on_components(g, tokens))
        error = relative_error(found, act_on_components(g, expected))
        assert error > 0.05 if g > 0 and name in ORDINARY else error < 1e-10
        assert g == 0 or relative_error(found, expected) > 0.1


def test_the_linear_layer_is_the_most_general_one() -> None:
    """Its weights span all matrices that commute with the group, whose number the characters give."""
    layer = OcticLinear(8, 16, bias=False).double()
    weights = sum(parameter.numel() for parameter in layer.parameters())
    traces = [torch.stack([act_on_components(g, row) for row in torch.eye(8)]).trace() for g in ALL]
    assert weights == sum(trace * 2 * trace for trace in traces) / ELEMENTS == 16
    identity = torch.eye(8, dtype=torch.float64).unsqueeze(0)
    matrices = []
    for parameter in layer.parameters():
        for entry in range(parameter.numel()):
            with torch.no_grad():
                for other in layer.parameters():
                    other.zero_()
                parameter.view(-1)[entry] = 1
                matrices.append(apply(layer, identity).flatten())
    assert torch.linalg.matrix_rank(torch.stack(matrices)) == 16
    # 1 of 8 weights of a dense layer; a token has one value for each weight of A1 to B2, and two rows of E.
    assert weights * 8 == 8 * 16 and layer.weight_ones.numel() + 2 * layer.weight_twos.numel() == 8 * 16 * 3 / 16


def test_outputs_of_a_fresh_linear_layer_vary_as_those_of_a_dense_one() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(4, 50, 512)
    out = apply(OcticLinear(512, 512), tokens)
    for part in out.chunk(8, dim=-1):
        assert part.std().item() == pytest.approx(0.02 * 0.88 * 512**0.5, rel=0.05)  # 0.88: cut off at two deviations


def test_the_norm_is_one_root_mean_square_over_the_token() -> None:
    tokens = random_tokens() * torch.tensor([0.1, 1, 100]).view(3, 1, 1)
    normed = apply(OcticRMSNorm(DIM, eps=0.0).double(), tokens)
    assert torch.allclose(normed, tokens / tokens.square().mean(dim=-1, keepdim=True).sqrt())
    half = tokens.to(torch.bfloat16)
    assert apply(OcticRMSNorm(DIM).to(torch.bfloat16), half).dtype == torch.bfloat16


def test_a_linear_layer_is_a_block_diagonal_matrix_whose_bias_is_in_a1() -> None:
    layer, tokens = randomised(OcticLinear(DIM, 72)), random_tokens()
    assert isinstance(layer, OcticLinear) and layer.bias is not None
    matrix = torch.block_diag(*layer.weight_ones, layer.weight_twos, layer.weight_twos)
    bias = torch.cat([layer.bias, layer.bias.new_zeros(63)])
    expected = tokens @ matrix.T + bias
    assert torch.allclose(apply(layer, tokens), expected, atol=1e-12)
    weights = torch.randn_like(expected)
    found = torch.autograd.grad((apply(layer, tokens) * weights).sum(), list(layer.parameters()))
    wanted = torch.autograd.grad((expected * weights).sum(), list(layer.parameters()))
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(found, wanted, strict=True))


def test_the_gelu_for_gpus_is_the_one_for_cpus_in_values_and_gradients() -> None:
    features = OcticFeatures.from_tokens(random_tokens())._replace(bias=torch.zeros(4, DIM // 8, dtype=torch.float64))
    inputs = [part.detach().clone().requires_grad_() for part in features if part is not None]
    with torch.no_grad():
        inputs[2][0] = torch.randn(DIM // 8)  # A1 alone has a bias
    expected, found = OcticGELU()(OcticFeatures(*inputs)), _RegularGELU.apply(*inputs)
    assert torch.allclose(found, expected, atol=1e-14)
    weights = torch.randn_like(expected)
    *wanted, wanted_bias = torch.autograd.grad((expected * weights).sum(), inputs)
    *gradients, bias_gradient = torch.autograd.grad((found * weights).sum(), inputs)
    assert all(torch.allclose(one, other, atol=1e-14) for one, other in zip(gradients, wanted, strict=True))
    assert torch.allclose(bias_gradient[0], wanted_bias[0], atol=1e-13) and not bias_gradient[1:].any()


def test_a_block_computes_what_it_did_when_features_were_stored_in_two_parts() -> None:
    """Figures of commit 63eed1c, in float32."""
    block = OcticBlock(32, 2, mlp_ratio=2.0, init_values=1.0)
    with torch.no_grad():
        for number, parameter in enumerate(block.parameters()):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) * 0.7 + number).view_as(parameter) * 0.5)
    tokens = torch.cos(torch.arange(192) * 0.9).view(2, 3, 32).requires_grad_()
    out = block(tokens)
    (out * torch.sin(torch.arange(192) * 1.3).view(2, 3, 32)).sum().backward()
    assert out[0, 0, [0, 9, 18, 31]].tolist() == pytest.approx([1.213835, -0.240623, -1.048143, -0.820937], abs=1e-5)
    assert out[1, 2, [3, 12, 21, 30]].tolist() == pytest.approx([-0.627001, -0.622374, 0.630512, 0.535301], abs=1e-5)
    assert tokens.grad is not None
    assert tokens.grad[1, 0, [0, 9, 18, 31]].tolist() == pytest.approx(
        [-0.737038, -1.010878, -0.728148, 1.024123], abs=1e-5
    )
    totals = [1.2312, 1.3266, 1.7781, 0.2521, 1.8691, 0.5065, 0.7543, 0.8941, 2.8104, 11.8103, 2.3023, 0.6105, 14.254,
              4.948, 0.5007, 6.7115]  # fmt: skip
    found = {name: parameter.grad.abs().sum().item() for name, parameter in block.named_parameters()
             if parameter.grad is not None}  # fmt: skip
    assert list(found.values()) == pytest.approx(totals, abs=1e-4)
    layers = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    names = {f"{layer}.{name}" for layer in layers for name in ("weight_ones", "weight_twos", "bias")}
    assert found.keys() == names | {f"{layer}.weight" for layer in ("norm1", "ls1", "norm2", "ls2")}


def test_under_autocast_products_alone_are_rounded() -> None:
    block, tokens = OcticBlock(64, 2), torch.randn(2, 5, 64)
    expected = block(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found, features = block(tokens), block.attn.qkv(tokens)
    assert found.dtype == torch.float32 and features.ones.dtype == features.twos.dtype == torch.bfloat16
    assert relative_error(found, expected) < 1e-2


def test_gradients_are_those_of_finite_differences() -> None:
    block = randomised(OcticBlock(16, 1, mlp_ratio=1.0))
    tokens = torch.randn(1, 2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: apply(block, values), (tokens,))


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, tokens = OcticDropPath(0.25), torch.ones(400, 2, 16)
    out = apply(layer, tokens)
    assert ((out == 0).all(dim=(1, 2)) | (out == tokens / 0.75).all(dim=(1, 2))).all()
    assert out.mean().item() == pytest.approx(1, abs=0.1) and out.min() + out.max() > 0
    assert torch.equal(apply(layer.eval(), tokens), tokens)
    # One draw for all values of an image: an equivariant branch stays so in training.
    draws = []
    for g in ALL:
        torch.manual_seed(1)
        draws.append(apply(layer.train(), act_on_components(g, tokens)))
    for g in ALL:
        assert torch.equal(draws[g], act_on_components(g, draws[0]))


def test_steerable_maps_are_all_that_the_group_allows() -> None:
    torch.manual_seed(0)
    for side in (1, 3, 4):
        free = torch.randn(2, 3, side, side, dtype=torch.float64)
        maps = steerable_maps(free)
        assert maps.shape == (16, 3, side, side)
        for g in ALL:
            mixed = act_on_components(g, maps.movedim(0, -1)).movedim(-1, 0)
            assert torch.allclose(act_on_image(g, mixed), maps, atol=1e-12)
        # Different free maps give different steerable ones, up to the length: nothing is there twice.
        assert torch.allclose(maps.square().sum(), 8 * free.square().sum())


@pytest.mark.parametrize(("patch", "grid"), [(4, 2), (5, 3), (3, 4), (2, 1)])
def test_patches_and_their_places_commute_with_every_element(patch: int, grid: int) -> None:
    embed = randomised(OcticPatchEmbed(patch * grid, patch, 3, DIM))
    table = torch.randn(DIM // 8, 3, 3, dtype=torch.float64)
    images = torch.randn(2, 3, patch * grid, patch * grid, dtype=torch.float64)
    assert embed.grid_size == embed.dynamic_feat_size(images.shape[2:]) == (grid, grid)
    assert embed.num_patches == grid * grid and embed.patch_size == (patch, patch)

    def tokens(images: Tensor) -> Tensor:
        return embed(images) + positions(table, grid)

    for g in ALL:
        moved = act_on_image(g, tokens(images).transpose(1, 2).unflatten(2, (grid, grid)))
        expected = act_on_components(g, moved.flatten(2).transpose(1, 2))
        assert relative_error(tokens(act_on_image(g, images)), expected) < 1e-10


def test_what_does_not_fit_is_refused_with_the_nearest_that_does() -> None:
    embed = OcticPatchEmbed(32, 8, 3, DIM)
    assert_refused(
        ("in_features is 20: octic features need a multiple of 8, use 16", lambda: OcticLinear(20, 16)),
        ("out_features is 3: octic features need a multiple of 8, use 8", lambda: OcticLinear(16, 3)),
        (r"num_heads is 4 for a width of 48: a head's width must be .* of 8, use 3", lambda: OcticAttention(48, 4)),
        (r"image size is 30: patches of 8 x 8 pixels must fill it, use 32", lambda: OcticPatchEmbed(30, 8, 3, DIM)),
        (r"\(1, 3, 32, 24\): .* square images \[N, 3, S, S\]", lambda: embed(torch.zeros(1, 3, 32, 24))),
        (r"shape \(1, 1, 32, 32\)", lambda: embed(torch.zeros(1, 1, 32, 32))),
        (r"image size is 36: .*use 32", lambda: embed(torch.zeros(1, 3, 36, 36))),
        ("9 is not a symmetry of the square", lambda: act_on_components(9, torch.zeros(2, 16))),
        ("last dimension of the features is 12", lambda: act_on_components(1, torch.zeros(2, 12))),
    )
