"""What timm expects of a model and our encoders share: classifier, intermediate features, registration."""

import copy
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ssl_equi.encoders.backbones import build
from ssl_equi.encoders.checks import refuse_classifier, square_side
from ssl_equi.encoders.recomputing import recomputed

MATCH_PREVIOUS = (99999,)
"""In a `group_matcher`: these layers belong to the group before."""


class TimmEncoder(nn.Module):
    """A classifier that can be replaced, and activations that can be computed again.

    Attributes:
        num_features: width of what the classifier sees, and of the output without one; `head_hidden_size` is the same.
        num_classes: outputs of the classifier; 0 if there is none.
        grad_checkpointing: activations are computed again in the backward pass rather than kept.
    """

    classifier_name: ClassVar[str | None] = None
    """The attribute that holds the classifier; None for encoders that never have one."""
    poolings: ClassVar[tuple[str, ...]] = ()
    """What `global_pool` can be."""
    spared_from_weight_decay: Collection[str] = ()
    """Names of parameters, beside all vectors."""
    num_features: int

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        if self.classifier_name is None:
            refuse_classifier(num_classes)
        self.num_classes, self.grad_checkpointing = num_classes, False

    @property
    def head_hidden_size(self) -> int:
        return self.num_features

    def new_classifier(self) -> nn.Module:
        """A linear layer from features to classes, or nn.Identity without classes."""
        return nn.Linear(self.num_features, self.num_classes) if self.num_classes > 0 else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or nn.Identity."""
        return nn.Identity() if self.classifier_name is None else self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of so many outputs (0: none), and another pooling if one is named."""
        if global_pool is not None:
            self.global_pool = self.checked_pooling(global_pool)
        if self.classifier_name is None:
            refuse_classifier(num_classes)
            return
        weight = next(self.parameters())
        self.num_classes = num_classes
        classifier = self.new_classifier().apply(self.initialise).to(weight.device, weight.dtype)
        setattr(self, self.classifier_name, classifier)

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Starts a layer of a new classifier; as PyTorch does unless this is overridden."""

    def checked_pooling(self, global_pool: str) -> str:
        """The pooling; raises ValueError if the encoder has none of this name."""
        if global_pool not in self.poolings:
            legal = " or ".join(", ".join(map(repr, self.poolings)).rsplit(", ", 1))
            cure = f"choose {legal}" if legal else "the pooling of this encoder can't be changed, pass None"
            raise ValueError(f"global_pool is {global_pool!r}: {cure}")
        return global_pool

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes each block's activations again in the backward pass rather than keep them."""
        self.grad_checkpointing = enable

    def run_block(self, block: nn.Module, inputs: Tensor) -> Tensor:
        """`block(inputs)`, with its activations kept or not."""
        return recomputed(block, inputs) if self.grad_checkpointing else block(inputs)

    def no_weight_decay(self) -> set[str]:
        """timm's question for the parameters that weight decay should spare."""
        return set(self.spared_from_weight_decay)


