"""Imported encoders compute, to the bit, what the networks compute that their checkpoints were made of."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssl_equi.data.images import normalise_images
from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, LayoutError
from ssl_equi.evaluation.encoders import open_encoder
from ssl_equi.export.importing import fitting_layouts
from ssl_equi.export.layouts import RESNETS, resnet_architecture
from ssl_equi.export.tensors import named_tensors
from tests.export.checkpoints import EXTRA, State, assert_same_features, below, changed, head, run
from tests.fakes import with_other_values

ROOT = Path(__file__).parent.parent.parent


# ---------------------------------------------------------------- ResNets of torchvision's layout


@pytest.fixture(scope="module")
def resnets() -> dict[bool, nn.Module]:
    """torchvision's ResNet-18 for large and for small images, as the authors of CARE and E-SSL use it."""
    modules = {}
    for small_images in (False, True):
        module = torchvision.models.resnet18()
        module.fc = nn.Identity()
        if small_images:
            module.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            module.maxpool = nn.Identity()
        modules[small_images] = with_other_values(module)
    return modules


def essl_cifar(encoder: nn.Module) -> dict:
    """With the encoder and the projector a second time, as parts of an nn.Sequential."""
    projector = head("net")
    state = below("encoder.", encoder.state_dict()) | below("projector.", projector)
    state |= below("net.0.", encoder.state_dict()) | below("net.1.", projector)
    return {"epoch": 800, "state_dict": state | head("predictor2")}


def essl_imagenet(encoder: nn.Module) -> dict:
    state = below("module.backbone.", encoder.state_dict()) | {"module.bn.running_mean": torch.zeros(3)}
    state |= head("module.rotation_projector") | head("module.online_head")
    return {"epoch": 1, "model": state, "optimizer": {"state": {}}}


def essl_final(encoder: nn.Module) -> dict:
    return {"backbone": encoder.state_dict(), "projector": head("net"), "head": {"weight": torch.zeros(10, 512)}}


def care_small(encoder: nn.Module) -> dict:
    kept = [child for name, child in encoder.named_children() if name not in ("maxpool", "fc")]
    state = below("module.f.", nn.Sequential(*kept).state_dict()) | head("module.g")
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    return {"epoch": 400, "state_dict": state, "optimizer": optimizer, "best_acc_1": 90.0}


