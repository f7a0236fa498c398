"""How the code of others names the tensors of its checkpoints, and how it normalises images.

Names of CARE, E-SSL, Barlow Twins, DINO and DINOv2 are those of their published code, MoCo's those of its checkpoints.
For SIE, EquiCaps and CapsIE see `ssl_equi.export.sie_files`; what else their files hold is told by words in its name,
and a name without such a word is an error until the user leaves it out by name.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ssl_equi.data.sets.torchvision_sets import MEAN_STD_RGB
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ssl_equi.errors import LayoutError
from ssl_equi.export.encoder import EncoderCard

EncoderLayout = Literal["sie", "equicaps", "capsie", "care", "essl", "barlow_twins", "dino", "moco", "timm"]
TrainingData = Literal["3diebench", "3diebench-t", "cifar10", "cifar100", "stl10", "imagenet", "imagenet100"]
ModelArguments = dict[str, int | float | bool | str]  # of `timm.create_model`, besides the name

Rgb = tuple[float, float, float]


# ---------------------------------------------------------------- normalisation of images


@dataclass(frozen=True)
class Normalisation:
    """How images are given to an encoder; the fields have the names and meanings of those of `EncoderCard`."""

    mean_rgb: Rgb
    std_rgb: Rgb
    image_size: int
    crop_share: float = 1.0
    interpolation: str = "bicubic"


# As SIE and EquiCaps, without cropping.
RENDERED = Normalisation((0.5016, 0.5037, 0.5060), (0.1030, 0.0999, 0.0969), 256)
_IMAGENET = Normalisation(IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, 224, 224 / 256, "bilinear")  # torchvision's evaluation
NORMALISATIONS: dict[TrainingData, Normalisation] = {
    "3diebench": RENDERED,
    "3diebench-t": RENDERED,
    "cifar10": Normalisation(*MEAN_STD_RGB["cifar10"], 32),
    "cifar100": Normalisation(*MEAN_STD_RGB["cifar100"], 32),
    "stl10": Normalisation(*MEAN_STD_RGB["stl10"], 32),  # CARE crops it to 32 pixels
    "imagenet": _IMAGENET,
    "imagenet100": _IMAGENET,
}


def imported_card(
    architecture: str,
    normalisation: Normalisation,
    objective: str,
    data: str | None,
    trained_on: str,
    parts: dict[str, tuple[int, int]],
    model_args: dict[str, object] | None = None,
) -> EncoderCard:
    """What users must know of weights that others trained: `data` by name, if that is known; see `EncoderCard`."""
    tag = "_".join([objective, *([data] if data else []), "imported"]).replace("-", "_")
    return EncoderCard(
        architecture, parts=parts, objective=objective, trained_on=trained_on, license="other", tag=tag,
        model_args=model_args or {}, **vars(normalisation),
    )  # fmt: skip


# ---------------------------------------------------------------- files of each method


@dataclass(frozen=True)
class Layout:
    """Where a file has the encoder, and what else may be in it."""

    encoder_prefixes: tuple[str, ...]
    """Beginnings of the encoder's names; the first one that occurs is taken. "" is the root."""
    left_out: Mapping[str, str]
    """What else may be there -> regular expression for the beginnings of its names."""
    on_top: str = r"(fc|head|classifier|linear)\."
    """The same for what stands on the encoder and has names inside it: a classifier or projector."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of names that repeat other tensors -> beginnings of their names."""
    transformer_heads_known: bool = False
    """Whether its vision transformers have heads of 64 numbers each, which shapes don't tell."""
    data: TrainingData | None = None
    """What it was trained on if the stem has large windows or is one of a vision transformer."""
    small_image_data: TrainingData | None = None
    """What it was trained on if the stem has windows of 3 x 3 pixels; None if the file doesn't tell."""
    timm_normalises: bool = False
    """Images are given to it as timm's own configuration of the architecture says, unless the user names its data."""


