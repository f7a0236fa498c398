"""Steerable ResNets: exact under quarter turns, close under others, and what becomes of them without escnn."""

import ast
import functools
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.encoders.steerable import escnn_import
from ssl_equi.encoders.steerable.escnn_import import import_escnn, refuse_wigner_matrix
from ssl_equi.encoders.steerable.groups import FOURIER_SAMPLES, fourier_turn, fourier_values, steerable_group
from ssl_equi.encoders.steerable.layers import AntialiasedPooling, SteerableConvolution, kernel_basis
from ssl_equi.encoders.steerable.resnet import SteerableResNet
from ssl_equi.evaluation.symmetry.errors import measure_symmetry
from ssl_equi.evaluation.symmetry.image_symmetries import image_symmetries
from tests.encoders.symmetric_encoders import assert_refused, relative_error
from tests.fakes import with_other_values

SIZE = {"c6": 6, "c8": 8, "c12": 12, "so2": 7}
"""Channels of a field."""
QUARTER_TURNS = {"c6": (0, 2), "c8": (0, 1, 2, 3), "c12": (0, 1, 2, 3), "so2": (0, 1, 2, 3)}
"""Those that the group has, in units of 90 degrees."""


def small_network(group: str, features: str = "regular", **arguments: Any) -> SteerableResNet:
    """Two stages, for images of 16 pixels."""
    torch.manual_seed(0)
    sizes = {"blocks": (1, 2), "channels": (SIZE[group], 2 * SIZE[group]), "stem": "small_images", "img_size": 16}
    return with_other_values(SteerableResNet(group, features=features, **(sizes | arguments)))


@functools.cache
def smooth_images() -> Tensor:
    cells = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(cells, size=(64, 64), mode="bicubic")


def errors_under_turns(name: str, angle_deg: float, **arguments: Any) -> tuple[float, float | None]:
    """Of invariance and equivariance, with random weights; 1 is the difference between two images."""
    torch.manual_seed(0)
    encoder = create_encoder(name, 64, **arguments).eval()
    turns = image_symmetries("rotations", 64, angles_deg=(angle_deg,))
    everything = {"all": slice(0, encoder.num_features)}
    errors = measure_symmetry(encoder, smooth_images(), turns, everything, with_layers=False).parts["all"]
    return errors.invariance_error, errors.equivariance_error


def test_turns_by_45_degrees_change_features_far_less_than_those_of_other_networks() -> None:
    """Measured: .08 for c8 and .09 for so2 (interpolation included), .30 for resnet10t, .32 for c4."""
    for name in ("c8_resnet10_small_images", "so2_resnet10_small_images"):
        error, same_error = errors_under_turns(name, 45, features="invariant")
        assert error < 0.12 and same_error == error
    assert errors_under_turns("resnet10t", 45)[0] > 0.25
    assert errors_under_turns("c4_resnet10_small_images", 45, features="invariant")[0] > 0.25


@pytest.mark.parametrize(("name", "angle_deg"), [("c8", 45), ("c8", 135), ("so2", 45), ("so2", 30), ("so2", 200)])
def test_regular_features_follow_turns_by_other_angles(name: str, angle_deg: float) -> None:
    unmoved, moved = errors_under_turns(f"{name}_resnet10_small_images", angle_deg)
    assert moved is not None and moved < 0.2
    assert moved < 0.5 * unmoved
    if (name, angle_deg) == ("c8", 45):  # the limit on frequencies is what makes them follow
        _, unlimited = errors_under_turns("c8_resnet10_small_images", angle_deg, max_frequency=2)
        assert unlimited is not None and unlimited > 2 * moved


@pytest.mark.parametrize("group", SIZE)
def test_turns_of_features_form_a_group(group: str) -> None:
    network = small_network(group)
    features = network(torch.randn(3, 3, 16, 16))
    step = 30.0 if group in ("c12", "so2") else 360 / SIZE[group]
    turned = features
    for count in range(1, round(360 / step) + 1):
        turned = network.act_on_features(step, turned)
        assert relative_error(turned, network.act_on_features(count * step, features)) < 1e-5
        assert (relative_error(turned, features) < 1e-5) == (count * step == 360)
    for g in QUARTER_TURNS[group]:
        assert relative_error(network.act_on_features(g, features), network.act_on_features(90.0 * g, features)) < 1e-6


