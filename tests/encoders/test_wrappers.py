"""Averaging over the group and learned canonicalisation: exact for any backbone, at every element."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders import EncoderError, create_encoder, wrap
from ssl_equi.encoders.square.convolutions import GroupName, act_on_regular_stack, bake, group_size
from ssl_equi.encoders.square.symmetries import ELEMENTS, act_on_image, compose, inverse
from ssl_equi.encoders.wrappers import Canonicalized, GroupAveraged, GroupScorer

GROUPS: tuple[GroupName, ...] = ("c4", "d4")
VARIANTS = [
    ("averaging", "invariant"),
    ("averaging", "regular"),
    ("averaging", "both"),
    ("canonicalization", "invariant"),
    ("canonicalization", "with_element"),
]
SIDE = 18  # a multiple of neither 4 nor 32: no symmetry of the backbone's own


class Backbone(nn.Module):
    """A convolutional network without any symmetry: strides on maps of even side, and an unpooled grid."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(100, self.num_features),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def wrapped(kind: str, features: str, group: GroupName) -> GroupAveraged | Canonicalized:
    torch.manual_seed(0)
    network = wrap(Backbone(), kind, group, features=features)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.2, 2)
    return network.eval()


def random_images(dtype: torch.dtype = torch.float64, count: int = 6) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return float(((ours - expected).norm() / expected.norm()).detach())


def worst_error(network: GroupAveraged | Canonicalized, images: Tensor) -> float:
    """Of features of g x against g acting on those of x, over all elements."""
    features = network(images)
    assert features.shape == (len(images), network.num_features)
    return max(
        relative_error(network(act_on_image(g, images)), network.act_on_features(g, features))
        for g in range(group_size(network.group))
    )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("kind", "features"), VARIANTS)
def test_features_move_as_predicted(kind: str, features: str, group: GroupName) -> None:
    network, images = wrapped(kind, features, group), random_images(torch.float32)
    assert worst_error(network, images) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert worst_error(network, images) < 2e-2
    assert worst_error(network.double(), random_images()) < 1e-10
    plain, images = network.encoder, random_images()
    assert relative_error(plain(act_on_image(1, images)), plain(images)) > 0.1


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("kind", "features"), VARIANTS)
def test_training_keeps_the_symmetry_and_weights_carry_it(kind: str, features: str, group: GroupName) -> None:
    network, images = wrapped(kind, features, group).double().train(), random_images()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    target = torch.randn(len(images), network.num_features, dtype=torch.float64)
    before = network(images).detach()
    for _ in range(2):
        optimizer.zero_grad()
        (network(images) - target).square().mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
        optimizer.step()
    assert worst_error(network, images) < 1e-10  # in training mode
    assert relative_error(network(images), before) > 0.01
    assert worst_error(network.eval(), images) < 1e-10
    restored = wrapped(kind, features, group).double()
    restored.load_state_dict(network.state_dict())
    assert torch.equal(restored(images), network(images))


@pytest.mark.parametrize(("kind", "features"), VARIANTS)
def test_baked_and_exported_they_are_the_same_function(kind: str, features: str) -> None:
    network, images = wrapped(kind, features, "d4"), random_images(torch.float32)
    baked = bake(network)
    assert torch.equal(baked(images), network(images))
    exported = torch.export.export(baked, (images,)).module()
    for g in (0, 1, 6):
        moved = act_on_image(g, images)
        assert torch.allclose(exported(moved), network(moved), atol=1e-6)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("kind", "features"), VARIANTS)
def test_actions_on_features_form_the_group(kind: str, features: str, group: GroupName) -> None:
    network = wrapped(kind, features, group)
    random = torch.randn(2, network.num_features)
    assert torch.equal(network.act_on_features(0, random), random)
    for g, h in itertools.product(range(group_size(group)), repeat=2):
        twice = network.act_on_features(g, network.act_on_features(h, random))
        assert torch.equal(twice, network.act_on_features(compose(g, h), random))
        assert torch.equal(twice, random) == (features == "invariant" or g == inverse(h))
    for part, columns in network.parts.items():
        assert not torch.equal(network.act_on_features(1, random)[:, columns], random[:, columns]) or part != "equi"
        assert torch.equal(network.act_on_features(1, random)[:, columns], random[:, columns]) or part != "inv"


@pytest.mark.parametrize("group", GROUPS)
def test_averaging_shows_the_backbone_every_copy(group: GroupName) -> None:
    network, images = wrapped("averaging", "both", group).double(), random_images()
    copies = [network.encoder(act_on_image(inverse(h), images)) for h in range(group_size(group))]
    features = network(images)
    assert relative_error(features[:, network.parts["inv"]], sum(copies) / len(copies)) < 1e-12
    assert relative_error(features[:, network.parts["equi"]], torch.cat(copies, dim=1)) < 1e-12


@pytest.mark.parametrize("group", GROUPS)
def test_canonical_images_and_elements_are_consistent(group: GroupName) -> None:
    network, images = wrapped("canonicalization", "with_element", group).double(), random_images(count=16)
    canonical, one_hot = network.canonicalize(images)
    elements = one_hot.argmax(dim=1)
    assert len(elements.unique()) > 1
    assert torch.equal(elements, network.scores(images).argmax(dim=1))
    for image, upright, element in zip(images, canonical, elements.tolist()):
        assert torch.equal(act_on_image(element, upright), image)
    for g in range(group_size(group)):
        canonical_of_moved, moved_one_hot = network.canonicalize(act_on_image(g, images))
        assert torch.equal(canonical_of_moved, canonical)
        assert moved_one_hot.argmax(dim=1).tolist() == [compose(g, element) for element in elements.tolist()]
    assert torch.equal(network(images), torch.cat([network.encoder(canonical), one_hot], dim=1))


