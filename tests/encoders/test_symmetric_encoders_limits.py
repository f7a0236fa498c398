"""Where symmetry holds fully, where it ends, and what is refused: all circular shifts, negative controls, bad input."""

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.shifts.polyphase import act_on_image as shift_image
from ssl_equi.encoders.square.symmetries import act_on_image as turn_image
from tests.encoders.symmetric_encoders import CASES, IMAGE, SHIFTS, Case, relative_error, train_two_steps

SHIFTED = [label for label, case in CASES.items() if case.group == "circular_shifts"]
UNWRAPPED = [label for label in CASES if not label.startswith(("group_averaged", "canonicalized"))]
TURNED = [label for label in CASES if label not in SHIFTED]
FULL_DEPTH: dict[str, dict[str, Any]] = {
    "shift_equivariant_vit_tiny_patch16_224": {},
    "shift_equivariant_vit_small_patch16_224": {},
    "shift_equivariant_vit_base_patch16_224": {},
    # Smaller patches and windows, which fill an image of 32 pixels.
    "shift_equivariant_twins_small": {"patch_size": 2, "window_sizes": (2, 2, 2, 2)},
}


def assert_no_shift_matters(encoder: nn.Module, image: Tensor) -> None:
    """All circular shifts of one image: equal predictions of the classifier, and equal features."""
    height, width = image.shape[-2:]
    features, predictions = [], []
    for rows in range(height):
        shifted = torch.cat([shift_image((rows, columns), image) for columns in range(width)])
        pooled = encoder.forward_head(encoder.forward_features(shifted), pre_logits=True)
        features.append(pooled)
        predictions.append(encoder.get_classifier()(pooled).argmax(dim=1))
    all_features, all_predictions = torch.cat(features), torch.cat(predictions)
    assert len(all_predictions) == height * width
    assert (all_predictions == all_predictions[0]).all()
    assert relative_error(all_features, all_features[:1].expand_as(all_features)) < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("label", SHIFTED)
