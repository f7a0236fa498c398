"""What every encoder with a symmetry promises: how features and maps move, its parts, and what it refuses.

The features of a moved image are what the encoder's own `act_on_features` makes of those of the image, at every element
of the group (a few of the circular shifts; all of them in a test of their own).
"""

import itertools
import re
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.encoders.shifts.polyphase import act_on_image as shift_image
from ssl_equi.encoders.square.convolutions import bake
from ssl_equi.encoders.square.symmetries import act_on_image as turn_image
from ssl_equi.encoders.square.symmetries import compose, inverse
from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.export.folder import module_tensors
from tests.encoders.symmetric_encoders import (
    ARCHITECTURES,
    CASES,
    IMAGE,
    SHIFTS,
    TOLERANCES,
    VARIANTS,
    Case,
    errors_by_element,
    relative_error,
    train_two_steps,
    trained,
)

WITHOUT_SYMMETRY = ("capsules.network", "resnets", "strided_cnn", "steerable.resnet")  # the last are among VARIANTS
EVERY = CASES | VARIANTS
SHIFTED = [label for label, case in EVERY.items() if case.group == "circular_shifts"]
CONVOLUTIONAL = ("c4_resnet18", "d4_resnet10_small_images", "group_averaged, both, d4", "c8", "so2")
FULL_DEPTH: dict[str, dict[str, Any]] = {
    **{f"shift_equivariant_vit_{size}_patch16_224": {} for size in ("tiny", "small", "base")},
    # Smaller patches and windows, which fill an image of 32 pixels.
    "shift_equivariant_twins_small": {"patch_size": 2, "window_sizes": (2, 2, 2, 2)},
}


def test_every_registered_name_is_checked() -> None:
    timm = timm_with_our_encoders()
    modules = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    ours = {
        name
        for name, module in modules.items()
        if module.startswith("ssl_equi.encoders.") and not module.endswith(WITHOUT_SYMMETRY)
    }
    assert {case.name for case in CASES.values()} == ours
    assert set(ARCHITECTURES) <= set(CASES)


# ---------------------------------------------------------------- how they move


@torch.no_grad()
@pytest.mark.parametrize("label", EVERY)
def test_moving_images_acts_on_features_as_predicted(label: str) -> None:
    """At first, trained and in every precision; and stored weights carry it."""
    case = EVERY[label]
    subject, images = case.subject(), case.images()
    initial = subject(images)
    assert max(errors_by_element(case, subject, subject.act_on_features, images).values()) < TOLERANCES["float32"]
    train_two_steps(subject, case.images(4))
    features = subject(images)
    assert relative_error(features, initial) > 0.01
    restored = case.subject(seed=1)
    restored.load_state_dict(safetensors.torch.load(safetensors.torch.save(module_tensors(subject))), strict=True)
    assert torch.equal(restored(images), features)
    for precision, tolerance in TOLERANCES.items():
        if precision == "float64":
            subject, images = subject.double(), images.double()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            errors = errors_by_element(case, subject, subject.act_on_features, images)
        subject, images = subject.float(), images.float()
        worst = max(errors, key=errors.__getitem__)
        assert errors[worst] < tolerance, f"{precision}: {errors[worst]:.1e} at element {worst}"


@torch.no_grad()
@pytest.mark.parametrize("label", [*ARCHITECTURES, "c8", "so2"])
def test_moving_images_acts_on_maps_as_predicted(label: str) -> None:
    case = EVERY[label]
    encoder, images = case.make().double(), case.images().double()
    assert isinstance(encoder, Symmetric) and encoder.symmetries.name == case.group
    assert set(encoder.symmetries.elements) <= {*case.elements}
    if not hasattr(encoder, "forward_intermediates"):  # a wrapper, whose backbone's maps move in no known way
        assert encoder.act_on_layer("encoder", case.elements[1], images) is None
        return
    names = [info["module"] for info in encoder.feature_info]
    maps = dict(zip(names, encoder.forward_intermediates(images, intermediates_only=True)))
    for element in case.elements:
        moved = case.act_on_image(element, images)
        assert torch.equal(encoder.symmetries.act(element, images), moved)
        found = dict(zip(names, encoder.forward_intermediates(moved, intermediates_only=True)))
        for name, own in maps.items():
            expected = encoder.act_on_layer(name, element, own)
            known = case.group != "circular_shifts" and not (name == "blocks.1" and encoder.kind != "octic")
            assert (expected is not None) == known
            if expected is not None:
                assert relative_error(found[name], expected) < TOLERANCES["float64"]
                assert element == 0 or relative_error(found[name], own) > 0.01
            elif case.group == "circular_shifts":  # by whole places, which leaves the means as they are
                assert relative_error(found[name].mean((2, 3)), own.mean((2, 3))) < TOLERANCES["float64"]


