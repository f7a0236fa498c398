"""What all random transforms of batches have in common."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Generator, Tensor

from ssl_equi.runtime.device_copies import copy_together
from ssl_equi.views import exact
from ssl_equi.views.parameters import TransformParameters

Parameters = TypeVar("Parameters", bound=TransformParameters)


@dataclass(frozen=True)
class Operation:
    """What is done to some images, and what a device has to be told for it."""

    change: Callable[..., Tensor]
    """(images, *tensors) -> new images"""
    tensors: tuple[Tensor, ...] = ()
    """as they were drawn, on the CPU; `perform` copies those of several operations together"""

    def on_rows(self, rows: Tensor) -> "Operation":
        """The same for some images of a batch; the others come back equal to the bit."""

        def change_rows(images: Tensor, rows: Tensor, *tensors: Tensor) -> Tensor:
            return images.index_copy(0, rows, self.change(images[rows], *tensors))

        return Operation(change_rows, (rows, *self.tensors))

    def where(self, mask: Tensor) -> "Operation":
        """The same for all images, of which those keep what it gives where the mask, bool [N], is true."""

        def change_all(images: Tensor, mask: Tensor, *tensors: Tensor) -> Tensor:
            return torch.where(mask.view(-1, 1, 1, 1), self.change(images, *tensors), images)

        return Operation(change_all, (mask, *self.tensors))


def perform(operations: Sequence[Operation], images: Tensor) -> Tensor:
    """Changes images by one operation after another, for which the host never waits."""
    tensors = [tensor for operation in operations for tensor in operation.tensors]
    there = iter(copy_together(tensors, images.device))
    with torch.autocast(images.device.type, enabled=False):
        for operation in operations:
            images = operation.change(images, *itertools.islice(there, len(operation.tensors)))
    return images


class Transform(ABC, Generic[Parameters]):
    """Draws one row of parameters an image, and applies rows that it is given.

    Images are float32 [N, 3, H, W] in [0, 1]; type and shape are checked, the range is not (that would wait for the
    device). No gradients flow through. Rows that were not applied come back equal to the bit; on the CPU they are not
    computed, either. Parameters are best left on the CPU, where they are drawn: then the host never waits for a device.
    """

    name: ClassVar[str]
    """the transform's field in `ssl_equi.views.parameters.ViewParameters`"""

    @abstractmethod
    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> Parameters:
        """Parameters of `count` images, on the CPU.

        Args:
            count: N.
            source_sizes: int64 [N, 2], height and width of the images in pixels; only crops look at them.
            generator: on the CPU.
        """

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Transforms each image by its row of the parameters.

        Returns:
            the same tensor if nothing was applied, otherwise a new one.

        Raises:
            ValueError: the images are not float32 [N, 3, H, W], or the parameters have another number of rows.
        """
        check_images(images, len(parameters))
        return perform(self.operations(parameters, images.device), images)

    def operations(self, parameters: Parameters, device: torch.device) -> list[Operation]:
        """What `apply` does on a device with these parameters: one operation, or none where no row was applied."""
        rows = parameters.applied.nonzero().squeeze(1)
        if len(rows) == 0:
            return []
        if len(rows) == len(parameters):
            return [self._operation(parameters)]
        if device.type == "cpu":
            return [self._operation(parameters.rows(rows)).on_rows(rows)]
        # A GPU changes all images in less time than it takes to launch what picks some of them.
        return [self._operation(parameters).where(parameters.applied)]

    def changes_like(self, other: "Transform[Any]") -> bool:
        """Whether both make the same of equal parameters, whatever they draw."""
        return self.name == other.name and self._settings() == other._settings()

    def _settings(self) -> tuple[Any, ...]:
        """What the operation depends on besides the parameters."""
        return ()

    @abstractmethod
    def _operation(self, parameters: Parameters) -> Operation:
        """Transforms as many images as there are rows, each of them."""


@dataclass(frozen=True)
class OccasionalTransform(Transform[Parameters]):
    """A transform that is applied to a share of the images, each by a draw of its own."""

    probability: float = field(default=1.0, kw_only=True)
    """probability that an image is transformed"""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"{self.name} has probability {self.probability}: use a number from 0 to 1")

    def _draw_applied(self, count: int, generator: Generator) -> Tensor:
        """bool [count]"""
        return torch.rand(count, generator=generator, dtype=torch.float64) < self.probability


def check_images(images: Tensor, count: int, *, or_uint8: bool = False) -> None:
    """Raises ValueError unless the images are float32 (or uint8, where that is allowed) of shape [count, 3, H, W]."""
    exact.check_images(images)
    if images.dtype != torch.float32 and not (or_uint8 and images.dtype == torch.uint8):
        raise ValueError(f"images have dtype {images.dtype}: pass float32 in [0, 1], such as images.float() / 255")
    if len(images) != count:
        raise ValueError(f"{len(images)} images came with {count} rows of parameters: pass one row an image")


def check_interval(what: str, interval: tuple[float, float], lowest: float, highest: float, cure: str) -> None:
    """Raises ValueError unless lowest < low <= high <= highest."""
    low, high = interval
    if not lowest < low <= high <= highest:
        raise ValueError(f"{what} is {interval}: use {cure}")


def check_from_zero(what: str, value: float, highest: float = float("inf")) -> None:
    """Raises ValueError unless 0 <= value <= highest and the value is finite."""
    if not 0 <= value <= highest or value == float("inf"):
        limit = "upwards" if highest == float("inf") else f"to {highest:g}"
        raise ValueError(f"{what} is {value}: use a number from 0 {limit}")


def uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """float64 values in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def where_applied(applied: Tensor, values: Tensor, neutral: float) -> Tensor:
    """float32: the values, or the neutral one where the transform is not applied."""
    return torch.where(applied, values, neutral).float()
