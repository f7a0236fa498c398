"""Encoders with a symmetry are used as any model of timm: heads, intermediate features, weights."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.catalogue import has_fixed_input_size, timm_with_our_encoders
from ssl_equi.encoders.feature_maps import as_feature_map, feature_map_size
from ssl_equi.encoders.wrappers import wrap
from ssl_equi.export.encoder import EncoderCard, load_encoder, save_encoder
from ssl_equi.export.folder import module_tensors
from tests.encoders.symmetric_encoders import ARCHITECTURES, CASES, IMAGE, VARIANTS, Case, relative_error

EVERY = CASES | VARIANTS
WRAPPED = [label for label in ARCHITECTURES if label.startswith(("group_averaged", "canonicalized"))]
MATRIX_CAPSULES = {"img_size": IMAGE, "num_capsules": 3, "pose_side": 4, "votes": "matrix"}
CAPSULES = {
    "capsules": Case("capsule_network", "none", MATRIX_CAPSULES | {"backbone": "strided_cnn_pooled"}),
    "capsules, by name": Case("capsule_strided_cnn_pooled", "none", MATRIX_CAPSULES),
}
"""They have no symmetry, and take images of one size."""
WITH_MAPS = [label for label in (*ARCHITECTURES, "c8", "so2") if label not in WRAPPED]
"""Those with `forward_features`: the others only hand on the features of what they wrap."""


@torch.no_grad()
@pytest.mark.parametrize("label", [*ARCHITECTURES, "c8"])
def test_without_a_classifier_they_give_features(label: str) -> None:
    case = EVERY[label]
    for encoder in (case.make(), case.make(num_classes=0), create_encoder(case.name, IMAGE, **case.arguments).eval()):
        assert encoder.num_classes == 0 and isinstance(encoder.get_classifier(), nn.Identity)
        assert encoder(case.images()).shape == (2, encoder.num_features)
        assert encoder.head_hidden_size == encoder.num_features
    assert has_fixed_input_size(case.name) and encoder.pretrained_cfg["num_classes"] == 0


@torch.no_grad()
@pytest.mark.parametrize("label", WITH_MAPS)
def test_the_classifier_sees_what_the_head_gives(label: str) -> None:
    case = EVERY[label]
    encoder, images = case.make(num_classes=7), case.images()
    tokens = encoder.forward_features(images)
    features = encoder.forward_head(tokens, pre_logits=True)
    assert features.shape == (2, encoder.num_features)
    assert torch.equal(encoder(images), encoder.forward_head(tokens))
    assert torch.equal(encoder(images), encoder.get_classifier()(features))
    assert encoder.get_submodule(encoder.pretrained_cfg["classifier"]) is encoder.get_classifier()
    encoder.double().reset_classifier(3)
    assert encoder.num_classes == 3 and encoder(images.double()).shape == (2, 3)
    for pooling in encoder.poolings:
        encoder.reset_classifier(0, pooling)
        assert encoder.num_classes == 0 and encoder(images.double()).shape[-1] == encoder.num_features
    with pytest.raises(ValueError, match="global_pool is 'max'"):
        encoder.reset_classifier(0, "max")


@pytest.mark.parametrize("label", WRAPPED)
def test_wrapped_encoders_have_no_classifier(label: str) -> None:
    encoder = CASES[label].make()
    encoder.reset_classifier(0)
    with pytest.raises(ValueError, match="num_classes is 3: this encoder has no classifier, pass num_classes=0"):
        encoder.reset_classifier(3)
    with pytest.raises(ValueError, match="global_pool is 'max': the pooling of this encoder can't be changed"):
        encoder.reset_classifier(0, "max")


@torch.no_grad()
@pytest.mark.parametrize("label", WITH_MAPS)
def test_intermediate_features(label: str) -> None:
    case = EVERY[label]
    encoder, images = case.make(), case.images()
    final, maps = encoder.forward_intermediates(images)
    tokens = encoder.forward_features(images)
    assert torch.equal(final, tokens)
    last = encoder.feature_info[-1]
    side = IMAGE // last["reduction"]
    assert feature_map_size(encoder, IMAGE) == (last["num_chs"], side, side)
    (normed,) = encoder.forward_intermediates(images, 1, norm=True, intermediates_only=True)
    assert torch.equal(normed, as_feature_map(encoder, tokens))
    (rows,) = encoder.forward_intermediates(images, 1, norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(rows, normed.flatten(2).transpose(1, 2))
    assert len(maps) == len(encoder.feature_info)
    for number, info in enumerate(encoder.feature_info):
        side = IMAGE // info["reduction"]
        assert maps[number].shape == (2, info["num_chs"], side, side)
        assert encoder.get_submodule(info["module"]) is not None
        end, early = encoder.forward_intermediates(images, [number], stop_early=True)
        assert len(early) == 1 and torch.equal(early[0], maps[number]) and end.shape[0] == 2
    (last,) = encoder.forward_intermediates(images, 1, intermediates_only=True)
    assert torch.equal(last, maps[-1])
    backbone = case.make(features_only=True, out_indices=tuple(range(len(maps))))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(backbone(images), maps, strict=True))
    assert backbone.feature_info.channels() == [m.shape[1] for m in maps]
    assert backbone.feature_info.reduction() == [IMAGE // m.shape[2] for m in maps]
    with pytest.raises(ValueError, match="output_fmt is 'NHWC': choose 'NCHW'"):
        encoder.forward_intermediates(images, output_fmt="NHWC")
    count = len(maps)
    with pytest.raises(
        ValueError, match=rf"indices are \[{count}\]: the encoder has {count} \w+, use some of 0..{count - 1}"
    ):
        encoder.forward_intermediates(images, [count])


def test_wrapped_encoders_hand_on_what_timm_asks_for() -> None:
    timm = timm_with_our_encoders()
    for name in ("group_averaged", "canonicalized"):
        encoder = timm.create_model(name, backbone="octic_vit_tiny_patch16_224", img_size=32)
        encoder.set_grad_checkpointing()
        assert encoder.encoder.grad_checkpointing
        assert encoder.no_weight_decay() == {"encoder.pos_embed", "encoder.cls_token", "encoder.reg_token"}
        assert timm.create_model(name, img_size=32).no_weight_decay() == set()
        other = nn.Linear(8, 8)
        other.num_features = 8
        without = wrap(other, {"group_averaged": "averaging", "canonicalized": "canonicalization"}[name])
        without.set_grad_checkpointing(False)
        with pytest.raises(ValueError, match="Linear has no gradient checkpointing: choose another backbone"):
            without.set_grad_checkpointing()


@pytest.mark.parametrize("label", [*ARCHITECTURES, "c8"])
def test_names_that_weight_decay_spares_are_those_of_weights(label: str) -> None:
    encoder = EVERY[label].make(**({} if label in WRAPPED else {"num_classes": 3}))
    spared = encoder.no_weight_decay() - {"reg_token"}  # named even if there is none, as in timm
    assert spared <= {name for name, _ in encoder.named_parameters()}
    assert bool(spared) == ("vit" in label or "twins" in label)
    first = encoder.pretrained_cfg["first_conv"]
    if first is not None:
        assert encoder.get_submodule(first).weight.shape[1] == 3


def write_folder(folder: Path, case: Case, encoder: nn.Module) -> None:
    """As `save_encoder` writes it, but for encoders with a classifier, too."""
    safetensors.torch.save_file(module_tensors(encoder), folder / "model.safetensors")
    cfg = {"input_size": [3, IMAGE, IMAGE], "num_classes": encoder.num_classes, "fixed_input_size": True}
    cfg |= {key: encoder.pretrained_cfg[key] for key in ("first_conv", "classifier")}
    config = {"architecture": case.name, "num_classes": encoder.num_classes, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))


@torch.no_grad()
@pytest.mark.parametrize("label", [*ARCHITECTURES, "c8", "so2, invariant", *CAPSULES])
def test_exported_encoders_come_back_also_for_larger_images(label: str, tmp_path: Path) -> None:
    case = (EVERY | CAPSULES)[label]
    encoder = case.make(seed=3)
    parts = {name: (columns.start, columns.stop) for name, columns in encoder.parts.items()}
    card = EncoderCard(
        architecture=case.name, model_args=case.arguments, image_size=IMAGE, mean_rgb=(0.5,) * 3, std_rgb=(0.2,) * 3,
        parts=parts, objective="vicreg", trained_on="nothing", license="apache-2.0", tag="test",
    )  # fmt: skip
    save_encoder(encoder, tmp_path / "encoder", card)
    loaded = load_encoder(tmp_path / "encoder")
    assert torch.equal(loaded(case.images()), encoder(case.images()))
    assert loaded.num_features == encoder.num_features and loaded.parts == encoder.parts
    if label in CAPSULES:
        assert loaded.num_features == 3 + 3 * 16 and loaded.head.routing.votes == "matrix"
        return
    folder = f"local-dir:{tmp_path / 'encoder'}"
    larger = timm_with_our_encoders().create_model(folder, pretrained=True, img_size=2 * IMAGE).eval()
    images = torch.randn(2, 3, 2 * IMAGE, 2 * IMAGE)
    assert relative_error(larger(images), encoder(images)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("label", WITH_MAPS)
def test_weights_fit_other_image_sizes_classes_and_colours(label: str, tmp_path: Path) -> None:
    """On larger images, the loaded encoder is the function that the old one was on them."""
    case, old = EVERY[label], EVERY[label].make(seed=3, num_classes=5)
    write_folder(tmp_path, case, old)
    source = f"local-dir:{tmp_path}"
    create, arguments = timm_with_our_encoders().create_model, {**case.arguments}
    arguments["img_size"] = 2 * IMAGE
    larger = create(source, pretrained=True, **arguments).eval()
    images = torch.randn(2, 3, 2 * IMAGE, 2 * IMAGE)
    assert relative_error(larger(images), old(images)) < 1e-5
    without_classifier = create(source, pretrained=True, **(arguments | {"num_classes": 0})).eval()
    expected = old.forward_head(old.forward_features(images), pre_logits=True)
    assert relative_error(without_classifier(images), expected) < 1e-5
    grey = create(source, pretrained=True, **(arguments | {"in_chans": 1})).eval()
    image = images[:, :1]
    assert relative_error(grey(image), old(image.expand(-1, 3, -1, -1))) < 1e-4
