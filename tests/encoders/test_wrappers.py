"""Averaging over the group and learned canonicalisation: exact for any backbone, at every element."""

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders import EncoderError, create_encoder, wrap
from ssl_equi.encoders.square.convolutions import GroupName, act_on_regular_stack, group_size
from ssl_equi.encoders.square.symmetries import ELEMENTS, act_on_image, compose, inverse
from ssl_equi.encoders.wrappers import Canonicalized, GroupAveraged, GroupScorer
from tests.encoders.symmetric_encoders import relative_error
from tests.fakes import StridedEncoder

GROUPS: tuple[GroupName, ...] = ("c4", "d4")
SIDE = 18  # a multiple of neither 4 nor 32: no symmetry of the backbone's own


def wrapped(kind: str, features: str, group: GroupName) -> GroupAveraged | Canonicalized:
    torch.manual_seed(0)
    network = wrap(StridedEncoder(), kind, group, features=features)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.2, 2)
    return network.eval()


def random_images(dtype: torch.dtype = torch.float64, count: int = 6) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(dtype)


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
    network = wrap(StridedEncoder(), "canonicalization", "c4", scorer=scorer).eval()
    images = random_images(torch.float32)
    assert relative_error(network(act_on_image(1, images)), network(images)) > 0.1


def test_wrong_arguments_are_named() -> None:
    """Beside what every encoder with a symmetry refuses."""
    with pytest.raises(ValueError, match="kind is 'frames': choose 'averaging' or 'canonicalization'"):
        wrap(StridedEncoder(), "frames")
    for kind in ("averaging", "canonicalization"):
        with pytest.raises(ValueError, match="num_features of Identity is None"):
            wrap(nn.Identity(), kind)
    with pytest.raises(EncoderError, match="no model named 'resnet81'"):
        create_encoder("group_averaged", 32, backbone="resnet81")
    canonicalized = wrap(StridedEncoder(), "canonicalization", "d4", scorer=GroupScorer("c4"))
    with pytest.raises(ValueError, match=r"scores have shape \(2, 4\): a scorer for d4 gives \[2, 8\]"):
        canonicalized(random_images(torch.float32, count=2))