_SIE_FAMILY = Layout(
    (),
    # The first component of a name has one of the words in it.
    {
        "projectors": r"[^.]*(projector|projection|expander)",
        "predictors": r"[^.]*(predictor|hypernet)",
        "capsules": r"[^.]*(caps|rout)",
        "probes": r"[^.]*(online|eval|classif|regress|probe|linear|head)",
    },
    data="3diebench",
)
LAYOUTS: dict[EncoderLayout, Layout] = {
    "sie": _SIE_FAMILY,
    "equicaps": _SIE_FAMILY,
    "capsie": _SIE_FAMILY,
    "care": Layout(
        ("f.", "encoder_q."),
        {"projector": r"g\.", "momentum encoder": r"encoder_k\.", "queue": r"queue(_ptr)?$"},
        data="imagenet100",
    ),
    "essl": Layout(
        ("encoder.", "backbone."),
        {
            "projector": r"projector\.",
            "predictors": r"(predictor2?|rotation_projector)\.",
            "probe": r"(online_head|head)\.",
            "loss": r"bn\.",
        },
        aliases={"net.0.": "encoder.", "net.1.": "projector."},
        data="imagenet",
        small_image_data="cifar10",
    ),
    "barlow_twins": Layout(("backbone.", ""), {"projector": r"projector\.", "loss": r"bn\."}, data="imagenet"),
    "dino": Layout(
        ("teacher.backbone.", "student.backbone.", "teacher.encoder.", "backbone.", "teacher.", "student.", ""),
        {
            "heads": r"((teacher|student)\.)?(head|dino_head|ibot_head)\.",
            "the other network": r"(teacher|student)\.",
            "loss": r"(\w+_)?loss\.",
        },
        on_top=r"((fc|head)\.|mask_token$)",
        transformer_heads_known=True,
        data="imagenet",
    ),
    "moco": Layout(
        ("encoder_q.", "base_encoder."),
        {
            "momentum encoder": r"(encoder_k|momentum_encoder)\.",
            "queue": r"queue(_ptr)?$",
            "predictor": r"predictor\.",
        },
        data="imagenet",
    ),
    "timm": Layout(
        ("backbone.", "encoder.", "model.", ""),
        {
            "heads": r"(fc|head|classifier|linear|projector|projection_head|prediction_head|predictor)\.",
            "moving average of the weights": r"(state_dict_ema|model_ema|ema)\.",
        },
        timm_normalises=True,
    ),
}


# ---------------------------------------------------------------- ResNets of torchvision's layout

# (stem's kernel, convolutions of a block, blocks of each stage) -> timm's name, ours included
RESNETS: dict[tuple[int, int, tuple[int, ...]], str] = {
    (7, 2, (2, 2, 2, 2)): "resnet18",
    (7, 2, (3, 4, 6, 3)): "resnet34",
    (7, 3, (3, 4, 6, 3)): "resnet50",
    (7, 3, (3, 4, 23, 3)): "resnet101",
    (7, 3, (3, 8, 36, 3)): "resnet152",
    (3, 2, (2, 2, 2, 2)): "resnet18_small_images",
    (3, 3, (3, 4, 6, 3)): "resnet50_small_images",
}


def resnet_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names in the file -> names in timm's ResNet; LayoutError for numbered layers that are those of no ResNet.

    Numbers in place of names, as an nn.Sequential of a ResNet's children gives them, are counted: convolution and batch
    norm of the stem, then the stages, behind a max-pooling if the stem's windows are of 7 x 7 pixels. What ResNets for
    CIFAR call `shortcut` is timm's `downsample`.
    """
    named: dict[str, str] = {}
    positions = {name.split(".")[0] for name in tensors}
    if "0" in positions:
        stem = tensors.get("0.weight")
        pooled = stem is not None and stem.shape[2:] == (7, 7)
        expected = ["0", "1", *(str(number + pooled) for number in (3, 4, 5, 6))]
        if positions != set(expected):
            raise LayoutError(
                f"the encoder's layers are numbered {', '.join(sorted(positions))}, not {', '.join(expected)} as those "
                "of a ResNet",
                "give a checkpoint of a ResNet",
            )
        named = dict(zip(expected, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), strict=True))
    renamed = {}
    for name in tensors:
        first, dot, rest = name.partition(".")
        renamed[name] = f"{named.get(first, first)}{dot}{rest}".replace(".shortcut.", ".downsample.")
    return renamed


def resnet_architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """timm's name of the ResNet that has tensors of these names; None if none of the usual ones does."""
    stem = tensors.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        return None
    blocks = {found[0] for name in tensors if (found := re.match(r"layer[1-4]\.\d+\.", name))}
    depths = tuple(sum(block.startswith(f"layer{stage}.") for block in blocks) for stage in (1, 2, 3, 4))
    convolutions = 3 if "layer1.0.conv3.weight" in tensors else 2
    return RESNETS.get((stem.shape[-1], convolutions, depths))