@pytest.mark.parametrize(("group", "takes"), [("c8", "image"), ("c8", "fields"), ("so2", "image"), ("so2", "fields")])
def test_a_convolution_is_that_of_escnn(group: str, takes: Any) -> None:
    """With the same coefficients, of kernels that have squared length 1; escnn keeps a field's channels together."""
    escnn = import_escnn()
    if group == "so2":
        space = escnn.gspaces.rot2dOnR2(-1, maximum_frequency=6)
        field = space.fibergroup.bl_regular_representation(3)
    else:
        space = escnn.gspaces.rot2dOnR2(8)
        field = space.regular_repr
    incoming = [space.trivial_repr if takes == "image" else field] * 2
    types = [escnn.nn.FieldType(space, incoming), escnn.nn.FieldType(space, [field] * 3)]
    theirs = escnn.nn.R2Conv(
        *types, 5, padding=2, bias=False, initialize=False, frequencies_cutoff=lambda r: min(2 * r, 1)
    )
    ours = SteerableConvolution(group, takes, 2, 3, 5)
    (expansion,) = theirs.basisexpansion.children()
    lengths = expansion(torch.eye(expansion.dimension())).flatten(1).norm(dim=1)
    theirs.weights.data = (ours.weight.detach() / lengths).flatten()
    size = 1 if takes == "image" else SIZE[group]
    maps = torch.randn(2, size * 2, 9, 9)
    fields_first = maps.unflatten(1, (size, 2)).transpose(1, 2).flatten(1, 2)
    expected = theirs(types[0](fields_first)).tensor.unflatten(1, (3, SIZE[group])).transpose(1, 2).flatten(1, 2)
    assert relative_error(ours(maps), expected.detach()) < 1e-5


def test_new_weights_have_the_stated_variance() -> None:
    torch.manual_seed(0)
    for group in ("c8", "so2"):
        layer = SteerableConvolution(group, "fields", 32, 32, 5)
        squared_lengths = layer.expanded_weight().detach().square().sum(dim=(1, 2, 3))
        assert squared_lengths.mean() == pytest.approx(2, rel=0.1)
        other = SteerableConvolution(group, "fields", 32, 32, 5)
        assert not torch.equal(layer.weight, other.weight)


def test_the_basis_is_the_same_everywhere() -> None:
    """Exported weights mean nothing with another one."""
    expected = {
        ("c8", "image"): ((7, 8, 1, 25), -11.43515),
        ("c8", "fields"): ((56, 8, 8, 25), -64.00185),
        ("so2", "fields"): ((45, 7, 7, 25), -26.64537),
    }
    for (group, takes), (shape, weighted_sum) in expected.items():
        basis = kernel_basis(group, takes, 5, 1)
        assert basis.shape == shape
        assert torch.allclose(basis.flatten(1).norm(dim=1), torch.ones(len(basis)))
        places = torch.linspace(-1, 1, basis.numel(), dtype=torch.float64)
        assert float(basis.flatten().double() @ places) == pytest.approx(weighted_sum, abs=1e-4)


def test_fourier_coefficients_describe_functions_on_the_circle() -> None:
    values, generator = fourier_values(), torch.Generator().manual_seed(0)
    assert torch.allclose(values.T @ values / FOURIER_SAMPLES, torch.eye(7, dtype=torch.float64))
    coefficients = torch.randn(7, generator=generator, dtype=torch.float64)
    for steps in range(FOURIER_SAMPLES):
        turn = fourier_turn(2 * torch.pi * steps / FOURIER_SAMPLES)
        assert torch.allclose(values @ turn @ coefficients, (values @ coefficients).roll(steps))
    representation = import_escnn().group.so2_group(3).bl_regular_representation(3)
    expected = torch.from_numpy(representation(representation.group.element(0.3)))
    assert torch.allclose(fourier_turn(0.3), expected.double())


@pytest.mark.parametrize("name", ["c8_resnet18", "so2_resnet18"])
def test_networks_are_made_quickly(name: str) -> None:
    import_escnn()
    kernel_basis.cache_clear()
    start_s = time.process_time()
    timm_with_our_encoders().create_model(name, num_classes=0)
    assert time.process_time() - start_s < 5