class LayeredEncoder(TimmEncoder, ABC):
    """An encoder of layers whose outputs can be asked for; subclasses make them in `run_layers`.

    Attributes:
        feature_info: what timm is told of the layers that `forward_intermediates` gives.
        num_prefix_tokens: tokens that belong to no place and come before the others.
    """

    classifier_name = "head"
    feature_info: list[dict[str, Any]]
    num_prefix_tokens = 0

    @abstractmethod
    def run_layers(
        self, images: Tensor, count: int | None = None, kept: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What the first `count` layers of `feature_info` (all by default) make of images, before the last norm.

        Also the outputs of layers `kept`, by number: maps [N, C, h, w], or tokens [N, T, C] of a square grid.
        """

    @abstractmethod
    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave to the output; with `pre_logits` to what the classifier would see."""

    def last_norm(self, output: Tensor) -> Tensor:
        """What `forward_features` gives, from what `run_layers` does."""
        return output

    def check_norm(self, taken: Sequence[int]) -> None:
        """Raises ValueError if the last norm doesn't fit one of these layers."""

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last maps [N, D, h, w] or tokens [N, T, D]."""
        return self.last_norm(self.run_layers(images)[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's interface to the outputs of chosen layers.

        Args:
            x: images [N, in_chans, H, W].
            indices: numbers of layers in `feature_info`; an int for the last so many, None for all.
            return_prefix_tokens: gives pairs of maps and prefix tokens; without effect if there are none.
            norm: puts the last norm after each.
            stop_early: leaves out the layers after the last chosen one.
            output_fmt: "NCHW" for maps [N, C, h, w], "NLC" for tokens [N, h w, C].
            intermediates_only: leaves out the last features.

        Returns:
            a list with one tensor (or pair) for each layer, or (what `forward_features` gives, list); with `stop_early`
            the former ends with the last chosen layer, too.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}: choose 'NCHW' or 'NLC'")
        count = len(self.feature_info)
        if indices is None or isinstance(indices, int):
            indices = range(-(count if indices is None else indices), 0)
        if not indices or not all(-count <= number < count for number in indices):
            raise ValueError(f"indices are {list(indices)}: the encoder has {count} layers, use some of 0..{count - 1}")
        taken = sorted({number % count for number in indices})
        if norm:
            self.check_norm(taken)
        last, kept = self.run_layers(x, max(taken) + 1 if stop_early else None, taken)
        intermediates: list[Any] = []
        for number in taken:
            maps, prefix = self.last_norm(kept[number]) if norm else kept[number], None
            if maps.ndim == 3:
                prefix, patches = maps.tensor_split((self.num_prefix_tokens,), dim=1)
                side = math.isqrt(patches.shape[1])
                maps = as_maps(patches, (side, side)).contiguous()
            maps = maps if output_fmt == "NCHW" else as_tokens(maps)
            intermediates.append((maps, prefix) if return_prefix_tokens and prefix is not None else maps)
        return intermediates if intermediates_only else (self.last_norm(last), intermediates)


def as_tokens(maps: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H W, C], row by row."""
    return maps.flatten(2).transpose(1, 2)


def as_maps(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """[N, H W, C] -> [N, C, H, W], with (H, W) as size."""
    return tokens.transpose(1, 2).unflatten(2, size)


def initialise_linear(module: nn.Module) -> None:
    """Starts linear layers as vision transformers do: weights of standard deviation .02, biases of 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------- registration


def untrained_cfg(side: int, first_conv: str | None = None, classifier: str | None = None, **more: Any) -> dict:
    """What timm is told of an architecture for images of this side, without trained weights."""
    return {
        "input_size": (3, side, side),
        "num_classes": 0,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
        **more,
    }


def register_encoders(
    module: str,
    make: Callable[..., nn.Module],
    names: Mapping[str, Mapping[str, Any]],
    cfg: Mapping[str, Any],
    **build_arguments: Any,
) -> None:
    """Registers a family of encoders with timm.

    Args:
        module: `__name__` of the one that calls this.
        make: the class, or a function that makes the encoder.
        names: arguments of `make` by name; users can give others.
        cfg: what timm is told of all of them, see `untrained_cfg`.
        build_arguments: of timm's `build_model_with_cfg`.
    """
    # timm finds a model's configuration by its function's module, in a table of this name.
    owner: Any = sys.modules[module]
    known = getattr(owner, "default_cfgs", {})
    owner.default_cfgs = known | generate_default_cfgs({f"{name}.untrained": dict(cfg) for name in names})
    for name, arguments in names.items():
        setattr(owner, name, _register(module, name, make, arguments, build_arguments))


def _register(
    module: str,
    name: str,
    make: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    build_arguments: Mapping[str, Any],
) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # A copy, because timm takes entries out of `feature_cfg`.
        options = copy.deepcopy(dict(build_arguments))
        return build_model_with_cfg(make, name, pretrained, **options, **(dict(arguments) | kwargs))

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = module
    return register_model(entrypoint)


def build_backbone(
    backbone: str,
    img_size: int | tuple[int, int],
    num_classes: int = 0,
    in_chans: int = 3,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, int]:
    """The backbone of this name, for an encoder around it that timm makes, and the side of its images."""
    refuse_classifier(num_classes)
    if in_chans != 3:
        raise ValueError(f"in_chans is {in_chans}: this encoder takes images of 3 channels")
    side = square_side(img_size)
    return build(backbone, side, **(arguments or {})), side