# ---------------------------------------------------------------- vision transformers of DINO and DINOv2

POSITIONS, PATCHES, CLASS, REGISTERS = "pos_embed", "patch_embed.proj.weight", "cls_token", "register_tokens"
VIT_TENSORS = {POSITIONS, PATCHES, CLASS}  # a vision transformer with a class token has all of them
# (width, blocks) -> size in timm's names
VIT_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}
VIT_SIZES_WITH_LAYER_SCALE = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
VIT_RENAMED = (
    (re.compile(r"^blocks\.\d+\.(\d+\.)"), r"blocks.\1"),  # DINOv2's training code keeps blocks in chunks
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"^register_tokens$"), "reg_token"),
)


def vit_name(name: str) -> str:
    """A tensor's name in timm's vision transformer."""
    for pattern, replacement in VIT_RENAMED:
        name = pattern.sub(replacement, name)
    return name


def vit_image_size(tensors: Mapping[str, Tensor]) -> int | None:
    """Side in pixels of the images that positions are embedded for, or None; a class token and a square grid tell."""
    cells = tensors[POSITIONS].shape[1] - 1
    side = math.isqrt(cells)
    return side * tensors[PATCHES].shape[-1] if side * side == cells else None


def vit_architecture(tensors: Mapping[str, Tensor]) -> tuple[str, ModelArguments] | None:
    """timm's name and arguments of the vision transformer with tensors of these shapes and heads of 64, or None."""
    width, patch_size = tensors[PATCHES].shape[0], tensors[PATCHES].shape[-1]
    depth = len({vit_name(name).split(".")[1] for name in tensors if name.startswith("blocks.")})
    layer_scale = any(name.endswith("ls1.gamma") for name in tensors)
    size = (VIT_SIZES_WITH_LAYER_SCALE if layer_scale else VIT_SIZES).get((width, depth))
    if size is None:
        return None
    if not layer_scale:
        return f"vit_{size}_patch16_224", {"patch_size": patch_size}
    if REGISTERS not in tensors:
        return f"vit_{size}_patch14_dinov2", {"patch_size": patch_size}
    return f"vit_{size}_patch14_reg4_dinov2", {"patch_size": patch_size, "reg_tokens": tensors[REGISTERS].shape[1]}


def fit_tokens(tensors: Mapping[str, Tensor], image_size: int) -> dict[str, Tensor]:
    """The tensors with positions for images of this size, and in timm's split of class token and positions.

    For other image sizes than its own, the grid of positions is resampled as timm does it, bicubic and antialiased.
    Positions for anything else than a class token and a square grid stay as they are.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed  # timm takes seconds to import: --help needs none

    if vit_image_size(tensors) is None:
        return dict(tensors)
    fitted = dict(tensors)
    grid = image_size // tensors[PATCHES].shape[-1]
    fitted[POSITIONS] = resample_abs_pos_embed(tensors[POSITIONS], [grid, grid], num_prefix_tokens=1)
    if REGISTERS in tensors:
        # With registers, timm adds the class token's position to the class token itself: the same sum.
        fitted[CLASS] = tensors[CLASS] + tensors[POSITIONS][:, :1]
        fitted[POSITIONS] = fitted[POSITIONS][:, 1:]
    return fitted
