"""Every encoder of ours with a symmetry, by the name that timm knows it by, and what to check it with.

`CASES` holds small arguments, so that all of them can be made in every test, and the group that acts exactly.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.encoders.octic.vit import OcticVisionTransformer
from ssl_equi.encoders.shifts import polyphase
from ssl_equi.encoders.square import symmetries as square_symmetries

IMAGE = 32
SHIFTS = ((0, 0), (1, 0), (0, 1), (5, 7), (-3, 14), (8, 16), (31, 31), (100, -65))
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}
"""Relative to the largest value; bfloat16 by autocast, of weights in float32."""

Element = int | tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One encoder."""

    name: str
    """In timm's registry."""
    group: str
    """What acts on the features, or on the tokens of the octic blocks of hybrids."""
    arguments: dict[str, Any]
    """Of `timm.create_model`."""

    @property
    def elements(self) -> Sequence[Element]:
        """All of the group under which it is exact; of circular shifts some."""
        return {"d4": range(8), "c6": (0, 2), "circular_shifts": SHIFTS}.get(self.group, range(4))

    def make(self, seed: int = 0, **arguments: Any) -> nn.Module:
        """The encoder with random weights, without a classifier unless asked for, in eval mode."""
        torch.manual_seed(seed)
        return timm_with_our_encoders().create_model(self.name, **(self.arguments | arguments)).eval()

    def subject(self, seed: int = 0) -> nn.Module:
        """What the group acts on: the encoder, or, of a hybrid, the tokens where its octic blocks end."""
        encoder = self.make(seed)
        is_hybrid = isinstance(encoder, OcticVisionTransformer) and encoder.kind == "hybrid"
        return OcticTokens(encoder) if is_hybrid else encoder

    def act_on_image(self, element: Element, images: Tensor) -> Tensor:
        """Moves the images."""
        if isinstance(element, tuple):
            return polyphase.act_on_image(element, images)
        return square_symmetries.act_on_image(element, images)

    def images(self, count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random ones, without any symmetry."""
        return torch.randn(count, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1)).to(dtype)


class OcticTokens(nn.Module):
    """The first half of a hybrid: images to the tokens after its last octic block."""

    def __init__(self, encoder: OcticVisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.forward_octic(images)

    def act_on_features(self, g: int, tokens: Tensor) -> Tensor:
        return self.encoder.act_on_octic_tokens(g, tokens)


OCTIC = {"img_size": IMAGE, "patch_size": 8, "depth": 2}
OCTIC_WIDTHS = {
    size: {"embed_dim": width, "num_heads": heads}
    for size, width, heads in zip(("tiny", "small", "base", "large", "huge"), range(16, 81, 16), (2, 2, 3, 4, 5))
}
"""As different as the sizes are, but small."""
LARGE_IMAGE_RESNET = {"img_size": IMAGE, "blocks": (1, 1), "channels": (8, 16)}
SMALL_IMAGE_RESNET = {"img_size": IMAGE, "channels": (16, 16, 24, 32)}
SHIFT_VIT = {"img_size": IMAGE, "patch_size": 8, "depth": 2}
SHIFT_TWINS = {
    "img_size": IMAGE, "patch_size": 2, "embed_dims": (8, 16), "depths": (2, 2), "num_heads": (1, 2),
    "window_sizes": (4, 2), "kv_strides": (4, 2),
}  # fmt: skip
SHIFT_TWINS_OF_THREE_STAGES = SHIFT_TWINS | {
    "embed_dims": (8, 8, 16), "depths": (1, 2, 2), "num_heads": (1, 1, 2),
    "window_sizes": (4, 2, 2), "kv_strides": (4, 2, 1),
}  # fmt: skip
AVERAGED = {"img_size": IMAGE, "backbone": "strided_cnn_pooled"}


def _steerable(group: str, size: int, name: str = "c8_resnet10_small_images", **arguments: Any) -> Case:
    """Two stages of fields that have so many channels each."""
    sizes = {"img_size": IMAGE, "group": group, "blocks": (1, 2), "channels": (size, 2 * size)}
    return Case(name, group, sizes | arguments)


def _octic_cases() -> dict[str, Case]:
    names = {
        f"{prefix}octic_vit_{size}_patch16_224": OCTIC | widths
        for prefix, (size, widths) in itertools.product(("", "hybrid_", "invariant_"), OCTIC_WIDTHS.items())
    }
    return {name: Case(name, "d4", arguments) for name, arguments in names.items()}


def _shift_cases() -> dict[str, Case]:
    names = {f"shift_equivariant_vit_{size}_patch16_224": SHIFT_VIT | {"embed_dim": width}
             for size, width in (("tiny", 24), ("small", 48), ("base", 96))}  # fmt: skip
    names["shift_equivariant_twins_small"] = SHIFT_TWINS
    return {name: Case(name, "circular_shifts", arguments) for name, arguments in names.items()}


CASES: dict[str, Case] = {
    **_octic_cases(),
    "octic_vit, steerable": Case(
        "octic_vit_small_patch16_224", "d4", OCTIC | OCTIC_WIDTHS["small"] | {"invariants": "none", "reg_tokens": 1}
    ),
    **_shift_cases(),
    "c4_resnet18": Case("c4_resnet18", "c4", LARGE_IMAGE_RESNET | {"features": "invariant"}),
    "d4_resnet18": Case("d4_resnet18", "d4", LARGE_IMAGE_RESNET),
    "c4_resnet10_small_images": Case("c4_resnet10_small_images", "c4", SMALL_IMAGE_RESNET),
    "d4_resnet10_small_images": Case("d4_resnet10_small_images", "d4", SMALL_IMAGE_RESNET | {"features": "both"}),
    "group_averaged": Case("group_averaged", "c4", AVERAGED),
    "group_averaged, both, d4": Case("group_averaged", "d4", AVERAGED | {"group": "d4", "features": "both"}),
    "canonicalized": Case("canonicalized", "c4", AVERAGED),
    "canonicalized, with element, d4": Case(
        "canonicalized", "d4", AVERAGED | {"group": "d4", "features": "with_element"}
    ),
}
"""At least one of each name but those of steerable ResNets, which need escnn."""

VARIANTS: dict[str, Case] = {
    "octic_vit, both": Case("octic_vit_small_patch16_224", "d4", OCTIC | OCTIC_WIDTHS["small"] | {"keep_octic": True}),
    "shift vit, large patches, layer scale": Case(
        "shift_equivariant_vit_small_patch16_224",
        "circular_shifts",
        SHIFT_VIT | {"embed_dim": 48, "patch_size": 16, "init_values": 0.5},
    ),
    "shift twins, three stages": Case("shift_equivariant_twins_small", "circular_shifts", SHIFT_TWINS_OF_THREE_STAGES),
    "group_averaged, regular": Case("group_averaged", "c4", AVERAGED | {"features": "regular"}),
    "group_averaged, both": Case("group_averaged", "c4", AVERAGED | {"features": "both"}),
    "group_averaged, d4": Case("group_averaged", "d4", AVERAGED | {"group": "d4"}),
    "canonicalized, with element": Case("canonicalized", "c4", AVERAGED | {"features": "with_element"}),
    "canonicalized, d4": Case("canonicalized", "d4", AVERAGED | {"group": "d4"}),
    "c4_resnet18, regular": Case("c4_resnet18", "c4", LARGE_IMAGE_RESNET),
    "c4_resnet18, both": Case("c4_resnet18", "c4", LARGE_IMAGE_RESNET | {"features": "both"}),
    "d4_resnet18, invariant": Case("d4_resnet18", "d4", LARGE_IMAGE_RESNET | {"features": "invariant"}),
    "c6": _steerable("c6", 6),
    "c8": _steerable("c8", 8),
    "c8, both": _steerable("c8", 8, features="both"),
    "c8, invariant, large images": _steerable("c8", 8, "c8_resnet18", features="invariant"),
    "c8, small kernels": _steerable("c8", 8, kernel_size=3),
    "c12": _steerable("c12", 12, features="both"),
    "so2": _steerable("so2", 7, "so2_resnet10_small_images"),
    "so2, large images": _steerable("so2", 7, "so2_resnet18"),
    "so2, invariant": _steerable("so2", 7, "so2_resnet10_small_images", features="invariant"),
    "so2, large kernels": _steerable("so2", 7, "so2_resnet10_small_images", kernel_size=7, max_frequency=3),
}
"""Other arguments, which need not be tried on every device."""

ARCHITECTURES = (
    "octic_vit_small_patch16_224",
    "octic_vit, steerable",
    "hybrid_octic_vit_small_patch16_224",
    "invariant_octic_vit_small_patch16_224",
    "shift_equivariant_vit_small_patch16_224",
    "shift_equivariant_twins_small",
    "c4_resnet18",
    "d4_resnet10_small_images",
    "group_averaged, both, d4",
    "canonicalized, with element, d4",
)
"""One case of each, for checks that take long."""
MADE_OF_OTHERS = ("octic_vit_small_patch16_224", "hybrid_octic_vit_small_patch16_224")
ARCHITECTURES_TO_COMPILE = [
    pytest.param(label, marks=[pytest.mark.slow] if label in MADE_OF_OTHERS else []) for label in ARCHITECTURES
]
"""Those that are made of the layers of others are compiled in the slow tests only."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    assert found.shape == expected.shape
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def assert_refused(*refusals: tuple[str, Callable[[], object]], error: type[Exception] = ValueError) -> None:
    """Each call raises the error, with a message that the pattern before it matches."""
    for message, call in refusals:
        with pytest.raises(error, match=message):
            call()


@torch.no_grad()
def errors_by_element(case: Case, subject: Any, act: Any, images: Tensor) -> dict[Element, float]:
    """Of `subject` on moved images, against `act` on its output for the images.

    Args:
        subject: images to features; compiled or exported, perhaps.
        act: (element, features) to features.
        images: [N, 3, S, S].
    """
    moved = torch.cat([case.act_on_image(element, images) for element in case.elements])
    outputs = subject(moved).chunk(len(case.elements))
    return {element: relative_error(found, act(element, outputs[0])) for element, found in zip(case.elements, outputs)}


@torch.enable_grad()
def train_two_steps(encoder: nn.Module, images: Tensor) -> None:
    """By AdamW, towards random features; leaves the encoder in eval mode."""
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01)
    for _ in range(2):
        output = encoder(images)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
        optimizer.zero_grad()
        (output - target).square().mean().backward()
        optimizer.step()
    encoder.eval()


def trained(label: str) -> tuple[Case, nn.Module]:
    """A case, and its subject after two steps."""
    case = (CASES | VARIANTS)[label]
    subject = case.subject()
    train_two_steps(subject, case.images(4))
    return case, subject
