"""Named weights and the plain operations on them that the references are written with; nothing of the package is used.

A head is written as text, one word per module of the package's `nn.Sequential`, so that a word's place is also the
number in the names of its weights:

    linear   linear+bias   a matrix, with or without a vector that is added
    norm     norm-affine   batch norm with scale and shift, or without
    layer_norm  relu
    |                      nothing; it parts the layers for the eye
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

NORM_EPSILON = 1e-5  # of batch norm and layer norm, PyTorch's default
NORM_MOMENTUM = 0.1  # of batch norm's running statistics, PyTorch's default

Calls = Literal["all views at once", "view by view"]


@dataclass(frozen=True)
class Batch:
    """What an objective sees of B objects; what a method does not take is None.

    Attributes:
        views: [B, V, 3, H, W].
        actions: [B, A] from view 1 to view 2, or [B, V - 1, A] from each view to the next.
        labels: int64 [B], the classes.
        transformed_views: [B, K, 3, H, W], small views of E-SSL; elements: int64 [B, K], how each was transformed.
        shared_views: [B, 2, 3, H, W], further views of CARE, augmented alike in each chunk of images.
        progress: share of the training that is done, for what changes on a schedule.
    """

    views: Tensor
    actions: Tensor | None = None
    labels: Tensor | None = None
    transformed_views: Tensor | None = None
    elements: Tensor | None = None
    shared_views: Tensor | None = None
    progress: float = 0.0


@dataclass
class RunningStatistics:
    """What a batch norm remembers of the calls in train mode."""

    mean: Tensor
    variance: Tensor
    calls: int = 0


@dataclass
class Record:
    """Which weights were used, what the batch norms remember, and other buffers after the step."""

    used: set[str] = field(default_factory=set)
    statistics: dict[str, RunningStatistics] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    paused: bool = False


class MissingWeightError(KeyError):
    """The reference needs a weight that the package's objective does not have."""


class Network:
    """Weights by name, and operations that name the weights they use.

    Args:
        weights: leaf tensors by their names in the package, and buffers.
        prefix: of all names here.
        record: shared with the network that this one is a part of.
    """

    def __init__(self, weights: Mapping[str, Tensor], prefix: str = "", record: Record | None = None) -> None:
        self.weights, self.prefix = weights, prefix
        self.record = Record() if record is None else record

    def __getitem__(self, name: str) -> Tensor:
        name = self.prefix + name
        if name not in self.weights:
            raise MissingWeightError(name)
        self.record.used.add(name)
        return self.weights[name]

    def part(self, name: str) -> "Network":
        """The network whose names begin with `name` and a dot."""
        return Network(self.weights, f"{self.prefix}{name}.", self.record)

    def leave(self, name: str, value: Tensor) -> None:
        """Says what is in a buffer after the step."""
        self.record.buffers[self.prefix + name] = value.detach()

    def linear(self, name: str, inputs: Tensor, bias: bool) -> Tensor:
        """[N, D] times the matrix, plus the vector."""
        outputs = inputs @ self[f"{name}.weight"].T
        return outputs + self[f"{name}.bias"] if bias else outputs

    def batch_norm(self, name: str, inputs: Tensor, affine: bool = True) -> Tensor:
        """[N, D] or [N, D, h, w], standardised by mean and biased variance of all but the columns."""
        others = [dimension for dimension in range(inputs.ndim) if dimension != 1]
        mean = inputs.mean(others, keepdim=True)
        variance = (inputs - mean).square().mean(others, keepdim=True)
        self._remember(name, mean.detach().flatten(), variance.detach().flatten(), inputs.numel() // inputs.shape[1])
        outputs = (inputs - mean) / torch.sqrt(variance + NORM_EPSILON)
        if affine:
            shape = (1, -1, *[1] * (inputs.ndim - 2))
            outputs = outputs * self[f"{name}.weight"].view(shape) + self[f"{name}.bias"].view(shape)
        return outputs

    def _remember(self, name: str, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.record.paused:
            return
        memory = self.record.statistics.setdefault(
            self.prefix + name, RunningStatistics(torch.zeros_like(mean), torch.ones_like(variance))
        )
        memory.mean = (1 - NORM_MOMENTUM) * memory.mean + NORM_MOMENTUM * mean
        memory.variance = (1 - NORM_MOMENTUM) * memory.variance + NORM_MOMENTUM * variance * count / (count - 1)
        memory.calls += 1

    @contextmanager
    def remembered(self, remembered: bool) -> Iterator[None]:
        """Batch norms inside remember what they see, or keep their running statistics."""
        self.record.paused = not remembered
        yield
        self.record.paused = False

    def layer_norm(self, name: str, inputs: Tensor) -> Tensor:
        """[..., D], each row standardised."""
        centred = inputs - inputs.mean(-1, keepdim=True)
        outputs = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + NORM_EPSILON)
        return outputs * self[f"{name}.weight"] + self[f"{name}.bias"]

    def head(self, name: str, inputs: Tensor, layers: str) -> Tensor:
        """An MLP on [N, D], written as text, see this file's beginning."""
        modules: dict[str, Callable[[str, Tensor], Tensor]] = {
            "linear": lambda place, x: self.linear(place, x, bias=False),
            "linear+bias": lambda place, x: self.linear(place, x, bias=True),
            "norm": self.batch_norm,
            "norm-affine": lambda place, x: self.batch_norm(place, x, affine=False),
            "layer_norm": self.layer_norm,
            "relu": lambda place, x: x.clamp(min=0),
        }
        for number, word in enumerate(layers.replace("|", " ").split()):
            inputs = modules[word](f"{name}.{number}", inputs)
        return inputs

    def embedded_actions(self, name: str, actions: Tensor) -> Tensor:
        """[N, A] -> [N, E]: a linear map without bias, then a batch norm without scale and shift."""
        return self.batch_norm(f"{name}.norm", self.linear(f"{name}.projection", actions, bias=False), affine=False)

    def encoder(self, images: Tensor, name: str = "encoder") -> Tensor:
        """Features [N, 16] of images: the small encoder that stands in for each configuration's own."""
        return self.batch_norm(f"{name}.norm", self.linear(f"{name}.linear", images.flatten(1), bias=True))


def called(function: Callable[[Tensor], Tensor], inputs: Tensor, calls: Calls) -> Tensor:
    """`function` on [B, V, ...] -> [B, V, D]: batch norms see all views together, or each view by itself."""
    if calls == "all views at once":
        return function(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
    return torch.stack([function(inputs[:, view]) for view in range(inputs.shape[1])], dim=1)