def moco(encoder: nn.Module) -> dict:
    state = below("module.encoder_q.", encoder.state_dict()) | head("module.encoder_q.fc", 2048)
    state |= below("module.encoder_k.", encoder.state_dict()) | head("module.encoder_k.fc", 2048)
    state |= {"module.queue": torch.zeros(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}


def barlow_twins(encoder: nn.Module) -> dict:
    whole = below("module.backbone.", encoder.state_dict()) | head("module.projector")
    whole |= {"module.bn.running_mean": torch.zeros(8), "module.bn.running_var": torch.ones(8)}
    return {"epoch": 1000, "model": whole, "optimizer": {"state": {}}}


def children(encoder: nn.Module) -> dict:
    """With a max-pooling among those that are counted."""
    return below("backbone.", nn.Sequential(*list(encoder.children())[:-1]).state_dict())


def shortcuts(encoder: nn.Module) -> dict:
    state = {name.replace("downsample", "shortcut"): value for name, value in encoder.state_dict().items()}
    return state | {"linear.weight": torch.zeros(10, 512)}


MOMENTUM = {"on top of the encoder": 2, "momentum encoder": 122, "queue": 2}
RESNET_FILES = [
    (essl_cifar, "essl", {}, "cifar10", {"projector": 2, "predictors": 2, "repeated": 122}),
    (essl_imagenet, "essl", {}, "imagenet", {"predictors": 2, "probe": 2, "loss": 1}),
    (essl_final, "essl", {}, "imagenet", {"projector": 2, "probe": 1}),
    (care_small, "care", {"data": "stl10"}, "stl10", {"projector": 2}),
    (moco, "care", {}, "imagenet100", MOMENTUM),
    (moco, "moco", {}, "imagenet", MOMENTUM),
    (barlow_twins, "barlow_twins", {}, "imagenet", {"projector": 2, "loss": 3}),
    (lambda encoder: encoder.state_dict(), "barlow_twins", {}, "imagenet", {}),
    (children, "timm", {}, None, {}),
    (shortcuts, "timm", {"data": "cifar100"}, "cifar100", {"on top of the encoder": 1}),
]
MEAN_STD_RGB = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "stl10": ((0.4406, 0.4273, 0.3858), (0.2312, 0.2265, 0.2237)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize(("make", "layout", "options", "data", "left_out"), RESNET_FILES)
def test_files_of_resnets(
    make: Callable, layout: str, options: dict, data: str | None, left_out: dict[str, int], resnets: dict
) -> None:
    small_images = data in ("cifar10", "cifar100", "stl10")
    encoder = resnets[small_images]
    imported = run(make(encoder), layout, **options)
    assert_same_features(imported.module, encoder, 32 if small_images else 64)
    architecture, side = ("resnet18_small_images", 32) if small_images else ("resnet18", 224)
    assert (imported.architecture, imported.data, imported.image_size) == (architecture, data, side)
    assert {kind: len(names) for kind, names in imported.left_out.items()} == left_out
    card = imported.card(layout, "there", {"all": (0, 512)})
    assert (card.mean_rgb, card.std_rgb) == MEAN_STD_RGB.get(data, (card.mean_rgb, card.std_rgb))


def test_contradictions_in_files_of_resnets_are_named(resnets: dict) -> None:
    with pytest.raises(CheckpointError, match=r"which small images .* give --data cifar10, cifar100 or stl10"):
        run(care_small(resnets[True]), "care")
    content = essl_cifar(resnets[True])
    content["state_dict"]["net.0.bn1.bias"] = torch.zeros(64)
    with pytest.raises(LayoutError, match=r"'net.0.bn1.bias' has not the values of 'encoder.bn1.bias'"):
        run(content, "essl")
    with pytest.raises(LayoutError, match="layers are numbered 0, not 0, 1, 3, 4, 5, 6 as those of a ResNet"):
        run(below("backbone.", nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()), "timm")


def test_architectures_are_told_by_shapes() -> None:
    with torch.device("meta"):
        for name in RESNETS.values():
            assert resnet_architecture(create_encoder(name, 64).state_dict()) == name
        assert resnet_architecture(create_encoder("resnet26", 64).state_dict()) is None


def test_any_timm_model_by_its_name() -> None:
    encoder = with_other_values(timm.create_model("convnext_atto", num_classes=7, depths=(1, 1, 1, 1)))
    options = {"architecture": "convnext_atto", "architecture_arguments": {"depths": (1, 1, 1, 1)}}
    content = {"state_dict": encoder.state_dict(), "state_dict_ema": encoder.state_dict(), "arch": "convnext_atto"}
    imported = run(content, "timm", **options)
    assert set(imported.left_out) == {"on top of the encoder", "moving average of the weights"}
    encoder.reset_classifier(0)
    assert_same_features(imported.module, encoder)
    with pytest.raises(LayoutError, match=r"of no ResNet or vision transformer .* as --architecture"):
        run(content, "timm")
    half = {name: value.half() for name, value in encoder.state_dict().items()}
    assert next(run(half, "timm", **options).module.parameters()).dtype == torch.float32


def other_port(state: State) -> State:
    """The same tensors in the same order, under names that only number the layers."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    return {
        f"_net.unit{layers.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": value
        for name, value in state.items()
    }


def test_names_of_another_port_are_matched_by_order_and_shapes() -> None:
    encoder = with_other_values(timm.create_model("resnet10t", num_classes=7))
    content = other_port(encoder.state_dict())
    imported = run(content, "timm", architecture="resnet10t")
    assert "matched by order and shapes" in imported.notes[0]
    last = list(content)[-2:]
    assert imported.left_out == {"on top of the encoder": last}
    encoder.reset_classifier(0)
    assert_same_features(imported.module, encoder)
    counted = {name: value for name, value in content.items() if not name.endswith("num_batches_tracked")}
    assert_same_features(run(counted, "timm", architecture="resnet10t").module, encoder)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda state: state, {"keeps_order": False}),
        (lambda state: dict(sorted(state.items())), {}),
        (lambda state: {name.replace("running_mean", "mean"): value for name, value in state.items()}, {}),
        (lambda state: {name.replace(".", "."[len(name) % 2 :]): value for name, value in state.items()}, {}),
        (lambda state: dict(list(state.items())[:-3]), {}),
        (lambda state: state | {"more.weight": torch.zeros(3)}, {}),
    ],
    ids=["unordered", "sorted", "other parts", "other layers", "too few", "too many"],
)
def test_what_does_not_agree_in_order_is_not_matched(change: Callable[[State], State], options: dict) -> None:
    state = change(other_port(timm.create_model("resnet10t", num_classes=0).state_dict()))
    with pytest.raises(
        LayoutError, match=r"timm's resnet10t calls .* don't agree with that in order and shapes|whose "
    ):
        run(state, "timm", architecture="resnet10t", **options)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "resnet18", "vit_small_patch16_224.dino"]
)
def test_images_are_given_as_timm_says_of_the_architecture(name: str) -> None:
    encoder = timm.create_model(name, num_classes=0)
    said, card = timm.get_pretrained_cfg(name), None
    card = run(encoder.state_dict(), "timm", architecture=name).card("unknown", "there", {})
    assert (card.mean_rgb, card.std_rgb, card.image_size) == (said.mean, said.std, said.input_size[-1])
    assert (card.crop_share, card.interpolation) == (said.crop_pct, said.interpolation)


def test_an_imported_efficientnet_equals_timms_own(tool: ModuleType, tmp_path: Path) -> None:
    weights = ROOT.parent / "shared" / "data" / "efficientnet_lite0" / "model.safetensors"
    if not weights.exists():
        pytest.skip(f"no weights of EfficientNet-Lite0 at {weights}")
    tool.main(tool.Config(weights, tmp_path / "out", "timm", architecture="tf_efficientnet_lite0"))
    own = timm.create_model("tf_efficientnet_lite0", checkpoint_path=weights)
    own.reset_classifier(0)
    source = open_encoder(str(tmp_path / "out"))
    assert (source.mean_rgb, source.std_rgb, source.image_size) == ((0.5,) * 3, (0.5,) * 3, 224)
    pixels = torch.randint(256, (2, 224, 224, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = normalise_images(pixels, source.mean_rgb, source.std_rgb)
    timms_normalisation = timm.data.create_transform(**timm.data.resolve_model_data_config(own)).transforms[-1]
    torch.testing.assert_close(images, timms_normalisation(pixels.permute(0, 3, 1, 2) / 255))
    with torch.no_grad():
        assert torch.equal(source.module(images), own.eval()(images))


# ---------------------------------------------------------------- vision transformers


def dino(encoder: nn.Module, student: nn.Module) -> dict:
    return {
        "student": below("module.backbone.", student.state_dict()) | head("module.head.mlp"),
        "teacher": below("backbone.", encoder.state_dict()) | head("head.mlp"),
        "optimizer": {"state": {}},
        "dino_loss": {"center": torch.zeros(1, 8)},
        "epoch": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return with_other_values(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0))


def test_dino_gives_the_teacher_or_the_student(tiny: nn.Module) -> None:
    student = with_other_values(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0), seed=1)
    imported = run(dino(tiny, student), "dino")
    assert (imported.architecture, imported.image_size) == ("vit_tiny_patch16_224", 32)
    assert imported.model_args == {"img_size": 32, "patch_size": 16}
    assert set(imported.left_out) == {"the other network", "heads", "loss"}
    assert_same_features(imported.module, tiny, 32)
    assert_same_features(run(dino(tiny, student), "dino", encoder_prefix="student.backbone").module, student, 32)
    assert_same_features(run(tiny.state_dict(), "dino").module, tiny, 32)


def test_other_image_sizes_resample_the_positions_as_timm(tiny: nn.Module) -> None:
    larger = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=0).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(dict(tiny.state_dict()), larger)
    larger.load_state_dict(state)
    assert_same_features(run(tiny.state_dict(), "dino", image_size=48).module, larger, 48)


def dinov2_state(registers: int, chunks: bool = False) -> State:
    """Names and shapes of a published ViT-S/14 for images of 28 pixels, with random values."""
    width = 384
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 5, width), "mask_token": (1, width)}
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    for block in range(12):
        name = f"blocks.{block // 6}.{block}." if chunks else f"blocks.{block}."
        for layer, out_width, in_width in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            shapes |= {f"{name}{layer}.weight": (out_width, in_width), f"{name}{layer}.bias": (out_width,)}
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[name + part] = (width,)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    torch.manual_seed(registers)
    state = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            state[name] = torch.randn(shape) / 10 if name.endswith("bias") else torch.rand(shape) + 0.5
        else:  # outputs of a layer are of the size of its inputs
            state[name] = torch.randn(shape) / (1 if shape[0] == 1 else math.prod(shape[1:]) ** 0.5)
    return state


def dinov2_formula(state: State, images: Tensor) -> Tensor:
    """The class token of a pre-norm transformer with scaled residuals, written without timm; 6 heads."""

    def linear(name: str, tokens: Tensor) -> Tensor:
        return tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, (384,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    patches = patches.flatten(2).transpose(1, 2)
    count = len(images)
    tokens = torch.cat([state["cls_token"].expand(count, 1, 384), patches], dim=1) + state["pos_embed"]
    if "register_tokens" in state:
        tokens = torch.cat([tokens[:, :1], state["register_tokens"].expand(count, -1, 384), tokens[:, 1:]], dim=1)
    for block in range(12):
        name = f"blocks.{block}"
        query, key, value = (
            part.unflatten(2, (6, 64)).transpose(1, 2)
            for part in linear(f"{name}.attn.qkv", norm(f"{name}.norm1", tokens)).chunk(3, dim=2)
        )
        mixed = (query @ key.transpose(2, 3) / 8).softmax(3) @ value
        tokens = tokens + state[f"{name}.ls1.gamma"] * linear(f"{name}.attn.proj", mixed.transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", tokens)))
        tokens = tokens + state[f"{name}.ls2.gamma"] * linear(f"{name}.mlp.fc2", hidden)
    return norm("norm", tokens)[:, 0]


@pytest.mark.parametrize(
    ("registers", "architecture"), [(0, "vit_small_patch14_dinov2"), (3, "vit_small_patch14_reg4_dinov2")]
)
def test_dinov2_computes_its_formula(registers: int, architecture: str) -> None:
    state = dinov2_state(registers)
    imported = run(state, "dino")
    assert (imported.architecture, imported.image_size) == (architecture, 28)
    assert imported.left_out == {"on top of the encoder": ["mask_token"]}
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(imported.module(images), dinov2_formula(state, images), rtol=1e-3, atol=1e-4)
    chunked = {"teacher": below("backbone.", dinov2_state(registers, chunks=True)) | head("dino_head.mlp")}
    with torch.no_grad():
        assert torch.equal(run(chunked, "dino").module(images), imported.module(images))


def test_a_vision_transformer_with_other_heads_is_described_by_its_arguments() -> None:
    encoder = with_other_values(timm.create_model("vit_small_patch16_224", img_size=32, num_heads=12, num_classes=0))
    content = {"state_dict": below("module.base_encoder.", encoder.state_dict()) | head("module.base_encoder.head")}
    options = {"architecture": "vit_small_patch16_224", "architecture_arguments": {"num_heads": 12}}
    with pytest.raises(CheckpointError, match=r"don't tell how many heads it has: give .* as --architecture"):
        run(content, "moco")
    imported = run(content, "moco", **options)
    assert_same_features(imported.module, encoder, 32)
    assert imported.model_args == {"img_size": 32, "num_heads": 12}


# ---------------------------------------------------------------- strictness


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone.bn1.bias": None}, "lacks what timm's resnet18_small_images calls 'bn1.bias'"),
        ({"backbone.bn1.running_var": None, "backbone.bn1.bias": None}, "calls 'bn1.bias', 'bn1.running_var'"),
        ({"backbone.extra.scale": EXTRA}, "holds 'backbone.extra.scale', .* give the --layout or --archit"),
        ({"decoder.weight": EXTRA}, "holds 'decoder.weight', .* give --leave-out decoder"),
        ({"backbone.bn1.bias": EXTRA}, r"'backbone.bn1.bias' has shape \(3,\) and not \(64,\)"),
        ({"backbone.conv1.weight": None}, "are of no ResNet or vision transformer"),
        ({"backbone.layer4.1.conv1.weight": torch.full((512, 512, 3, 3), torch.nan)}, "values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: State, sentence: str, resnets: dict) -> None:
    state = below("backbone.", resnets[True].state_dict()) | head("projector")
    with pytest.raises(CheckpointError, match=sentence) as caught:
        run(changed(state, change), "essl")
    assert "\n" not in str(caught.value)


def test_the_layout_that_fits_is_found(resnets: dict) -> None:
    content = below("backbone.", resnets[False].state_dict()) | head("rotation_projector")
    assert fitting_layouts(named_tensors(content, "file"), "timm") == ["essl"]
    assert fitting_layouts({"weight": EXTRA}, "timm") == []


def test_bottlenecks_of_sie_are_not_told_from_others_and_no_other_layout_is_advised() -> None:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in torchvision.models.resnet50().state_dict().items()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert fitting_layouts(state, "sie") == []
    assert "timm" in fitting_layouts(state, "moco") and "sie" not in fitting_layouts(state, "moco")


def test_content_without_plain_tensors_is_refused() -> None:
    for content, sentence in (
        ({"epoch": 3}, "file holds no named tensors"),
        ({"model": {"a": {"b": EXTRA}}}, "holds tensors deep inside 'model'"),
        ({"model": {"a": EXTRA}, "state_dict": {"module.a": EXTRA}}, "holds two tensors named 'a'"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            named_tensors(content, "file")
