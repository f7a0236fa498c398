"""Errors of an encoder's layers under symmetries of its images; `symmetry_errors` says what they are."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.evaluation.symmetry.image_symmetries import Element, ImageSymmetries
from ssl_equi.evaluation.symmetry.layer_outputs import layer_outputs


@dataclass(frozen=True)
class LayerErrors:
    """Errors of a layer; None where they can't be measured.

    Attributes:
        compared_elements: elements that the spatial error is a mean over.
    """

    name: str
    spatial_error: float | None
    equivariance_error: float | None
    invariance_error: float | None
    compared_elements: int


def mean_squared_distance(values: Tensor) -> float:
    """S: the mean of |v_i - v_j|^2 over all pairs of different rows of [N, ...]."""
    spread = Spread()
    spread.add(values)
    return spread.value


class Spread:
    """The mean squared distance between different rows that come batch by batch: twice their total variance."""

    def __init__(self) -> None:
        self.count, self.squares, self.size = 0, 0.0, 0.0
        self.mean = torch.zeros(1)

    def add(self, values: Tensor) -> None:
        # Means and sums of squares of two batches are put together as by Chan et al. 1983, which doesn't cancel.
        rows = values.double().flatten(1)
        mean, count = rows.mean(dim=0), len(rows)
        total = self.count + count
        offset = mean - self.mean.to(mean)
        self.squares += float((rows - mean).square().sum() + offset.square().sum() * self.count * count / total)
        self.mean = self.mean.to(mean) + offset * count / total
        self.count = total
        epsilon = torch.finfo(values.dtype).eps
        self.size += float(rows.square().sum()) * epsilon**2

    @property
    def value(self) -> float:
        """0 also for rows that differ by rounding only."""
        return 2 * self.squares / (self.count - 1) if self.squares > 100 * self.size else 0.0


class LayerSums:
    """Squared distances of the outputs of all layers, added up over images and elements."""

    def __init__(self, encoder: nn.Module, symmetries: ImageSymmetries) -> None:
        self.encoder, self.symmetries = encoder, symmetries
        self.left_out: dict[str, str] = {}
        self.known: dict[str, Tensor] = {}
        self.spreads: dict[str, Spread] = {}  # of the whole output; of its mean over cells in `pooled_spreads`
        self.pooled_spreads: dict[str, Spread] = {}
        self.sums: dict[tuple[str, str], list[float]] = {}  # by layer and error: squared distances, and their number
        self.compared: dict[str, set[Element]] = {}

    def begin_batch(self, images: Tensor) -> None:
        """Remembers what the layers say of untransformed images."""
        outputs, left_out = layer_outputs(self.encoder, images)
        self.left_out |= left_out
        self.known = {
            name: self.symmetries.prepare(output) if output.ndim == 4 else output for name, output in outputs.items()
        }
        for name, output in self.known.items():
            self.spreads.setdefault(name, Spread()).add(output)
            self.pooled_spreads.setdefault(name, Spread()).add(_pooled(output))

    def add(self, element: Element, moved_images: Tensor) -> None:
        """Compares with what they say of the images that the element has moved."""
        outputs, _ = layer_outputs(self.encoder, moved_images)
        for name, known in self.known.items():
            found = outputs[name]
            if found.ndim == 4:
                found = self.symmetries.prepare(found)
                self._add_maps(name, element, found, known)
            self._add(name, "invariance", _pooled(found), _pooled(known))

    def _add_maps(self, name: str, element: Element, found: Tensor, known: Tensor) -> None:
        try:
            expected = self.symmetries.act(element, known)
        except ValueError as error:
            self.left_out.setdefault(name, f"measured after pooling only: {error}")
            return
        self.compared.setdefault(name, set()).add(element)
        self._add(name, "spatial", found, expected)
        if not isinstance(self.encoder, Symmetric):
            return
        try:
            acted = self.encoder.act_on_layer(name, element.value, known)
            if acted is not None:
                self._add(name, "equivariance", found, acted)
        except ValueError:
            # An action of c4 has no mirrorings: a mean over the turns alone would be taken for one over d4.
            self.sums[name, "equivariance"] = [float("nan"), 1]

    def _add(self, name: str, error: str, found: Tensor, expected: Tensor) -> None:
        total = self.sums.setdefault((name, error), [0.0, 0])
        total[0] += float((found.double() - expected.double()).square().sum())
        total[1] += len(found)

    def errors(self) -> tuple[LayerErrors, ...]:
        errors = []
        for name, spread in self.spreads.items():
            if spread.value == 0:
                self.left_out[name] = "its output is the same for all images"
                continue
            compared = len(self.compared.get(name, ()))
            if compared:
                # Some elements could be compared, so the layer is not left out.
                self.left_out.pop(name, None)
            measured = LayerErrors(
                name=name,
                spatial_error=self._error(name, "spatial", spread),
                equivariance_error=self._error(name, "equivariance", spread),
                invariance_error=self._error(name, "invariance", self.pooled_spreads[name]),
                compared_elements=compared,
            )
            errors.append(measured)
        return tuple(errors)

    def _error(self, name: str, error: str, spread: Spread) -> float | None:
        total, count = self.sums.get((name, error), (0.0, 0))
        if count == 0 or total != total or spread.value == 0:
            return None
        return float((total / count / spread.value) ** 0.5)


def _pooled(output: Tensor) -> Tensor:
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output
