"""The interface of a kind of latent, and the units and ranges that kinds share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ssl_equi.errors import DataError

AngleUnit = Literal["deg", "rad", "turn"]
FULL_TURN: dict[AngleUnit, float] = {"deg": 360.0, "rad": 2 * math.pi, "turn": 1.0}
Bounds = tuple[float, float]


class Sizes(NamedTuple):
    """Widths of a kind: C of stored columns, A of an action, K of a head's predictions."""

    columns: int
    action: int
    targets: int


class ActionSpace(ABC):
    """The actions between two values: what they are, and how they go together.

    Values are columns as stored, [..., C], of any dtype; actions are float32, [..., A]. For any values a, b, c

        relative(a, c) = compose(relative(a, b), relative(b, c))
        relative(b, a) = invert(relative(a, b))

    so paths can be integrated, and relative(a, a) changes nothing in a composition.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def sizes(self) -> Sizes: ...

    @abstractmethod
    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        """Actions [..., A] that take the first values [..., C] to the second."""

    @abstractmethod
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The actions [..., A] that do what `first` does, then what `second` does."""

    @abstractmethod
    def invert(self, action: Tensor) -> Tensor:
        """The actions back, [..., A]."""


class LatentKind(ActionSpace):
    """A kind of latent: actions, head targets, metric, and the range that values are drawn from.

    Targets are float32, [..., K], but for classes; values that a kind makes itself are float64, [..., C].
    """

    metric: ClassVar[str]
    """name of what `score` returns. `r2_uniform` is that of predictions and `encode`'s targets, and 0 of a constant."""

    @property
    def column_suffixes(self) -> tuple[str, ...]:
        """What tells the stored columns of one latent apart, C words; of a single column an empty one."""
        return ("",) if self.sizes.columns == 1 else ("_x", "_y", "_z")[: self.sizes.columns]

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """What a head is trained to predict for values [..., C]."""

    @abstractmethod
    def decode(self, predictions: Tensor) -> Tensor:
        """The values [..., C] that a head's predictions [..., K] stand for."""

    @abstractmethod
    def errors(self, answers: Tensor, values: Tensor) -> Tensor:
        """How far each answered value is from the true one, both [..., C]: [...] float64, by the kind's metric."""

    def score(self, answers: Tensor, values: Tensor) -> float:
        """The metric of answered values, as `decode` gives them, against true ones: the median error."""
        # Not torch.median, which is the lower of the two middle values.
        return float(np.median(self.errors(answers, values).cpu().numpy()))

    @abstractmethod
    def constant_score(self) -> float | None:
        """The best score without an image, on values as `sample` draws them; None where no closed form is known."""

    @abstractmethod
    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Values [..., C] made of numbers [..., C] that are independent and uniform in [0, 1)."""

    def sample(self, generator: np.random.Generator, count: int) -> Tensor:
        """Values [count, C] uniform in the kind's range, or over all values where it states none."""
        return self.from_uniform(torch.from_numpy(generator.random((count, self.sizes.columns))))


class Displacements(LatentKind):
    """Kinds whose values are vectors, whose actions are the differences of these, and whose errors are distances."""

    metric = "distance_median"

    def vectors(self, values: Tensor) -> Tensor:
        """Vectors [..., K] of values [..., C]; the same, unless a kind says otherwise."""
        return values.float()

    def from_vectors(self, vectors: Tensor) -> Tensor:
        """Values [..., C] float64 of vectors [..., K]."""
        return vectors.double()

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        return (self.vectors(second) - self.vectors(first)).float()

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second

    def invert(self, action: Tensor) -> Tensor:
        return -action

    def encode(self, values: Tensor) -> Tensor:
        return self.vectors(values).float()

    def decode(self, predictions: Tensor) -> Tensor:
        return self.from_vectors(predictions)

    def errors(self, answers: Tensor, values: Tensor) -> Tensor:
        """Euclidean distances in the unit of the columns."""
        return (answers.double() - values.double()).norm(dim=-1)


def spread(uniform: Tensor, ranges: Sequence[Bounds]) -> Tensor:
    """Numbers in [0, 1) spread over one range per column."""
    low, high = torch.tensor(ranges, dtype=uniform.dtype, device=uniform.device).unbind(-1)
    return low + (high - low) * uniform


def check_choice(what: str, value: Any, literal: Any) -> None:
    """Raises DataError unless the value is one of a Literal's."""
    if value not in get_args(literal):
        raise DataError(f"{what} is {value!r}: choose one of {', '.join(get_args(literal))}")


def checked_ranges(what: str, ranges: Any, counts: Sequence[int]) -> tuple[Bounds, ...]:
    """The ranges as floats; DataError unless there are as many as allowed, each of two finite rising numbers."""
    if not isinstance(ranges, list | tuple) or len(ranges) not in counts:
        raise DataError(f"{what} is {ranges!r}: give [low, high] {' or '.join(map(str, counts))} times")
    for bounds in ranges:
        # JSON may hold whole numbers that no float does; type() leaves out booleans, which are int to isinstance.
        is_pair = isinstance(bounds, list | tuple) and [type(bound) in (int, float) for bound in bounds] == [True, True]
        if not is_pair or not -1e300 < bounds[0] < bounds[1] < 1e300:
            raise DataError(f"{what} holds {bounds!r}: give two finite numbers, the lower first")
    return tuple((float(low), float(high)) for low, high in ranges)