@pytest.mark.parametrize("label", CONVOLUTIONAL)
def test_in_training_mode_every_image_may_be_moved_by_its_own_element(label: str) -> None:
    case = EVERY[label]
    network, images = case.make().double().train(), case.images(3).double()
    features = network(images)
    elements = [1, case.elements[-1], 0]
    moved = network(torch.cat([turn_image(g, image[None]) for g, image in zip(elements, images)]))
    expected = [network.act_on_features(g, row[None]) for g, row in zip(elements, features)]
    assert relative_error(moved, torch.cat(expected)) < TOLERANCES["float64"]
    moved.square().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("label", [*CONVOLUTIONAL, "canonicalized, with element, d4"])
def test_baked_and_exported_they_are_the_same_function(label: str) -> None:
    case, network = trained(label)
    images = case.images(4)
    baked = bake(network)
    assert torch.equal(baked(images), network(images)) and baked.parts == network.parts
    assert max(errors_by_element(case, baked, network.act_on_features, images).values()) < TOLERANCES["float32"]
    batch = {0: torch.export.Dim("batch", min=2)}
    exported = torch.export.export(baked, (images,), dynamic_shapes=(batch,)).module()
    more = torch.cat([images, images.flip(0)])
    assert torch.allclose(exported(more), network(more), atol=1e-5)


@pytest.mark.parametrize("label", [*ARCHITECTURES, "canonicalized", "c8"])
def test_actions_on_features_form_the_group(label: str) -> None:
    case, subject = EVERY[label], EVERY[label].subject()
    features = subject(case.images()).detach()
    act = subject.act_on_features
    assert torch.equal(act(case.elements[0], features), features)
    if case.group == "circular_shifts":
        return
    invariant = torch.equal(act(1, features), features)
    for g, h in itertools.product(case.elements, repeat=2):
        twice = act(g, act(h, features))
        assert torch.equal(twice, act(compose(g, h), features))
        assert torch.equal(twice, features) == (invariant or g == inverse(h))


@torch.no_grad()
@pytest.mark.parametrize("label", [*ARCHITECTURES, "octic_vit, both", "c8, both", "so2", "so2, invariant"])
def test_parts_are_what_they_are_called(label: str) -> None:
    case, encoder = EVERY[label], EVERY[label].make()
    train_two_steps(encoder, case.images(4))
    parts = encoder.parts
    assert parts["all"] == slice(0, encoder.num_features)
    if case.name.startswith("hybrid"):
        assert set(parts) == {"all"}
        return
    ends = [parts[name].stop for name in ("inv", "equi") if name in parts]  # inv, then equi, which fill all
    assert ends[-1] == encoder.num_features
    named = sorted((part.start, part.stop) for name, part in parts.items() if name != "all")
    assert named == list(zip([0, *ends], ends))
    features, moved = encoder(case.images()), encoder(case.act_on_image(case.elements[1], case.images()))
    if "inv" in parts:
        assert relative_error(moved[:, parts["inv"]], features[:, parts["inv"]]) < 1e-5
    if "equi" in parts:
        assert relative_error(moved[:, parts["equi"]], features[:, parts["equi"]]) > 0.01


# ---------------------------------------------------------------- where symmetry holds fully, and where it ends


def assert_no_shift_matters(encoder: nn.Module, image: Tensor) -> None:
    """All circular shifts of one image: equal predictions of the classifier, and equal features."""
    height, width = image.shape[-2:]
    rows = [torch.cat([shift_image((row, column), image) for column in range(width)]) for row in range(height)]
    features = torch.cat([encoder.forward_head(encoder.forward_features(own), pre_logits=True) for own in rows])
    predictions = encoder.get_classifier()(features).argmax(dim=1)
    assert len(predictions) == height * width and (predictions == predictions[0]).all()
    assert relative_error(features, features[:1].expand_as(features)) < TOLERANCES["float64"]