@pytest.mark.parametrize("group", GROUPS)
def test_scores_move_with_the_image_whatever_its_side(group: GroupName) -> None:
    torch.manual_seed(0)
    scorer = GroupScorer(group, fields=2).double()
    for side in (7, 32, 45, 64):
        images = torch.randn(2, 3, side, side, dtype=torch.float64)
        for g in range(group_size(group)):
            expected = act_on_regular_stack(group, g, scorer(images))
            assert relative_error(scorer(act_on_image(g, images)), expected) < 1e-10


def test_the_scorer_keeps_its_precision_under_autocast() -> None:
    network, images = wrapped("canonicalization", "invariant", "d4"), random_images(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for images_in in (images, images.bfloat16().float()):
            scores = network.scores(images_in)
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(scores, network.scores(images_in)) and scores.dtype == torch.float32
        assert network.scores(images.bfloat16()).dtype == torch.float32


def test_the_choice_has_the_gradient_of_the_softmax_and_the_value_of_the_best() -> None:
    network, images = wrapped("canonicalization", "with_element", "d4").double(), random_images()
    canonical, one_hot = network.canonicalize(images)
    with torch.no_grad():
        canonical_without_gradient, one_hot_without_gradient = network.canonicalize(images)
    assert torch.equal(canonical, canonical_without_gradient) and torch.equal(one_hot, one_hot_without_gradient)
    weights, element_weights = torch.randn_like(canonical), torch.randn_like(one_hot)
    probabilities = network.scores(images).softmax(dim=1)
    copies = torch.stack([act_on_image(inverse(h), images) for h in range(ELEMENTS)])
    blended = torch.einsum("nh,hncyx->ncyx", probabilities, copies)
    parameters = list(network.scorer.parameters())
    ours = torch.autograd.grad((canonical * weights).sum() + (one_hot * element_weights).sum(), parameters)
    expected = torch.autograd.grad((blended * weights).sum() + (probabilities * element_weights).sum(), parameters)
    for gradient, other in zip(ours, expected):
        assert torch.allclose(gradient, other, atol=1e-10) and gradient.any()


def test_ties_of_symmetric_images_do_not_matter() -> None:
    network, images = wrapped("canonicalization", "invariant", "d4"), random_images(torch.float32)
    symmetric = torch.stack([act_on_image(g, images) for g in range(ELEMENTS)]).mean(0)
    half_symmetric = images + act_on_image(2, images)
    constant = torch.ones_like(images)
    for tied, exact in ((constant, True), (symmetric, False), (half_symmetric, True)):
        scores = network.scores(tied).sort(dim=1).values
        assert ((scores[:, -1] - scores[:, -2]) < 1e-6).all()
        for g in range(ELEMENTS):
            error = relative_error(network(act_on_image(g, tied)), network(tied))
            assert error == 0 if exact else error < 1e-5


def test_a_scorer_without_symmetry_loses_the_invariance() -> None:
    torch.manual_seed(0)
    scorer = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4))
    network = wrap(Backbone(), "canonicalization", "c4", scorer=scorer).eval()
    assert worst_error(network, random_images(torch.float32)) > 0.1


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", ["group_averaged", "canonicalized"])
def test_wrapped_backbones_are_made_by_name(name: str, group: GroupName) -> None:
    encoder = create_encoder(name, 32, group=group).eval()
    images = torch.randn(2, 3, 32, 32)
    assert encoder.num_features == 512
    assert worst_error(encoder, images) < 1e-5
    inner = create_encoder(name, 32, backbone="d4_resnet10_small_images", group=group, features="invariant")
    assert inner.num_features == 256


def test_wrong_arguments_are_named() -> None:
    network = wrap(Backbone(), "averaging", "c4")
    with pytest.raises(ValueError, match="kind is 'frames': choose 'averaging' or 'canonicalization'"):
        wrap(Backbone(), "frames")
    for kind in ("averaging", "canonicalization"):
        with pytest.raises(ValueError, match="group is 'so2': choose 'c4' or 'd4'"):
            wrap(Backbone(), kind, "so2")
        with pytest.raises(ValueError, match="features is 'max'"):
            wrap(Backbone(), kind, features="max")
        with pytest.raises(ValueError, match="num_features of Identity is None"):
            wrap(nn.Identity(), kind)
        with pytest.raises(ValueError, match=r"images have shape \(1, 3, 18, 20\): .* square"):
            wrap(Backbone(), kind)(torch.randn(1, 3, 18, 20))
        with pytest.raises(ValueError, match=r"features have shape \(1, 7\): these are \[N, 6\]"):
            wrap(Backbone(), kind).act_on_features(1, torch.randn(1, 7))
    with pytest.raises(ValueError, match=r"element is 5: c4 has the elements 0\.\.3"):
        network.act_on_features(5, torch.randn(1, 6))
    with pytest.raises(EncoderError, match="no model named 'resnet81'"):
        create_encoder("group_averaged", 32, backbone="resnet81")
    canonicalized = wrap(Backbone(), "canonicalization", "d4", scorer=GroupScorer("c4"))
    with pytest.raises(ValueError, match=r"scores have shape \(2, 4\): a scorer for d4 gives \[2, 8\]"):
        canonicalized(random_images(torch.float32, count=2))
