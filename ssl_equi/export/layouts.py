"""How the code of others names the tensors of its checkpoints, and how it normalises images.

Names of CARE, E-SSL, Barlow Twins, DINO and DINOv2 are those of their published code, MoCo's those of its checkpoints.
For SIE,
EquiCaps and CapsIE see `ssl_equi.export.sie_resnet_order`; what else their files hold is told by words in its name,
and a name without such a word is an error until the user leaves it out by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ssl_equi.data.torchvision_sets import MEAN_STD_RGB

EncoderLayout = Literal["sie", "equicaps", "capsie", "care", "essl", "barlow_twins", "dino", "moco", "timm"]
TrainingData = Literal["3diebench", "3diebench-t", "cifar10", "cifar100", "stl10", "imagenet", "imagenet100"]

Rgb = tuple[float, float, float]

RENDERED_MEAN_RGB, RENDERED_STD_RGB = (0.5016, 0.5037, 0.5060), (0.1030, 0.0999, 0.0969)


@dataclass(frozen=True)
class Normalisation:
    """How images are given to an encoder."""

    mean_rgb: Rgb
    std_rgb: Rgb
    image_size: int
    crop_share: float = 1.0
    """Side of the central crop that is evaluated, as a share of the shorter side of the image."""
    interpolation: str = "bicubic"


_RENDERED = Normalisation(RENDERED_MEAN_RGB, RENDERED_STD_RGB, 256)  # as SIE and EquiCaps, without cropping
_IMAGENET = Normalisation(IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, 224, 224 / 256, "bilinear")  # torchvision's evaluation
NORMALISATIONS: dict[TrainingData, Normalisation] = {
    "3diebench": _RENDERED,
    "3diebench-t": _RENDERED,
    "cifar10": Normalisation(*MEAN_STD_RGB["cifar10"], 32),
    "cifar100": Normalisation(*MEAN_STD_RGB["cifar100"], 32),
    "stl10": Normalisation(*MEAN_STD_RGB["stl10"], 32),  # CARE crops it to 32 pixels
    "imagenet": _IMAGENET,
    "imagenet100": _IMAGENET,
}


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


def _any_word(*words: str) -> str:
    """A first component of a name that has one of the words in it."""
    return rf"[^.]*({'|'.join(words)})"


_SIE_FAMILY_LEFT_OUT = {
    "projectors": _any_word("projector", "projection", "expander"),
    "predictors": _any_word("predictor", "hypernet"),
    "capsules": _any_word("caps", "rout"),
    "probes": _any_word("online", "eval", "classif", "regress", "probe", "linear", "head"),
}
_SIE_FAMILY = Layout((), _SIE_FAMILY_LEFT_OUT, data="3diebench")
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