@torch.no_grad()
@pytest.mark.parametrize("label", SHIFTED)
def test_no_shift_of_all_changes_a_prediction(label: str) -> None:
    case = EVERY[label]
    encoder = case.make(num_classes=100)
    train_two_steps(encoder, case.images(4))
    assert_no_shift_matters(encoder.double(), case.images(1).double())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", FULL_DEPTH)
def test_nor_does_it_at_full_depth(name: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name, IMAGE, **FULL_DEPTH[name])
    encoder.reset_classifier(100)
    assert_no_shift_matters(encoder.double().eval(), torch.randn(1, 3, IMAGE, IMAGE, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
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
@pytest.mark.parametrize("label", [*CASES, "c6", "c8", "so2"])
def test_what_is_no_symmetry_changes_features(label: str) -> None:
    """A quarter of the image transposed, colours swapped, another image, elements that the group has not."""
    case, subject = trained(label) if label in ARCHITECTURES else (EVERY[label], EVERY[label].subject())
    images = case.images()
    features = subject(images)
    partly_transposed = images.clone()
    half = IMAGE // 2
    partly_transposed[:, :, :half, :half] = images[:, :, :half, :half].transpose(2, 3)
    others = [partly_transposed, images[:, [1, 0, 2]], images.flip(0)]
    others += [turn_image(g, images) for g in (1, 4) if case.group != "d4" and g not in case.elements]
    for other in others:
        found = subject(other)
        for element in case.elements:
            # Far above rounding; invariants of an octic trunk without a norm start small, and change little.
            assert relative_error(found, subject.act_on_features(element, features)) > 3e-4
    if case.group != "circular_shifts" and not torch.equal(subject.act_on_features(2, features), features):
        moved = subject(turn_image(2, images))
        for element in case.elements:
            error = relative_error(moved, subject.act_on_features(element, features))
            assert error < 1e-5 if element == 2 else error > 0.003


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("label", ARCHITECTURES)
def test_images_that_do_not_fit_are_refused_with_the_nearest_legal_size(label: str) -> None:
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
    if case.name in ("group_averaged", "canonicalized"):  # which take what their backbone takes
        return
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


def _wrong_arguments(case: Case) -> list[tuple[dict[str, Any], str]]:
    """Arguments that the group can't split, or that nothing has, and the message."""
    if "octic" in case.name:
        return [
            ({"embed_dim": 60}, "embed_dim is 60: octic features need a multiple of 8, use 64"),
            ({"embed_dim": 0}, "embed_dim is 0: octic features need a multiple of 8, use 8"),
            ({"num_heads": 3}, "num_heads is 3 for a width of 32: .* multiple of 8, use [24]"),
            ({"mlp_ratio": 1.3}, r"\(mlp_ratio times 32\) is 41: .* 8, use 40"),
            ({"patch_size": 0}, "patch_size is 0: it must be at least 1"),
            ({"depth": -1}, "depth is -1: it must be at least 1"),
            ({"in_chans": 0}, "in_chans is 0: it must be at least 1"),
            ({"global_pool": "max"}, "global_pool is 'max': choose 'token', 'avg' or ''"),
            ({"class_token": False}, "global_pool is 'token', but there is no class token: choose 'avg'"),
            ({"kind": "cyclic"}, "kind is 'cyclic': choose octic, hybrid, invariant"),
            ({"kind": "hybrid", "octic_blocks": 3}, "octic_blocks is 3: the encoder has 2 blocks, use 2"),
            ({"kind": "invariant", "octic_blocks": -1}, "octic_blocks is -1: the encoder has 2 blocks, use 0"),
            ({"kind": "octic", "octic_blocks": 1}, "octic_blocks is 1, but all 2 blocks of kind 'octic' are octic"),
            ({"kind": "octic", "norm_before_invariants": True}, "is True for kind 'octic': only kind 'invariant'"),
            ({"kind": "hybrid", "keep_octic": True}, "keep_octic is True for kind 'hybrid': only kind 'octic' ends"),
            (
                {"kind": "octic", "keep_octic": True, "invariants": "none"},
                "for invariants 'none', which are the octic features: leave it",
            ),
            ({"kind": "invariant", "invariants": "none"}, "invariants is 'none' for kind 'invariant'"),
            ({"kind": "octic", "invariants": "cubic"}, "no invariants 'cubic': choose one of linear, power_spectrum"),
        ]
    if "twins" in case.name:
        return [
            ({"embed_dims": (8, 0)}, "the smallest of embed_dims is 0: it must be at least 1"),
            ({"embed_dims": ()}, "the number of stages .* is 0: it must be at least 1"),
            ({"num_heads": (1, 3)}, "num_heads is 3 for a width of 16: it must divide the width, use [24]"),
            ({"window_sizes": (1, 2)}, "the smallest of window_sizes is 1: it must be at least 2"),
            ({"kv_strides": (0, 1)}, "the smallest of kv_strides is 0: it must be at least 1"),
            ({"depths": (2, 2, 2)}, r"depths are \(2, 2, 2\): give one for each of the 2 stages"),
        ]
    if "shift" in case.name:
        return [
            ({"embed_dim": 0}, "embed_dim is 0: it must be at least 1"),
            ({"num_heads": 5}, "num_heads is 5 for a width of 48: it must divide the width, use [46]"),
            ({"patch_size": 0}, "patch_size is 0: it must be at least 1"),
            ({"depth": 0}, "depth is 0: it must be at least 1"),
            ({"global_pool": "token"}, "global_pool is 'token': choose 'avg' or ''"),
        ]
    if case.name.startswith("c8"):
        return [
            ({"group": "d4"}, "group is 'd4': choose 'so2', or one of 'c2' to 'c32', such as 'c8'"),
            ({"group": "c1"}, "group is 'c1'"),
            ({"group": "c64"}, "group is 'c64'"),
            ({"channels": (20,), "blocks": (1,)}, "channels has 20: with c8 they come in multiples of 8, such as 16"),
            ({"group": "so2", "channels": (64,)}, "channels has 64: with so2 .* of 7, such as 63"),
            ({"channels": ()}, r"channels are \(\)"),
            ({"blocks": (1, 0)}, r"blocks are \(1, 0\)"),
            ({"kernel_size": 4}, "kernel_size is 4: steerable kernels have an odd side, use 5"),
            ({"max_frequency": -1}, "max_frequency is -1: it must be at least 0"),
            ({"features": "max"}, "features is 'max'"),
            ({"stem": "none"}, "stem is 'none'"),
            ({"img_size": (64, 32)}, r"img_size is \(64, 32\)"),
            ({"in_chans": 0}, "in_fields is 0: it must be at least 1"),
        ]
    if "resnet" in case.name:
        step = len(case.elements)
        channels = (step,) * (len(case.arguments["channels"]) - 1)
        message = f"channels has {2 * step + 1}: with {case.group} they come in multiples of {step}, such as {2 * step}"
        return [
            ({"channels": (*channels, 2 * step + 1)}, message),
            ({"blocks": (0,)}, r"blocks are \(0,\): give a"),
            ({"group": "so2"}, "group is 'so2': choose 'c4' or 'd4'"),
            ({"features": "max"}, "features is 'max'"),
            ({"stem": "none"}, "stem is 'none'"),
        ]
    return [
        ({"group": "c8"}, "group is 'c8': choose 'c4' or 'd4'"),
        ({"features": "max"}, "features is 'max': choose 'invariant' or|features is 'max': choose 'regular', 'inv"),
        ({"in_chans": 1}, "in_chans is 1: this encoder takes images of 3 channels"),
        ({"num_classes": 10}, "num_classes is 10: this encoder has no classifier, pass num_classes=0"),
    ]


@pytest.mark.parametrize("label", [*ARCHITECTURES, "c8"])
def test_what_cannot_be_made_is_refused_with_the_nearest_legal_value(label: str) -> None:
    for arguments, message in _wrong_arguments(EVERY[label]):
        with pytest.raises(ValueError, match=message):
            EVERY[label].make(**arguments)


@pytest.mark.parametrize("label", ARCHITECTURES)
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
        if not case.name.startswith("hybrid"):
            for element in (1.0, (0, 1)):  # a turn by one degree, a shift by one pixel
                with pytest.raises(ValueError, match=r"element is .* has the elements 0\.\."):
                    subject.act_on_features(element, features)
    with pytest.raises(ValueError, match=r"columns|shape|last dimension"):
        subject.act_on_features(case.elements[1], features[..., :-1])
