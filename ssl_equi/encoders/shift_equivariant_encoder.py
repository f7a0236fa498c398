"""What vision transformers share whose features no circular shift of the image changes.

See `ssl_equi.encoders.shift_equivariant_vit`, which has the architectures.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ssl_equi.encoders.arguments import check_at_least, check_output_format, chosen_layers
from ssl_equi.encoders.polyphase import act_on_image, nearest_multiple
from ssl_equi.encoders.recomputing import recomputed
from ssl_equi.encoders.shift_equivariant_layers import PositionalConvolution, as_tokens

__all__ = ["Pooling", "ShiftEquivariantEncoder", "Tokens", "initialise_linear"]

Pooling = Literal["avg", ""]


class Tokens(NamedTuple):
    """What the layers of an encoder make of images."""

    maps: Tensor
    """[N, D, h, w], before the last norm."""
    origins: Tensor
    """int64 [N, 2], the pixel at which each map's first token begins."""
    kept: dict[int, Tensor]
    """Maps after chosen layers, by number."""


class ShiftEquivariantEncoder(nn.Module, ABC):
    """What both architectures share; subclasses make the tokens in `_tokens` and set `feature_info`.

    Args:
        in_chans: colour channels of the images.
        num_features: D, width of the tokens.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: "avg": the mean over tokens; "": none.
        token_stride: side of the square of pixels that a token stands for.
        side_step: what the sides of images must be multiples of.
        img_size: side, or (height, width), to be checked; the model takes all legal ones.

    Attributes:
        group: the name of the group.
        feature_info: what timm is told of the layers that `forward_intermediates` gives: every block of the vision
            transformer (the first one with its positional convolution), every stage of the Twins.
        parts: columns of the features by name; all of them are invariant.
    """

    group: ClassVar[str] = "circular_shifts"
    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        in_chans: int,
        num_features: int,
        num_classes: int,
        global_pool: Pooling,
        token_stride: int,
        side_step: int,
        img_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        check_at_least("in_chans", in_chans, 1)
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = num_features
        self.num_classes, self.global_pool = num_classes, _checked_pooling(global_pool)
        self.token_stride, self.side_step = token_stride, side_step
        self.grad_checkpointing = False
        self.parts = {"all": slice(0, num_features), "inv": slice(0, num_features)}
        self.norm = nn.LayerNorm(num_features, eps=1e-6)
        self.head = _classifier(num_features, num_classes)
        self._check_size(*((img_size, img_size) if isinstance(img_size, int) else img_size))

    def forward(self, images: Tensor) -> Tensor:
        """[N, in_chans, H, W] -> [N, num_classes], or [N, D] without a classifier.

        Raises:
            ValueError: the images have another shape, or sides that the grids don't fill.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The map of tokens after the last norm, [N, D, H / token_stride, W / token_stride]."""
        return self.forward_tokens(images)[0]

    def forward_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map of tokens, and the pixel [N, 2] at which the first token's square begins."""
        self._check_images(images)
        tokens = self._tokens(images)
        return self._normed(tokens.maps), tokens.origins

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
        """timm's interface to the maps after chosen layers, those in `feature_info`.

        Circular shifts of the images move each map circularly by whole places, and leave its mean as it is.

        Args:
            x: images [N, in_chans, H, W].
            indices: numbers of layers; an int for the last so many, None for all.
            return_prefix_tokens: these encoders have none, so it changes nothing.
            norm: puts the last norm after each; it fits layers of the last one's width only.
            stop_early: leaves out the layers after the last chosen one.
            output_fmt: "NCHW" for maps [N, C, h, w], "NLC" for tokens [N, h w, C].
            intermediates_only: leaves out the last map.

        Returns:
            a list with one tensor for each index, or (what `forward_features` gives, list); with `stop_early` the
            former ends with the last chosen layer, too.

        Raises:
            ValueError: another output format, no such layer, the norm for another width, or images that don't fit.
        """
        check_output_format(output_fmt, ("NCHW", "NLC"))
        taken = chosen_layers("layers", len(self.feature_info), indices)
        widths = [self.feature_info[number]["num_chs"] for number in taken]
        if norm and set(widths) != {self.num_features}:
            raise ValueError(
                f"norm=True for layers {taken} of widths {widths}: the last norm fits a width of {self.num_features}, "
                "choose other layers or norm=False"
            )
        self._check_images(x)
        tokens = self._tokens(x, max(taken) + 1 if stop_early else None, taken)
        maps = [self._normed(tokens.kept[number]) if norm else tokens.kept[number] for number in sorted(set(taken))]
        intermediates = [as_tokens(one) for one in maps] if output_fmt == "NLC" else maps
        return intermediates if intermediates_only else (self._normed(tokens.maps), intermediates)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave to the output; with `pre_logits` to what the classifier would see.

        Without pooling that is a row for each token, [N, T, D] or [N, T, num_classes].
        """
        features = tokens.mean(dim=(2, 3)) if self.global_pool == "avg" else as_tokens(tokens)
        return features if pre_logits else self.head(features)

    def act_on_features(self, shift: tuple[int, int], features: Tensor) -> Tensor:
        """The features of shifted images from those of the images: the same ones, [N, D].

        Args:
            shift: rows down and columns to the right, in pixels.
            features: pooled ones, without a classifier.

        Raises:
            ValueError: the shift is not of whole pixels; the features have another shape, or are those of tokens
                (`act_on_tokens` moves these).
        """
        _check_shift(shift)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"features have shape {tuple(features.shape)}: pooled ones of this encoder are [N, "
                f"{self.num_features}]; for maps of tokens use act_on_tokens"
            )
        return features

    def act_on_tokens(self, shift: tuple[int, int], tokens: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward_tokens` gives for shifted images, from what it gives for the images.

        With R = token_stride, the grid begins at (origins + shift) mod R, and tokens move circularly by
        floor((origins + shift) / R).

        Args:
            shift: rows down and columns to the right, in pixels.
            tokens: [N, D, h, w].
            origins: [N, 2].

        Raises:
            ValueError: the shift is not of whole pixels, or there is not one origin for each map.
        """
        _check_shift(shift)
        if tokens.ndim != 4 or origins.shape != (tokens.shape[0], 2):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)} and origins {tuple(origins.shape)}: "
                "pass [N, D, h, w] and [N, 2], as forward_tokens gives them"
            )
        begins = origins + torch.tensor(shift, device=origins.device)
        moves = begins.div(self.token_stride, rounding_mode="floor").tolist()
        moved = [act_on_image((rows, columns), own) for own, (rows, columns) in zip(tokens, moves)]
        return torch.stack(moved), begins % self.token_stride

    def reset_classifier(self, num_classes: int, global_pool: Pooling | None = None) -> None:
        """A new classifier of so many outputs (0: none), and another pooling if one is named."""
        if global_pool is not None:
            self.global_pool = _checked_pooling(global_pool)
        self.num_classes = num_classes
        self.head = _classifier(self.num_features, num_classes).to(self.norm.weight.device, self.norm.weight.dtype)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or nn.Identity."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes each block's activations again in the backward pass rather than keep them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare, beside all vectors: those that tell positions."""
        return {
            f"{name}.proj.weight" for name, module in self.named_modules() if isinstance(module, PositionalConvolution)
        }

    @abstractmethod
    def _tokens(self, images: Tensor, layers: int | None = None, kept: Collection[int] = ()) -> Tokens:
        """The maps after the first so many of the layers in `feature_info`, all of them by default."""

    def _run(self, block: nn.Module, state: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return recomputed(block, state)
        return block(state)

    def _normed(self, maps: Tensor) -> Tensor:
        return self.norm(maps.movedim(1, -1)).movedim(-1, 1)

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images have shape {tuple(images.shape)}: this encoder takes [N, {self.in_chans}, H, W]")
        self._check_size(*images.shape[2:])

    def _check_size(self, height: int, width: int) -> None:
        step = self.side_step
        if height < 1 or width < 1 or height % step or width % step:
            raise ValueError(
                f"images of {height} x {width} pixels don't fill the grids of this encoder, whose sides are multiples "
                f"of {step}: use {nearest_multiple(height, step)} x {nearest_multiple(width, step)}"
            )


def _check_shift(shift: tuple[int, int]) -> None:
    given = shift if isinstance(shift, (tuple, list)) else (shift,)
    if len(given) != 2 or not all(isinstance(pixels, int) for pixels in given):
        nearest = tuple(round(pixels) for pixels in (*given, 0, 0)[:2])
        raise ValueError(f"shift is {shift}: pass two whole numbers of pixels, such as {nearest}")


def _classifier(num_features: int, num_classes: int) -> nn.Module:
    classifier: nn.Module = nn.Linear(num_features, num_classes) if num_classes > 0 else nn.Identity()
    return classifier.apply(initialise_linear)


def initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _checked_pooling(global_pool: Pooling) -> Pooling:
    if global_pool not in get_args(Pooling):
        raise ValueError(f"global_pool is {global_pool!r}: choose 'avg' or '' (none)")
    return global_pool