@pytest.fixture
def fresh_import(monkeypatch: pytest.MonkeyPatch) -> Any:
    """escnn is imported anew when it is asked for, here and after the test."""
    import_escnn()
    cached = (import_escnn, kernel_basis)
    for function in cached:
        function.cache_clear()
    yield monkeypatch
    for function in cached:
        function.cache_clear()


def test_without_escnn_the_error_says_what_to_type(fresh_import: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "escnn"]:
        fresh_import.setitem(sys.modules, name, None)
    assert timm_with_our_encoders().is_model("c8_resnet18")
    create_encoder("c4_resnet10_small_images", 32)
    with pytest.raises(
        EncoderError, match=r"library escnn, .* uv sync --extra steerable .* pip install --no-deps escnn"
    ):
        create_encoder("c8_resnet10_small_images", 32)


def test_escnn_is_only_imported_in_a_function() -> None:
    """It takes seconds, which a model that doesn't need it should not cost."""
    tree = ast.parse(Path(escnn_import.__file__).read_text())
    at_the_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_the_top for alias in node.names}
    assert "functools" in names and not any(name.startswith("escnn") for name in names)


def test_wigner_matrices_are_refused_where_lie_learn_is_missing(fresh_import: pytest.MonkeyPatch) -> None:
    fresh_import.setitem(sys.modules, "lie_learn", None)
    with pytest.raises(EncoderError, match=r"Wigner matrices of SO\(3\).* from lie-learn, and that can't be imported"):
        refuse_wigner_matrix(1, 0, 0, 0)
    escnn = import_escnn()
    assert sys.modules["lie_learn"] is None  # as it was
    assert not any(name.startswith("lie_learn.") for name in sys.modules)
    rotations = escnn.group.so3_group(1)
    with pytest.raises(EncoderError, match="use groups of the plane"):
        rotations.irrep(1)(rotations.sample())


def test_lie_learn_is_used_where_it_is(fresh_import: pytest.MonkeyPatch) -> None:
    for depth in range(1, 5):
        name = ".".join(["lie_learn", "representations", "SO3", "wigner_d"][:depth])
        fresh_import.setitem(sys.modules, name, ModuleType(name))
    fresh_import.setattr(escnn_import, "_stand_ins_for_lie_learn", lambda: pytest.fail("there is no need for it"))
    import_escnn()
    assert "lie_learn.representations.SO3.wigner_d" in sys.modules


def test_sizes_that_break_the_symmetry_are_refused_with_the_nearest_legal_one() -> None:
    with pytest.raises(EncoderError, match=r"in stages.2.0 .* a map of 9 x 9: the nearest legal size is 64 x 64"):
        create_encoder("c8_resnet18", 72)
    network, pool = small_network("so2"), AntialiasedPooling()
    assert_refused(
        (r"17 x 17 .* symmetry in pool.0 \(kernel 6, .* is 16 x 16", lambda: small_network("c8", img_size=17)),
        (r"18 x 18 pixels break .* stages.1.0 .* is 20 x 20", lambda: network(torch.randn(1, 3, 18, 18))),
        (r"\(1, 3, 16, 20\): this encoder takes square images", lambda: network(torch.randn(1, 3, 16, 20))),
        ("a map of 6 x 5 breaks the symmetry in antialiased", lambda: pool(torch.randn(1, 1, 6, 5))),
    )


def test_turns_that_a_group_has_not_are_named() -> None:
    c6, c8, features = small_network("c6"), small_network("c8"), torch.randn(1, 12)
    assert_refused(
        (r"element is 1: of .* c6 has 0, 2 \(turns by 90", lambda: c6.act_on_features(1, features)),
        ("element is 4: of .* c8 has 0, 1, 2, 3", lambda: c8.act_on_features(4, torch.randn(1, 16))),
        ("is 40: c6 has the multiples of 60 degrees, such as 60", lambda: c6.act_on_features(40.0, features)),
        ("angle_deg is 40: c8", lambda: small_network("c8", "invariant").act_on_features(40.0, torch.randn(1, 2))),
        (r"shape \(1, 10\): these are \[N, 12\]", lambda: c6.act_on_features(60.0, torch.randn(1, 10))),
        (r"stack .* c6 acts on \[N, 6 \* C, ...\]", lambda: steerable_group("c6").act_on_stack(60, torch.randn(1, 10))),
        (r"maps .* this layer takes \[N, 3, h, w\]", lambda: c6.conv1(torch.randn(1, 4, 5, 5))),
    )