def test_no_shift_of_all_changes_a_prediction(label: str) -> None:
    case = CASES[label]
    encoder = case.make(num_classes=100)
    train_two_steps(encoder, case.images(4))
    assert_no_shift_matters(encoder.double(), case.images(1).double())


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "tiny" not in name else []) for name in FULL_DEPTH]
)
def test_nor_does_it_at_full_depth(name: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name, IMAGE, **FULL_DEPTH[name])
    encoder.reset_classifier(100)
    assert_no_shift_matters(encoder.double().eval(), torch.randn(1, 3, IMAGE, IMAGE, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_ordinary_encoders_fail_the_same_checks(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": IMAGE, "patch_size": 8, "depth": 2, "embed_dim": 48} if name.startswith("vit") else {}
    plain = timm.create_model(name, num_classes=0, **sizes)
    train_two_steps(plain, torch.randn(4, 3, IMAGE, IMAGE))
    images = torch.randn(2, 3, IMAGE, IMAGE)
    features = plain(images)
    turned = [relative_error(plain(turn_image(g, images)), features) for g in range(1, 8)]
    shifted = [relative_error(plain(shift_image(shift, images)), features) for shift in SHIFTS[1:]]
    assert max(turned) > 0.1 and min(turned) > 0.03, turned
    assert max(shifted) > 0.1, shifted  # by whole patches, a vision transformer changes little


@torch.no_grad()
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge"])
def test_the_standard_blocks_of_hybrids_break_the_symmetry(size: str) -> None:
    case = CASES[f"hybrid_octic_vit_{size}_patch16_224"]
    encoder, images = case.make(), case.images()
    features = encoder(images)
    for g in range(1, 8):
        assert relative_error(encoder(turn_image(g, images)), features) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("label", CASES)
def test_what_is_no_symmetry_changes_features(label: str) -> None:
    """Features don't survive because they are all alike: a quarter of the image transposed, two colours swapped."""
    case, images = CASES[label], CASES[label].images()
    subject = case.subject()
    train_two_steps(subject, case.images(4))
    features = subject(images)
    partly_transposed = images.clone()
    half = IMAGE // 2
    partly_transposed[:, :, :half, :half] = images[:, :, :half, :half].transpose(2, 3)
    for other in (partly_transposed, images[:, [1, 0, 2]], images.flip(0)):
        found = subject(other)
        for element in case.elements:
            # Far above rounding; invariants of an octic trunk without a norm start small, and change little.
            assert relative_error(found, subject.act_on_features(element, features)) > 3e-4


@torch.no_grad()
@pytest.mark.parametrize("label", TURNED)
def test_the_action_of_another_element_does_not_fit_equivariant_features(label: str) -> None:
    case = CASES[label]
    subject, images = case.subject(), case.images()
    train_two_steps(subject, case.images(4))
    features = subject(images)
    moved = subject(turn_image(1, images))
    if torch.equal(subject.act_on_features(1, features), features):
        assert relative_error(moved, features) < 1e-5
        return
    for element in case.elements:
        error = relative_error(moved, subject.act_on_features(element, features))
        assert error < 1e-5 if element == 1 else error > 0.01


@pytest.mark.parametrize("label", CASES)
def test_images_that_the_group_cannot_act_on_are_refused_with_the_nearest_legal_size(label: str) -> None:
    case, encoder = CASES[label], CASES[label].make()
    if case.group == "circular_shifts":  # these act on any rectangle
        with pytest.raises(ValueError, match="use 32 x 40"):
            encoder(torch.zeros(1, 3, 32, 43))
        with pytest.raises(ValueError, match="use 48 x 24"):
            case.make(img_size=(50, 23))
    else:
        with pytest.raises(ValueError, match=r"\(1, 3, 32, 48\): .* crop or pad them to 48 x 48 pixels"):
            encoder(torch.zeros(1, 3, 32, 48))
        with pytest.raises(ValueError, match=r"img_size is \(48, 32\): this encoder takes square images, use 48"):
            case.make(img_size=(48, 32))
    with pytest.raises(ValueError, match=r"images have shape \(3, 32, 32\): this encoder takes (square images )?\[N, "):
        encoder(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("label", UNWRAPPED)
def test_sizes_and_colours_that_do_not_fit_are_refused_with_the_nearest_legal_ones(label: str) -> None:
    """The wrappers take what their backbone takes."""
    case, encoder = CASES[label], CASES[label].make()
    for side, legal in ((50, 48), (35, 32), (1, None), (0, None)):
        message = f"(use|nearest legal size is) {legal or '(8|16)'}"
        with pytest.raises(ValueError, match=message):
            case.make(img_size=side)
        with pytest.raises(EncoderError, match=message):
            create_encoder(case.name, side, **{**case.arguments, "img_size": side})
        if side > 0:
            with pytest.raises(ValueError, match=message):
                encoder(torch.zeros(1, 3, side, side))
    with pytest.raises(ValueError, match=r"\(1, 4, 32, 32\): this encoder takes .*\[N, 3, "):
        encoder(torch.zeros(1, 4, 32, 32))


def _wrong_widths(case: Case) -> list[tuple[dict[str, Any], str]]:
    """Arguments that the group can't split, and the message."""
    if "octic" in case.name:
        return [
            ({"embed_dim": 60}, "embed_dim is 60: octic features need a multiple of 8, use 64"),
            ({"embed_dim": 0}, "embed_dim is 0: octic features need a multiple of 8, use 8"),
            ({"embed_dim": 32, "num_heads": 3}, "num_heads is 3 for a width of 32: .* multiple of 8, use [24]"),
            (
                {"embed_dim": 32, "num_heads": 2, "mlp_ratio": 1.3},
                r"\(mlp_ratio times 32\) is 41: .* 8, use 40",
            ),
            ({"patch_size": 0}, "patch_size is 0: it must be at least 1"),
            ({"depth": -1}, "depth is -1: it must be at least 1"),
            ({"in_chans": 0}, "in_chans is 0: it must be at least 1"),
        ]
    if "twins" in case.name:
        return [
            ({"embed_dims": (8, 0)}, "the smallest of embed_dims is 0: it must be at least 1"),
            ({"num_heads": (1, 3)}, "num_heads is 3 for a width of 16: it must divide the width, use [24]"),
            ({"window_sizes": (1, 2)}, "the smallest of window_sizes is 1: it must be at least 2"),
        ]
    if "shift" in case.name:
        return [
            ({"embed_dim": 0}, "embed_dim is 0: it must be at least 1"),
            ({"embed_dim": 24, "num_heads": 5}, "num_heads is 5 for a width of 24: it must divide the width, use [46]"),
            ({"patch_size": 0}, "patch_size is 0: it must be at least 1"),
        ]
    if "resnet" in case.name:
        step = len(case.elements)
        channels = (step,) * (len(case.arguments["channels"]) - 1)
        message = f"channels has {2 * step + 1}: with {case.group} they come in multiples of {step}, such as {2 * step}"
        return [({"channels": (*channels, 2 * step + 1)}, message), ({"blocks": (0,)}, r"blocks are \(0,\): give a")]
    return [
        ({"group": "c8"}, "group is 'c8': choose 'c4' or 'd4'"),
        ({"features": "max"}, "features is 'max': choose 'invariant' or|features is 'max': choose 'regular', 'inv"),
        ({"in_chans": 1}, "in_chans is 1: this encoder takes images of 3 channels"),
        ({"num_classes": 10}, "num_classes is 10: this encoder has no classifier, pass num_classes=0"),
    ]


@pytest.mark.parametrize("label", CASES)
def test_widths_that_cannot_be_split_are_refused_with_the_nearest_legal_ones(label: str) -> None:
    for arguments, message in _wrong_widths(CASES[label]):
        with pytest.raises(ValueError, match=message):
            CASES[label].make(**arguments)


@pytest.mark.parametrize("label", CASES)
def test_what_is_not_in_the_group_is_refused(label: str) -> None:
    case, subject = CASES[label], CASES[label].subject()
    features = subject(case.images())
    if case.group == "circular_shifts":
        for shift, legal in (((0.6, 1), (1, 1)), ((3,), (3, 0)), (2, (2, 0))):
            with pytest.raises(ValueError, match=re.escape(f"pass two whole numbers of pixels, such as {legal}")):
                subject.act_on_features(shift, features)
    else:
        for element in (-1, len(case.elements)):
            with pytest.raises(ValueError, match=rf"{element}.*0\.\.{len(case.elements) - 1}"):
                subject.act_on_features(element, features)
    with pytest.raises(ValueError, match=r"columns|shape|last dimension"):
        subject.act_on_features(case.elements[1], features[..., :-1])
