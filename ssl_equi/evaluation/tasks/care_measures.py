"""Does an augmentation turn the features of all images alike? Measures that need no labels, for any encoder.

W_f and gamma_f are those of CARE (Gupta et al., "Structuring Representation Geometry with Rotationally Equivariant
Contrastive Learning", ICLR 2024, arXiv:2306.13924); its corollary 1, that the rotations follow each other as the
augmentations do, is measured by the composition error.

Features [n, d] are one row an image; everything is computed in float64 on rows of length 1, so scale plays no part.
Each measure has a null value beside it, because small numbers come cheaply: a rotation of d dimensions brings few
points close to anything (.71 at n = d for unrelated points, 1.08 at n = 4 d, sqrt 2 in the limit), and points that all
lie close together are close after any augmentation.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROWS_PER_DIM = 4  # below, a rotation interpolates: even unrelated features seem to fit
FOLDS = 5  # of the cross-validated least squares: each is predicted by a map that was fitted to the four others
PAIR_STREAM, SHUFFLE_STREAM, FOLD_STREAM = 0, 1, 2  # pairs must not depend on who was exchanged with whom
UNUSED = 1e-12  # mean square below which a direction counts as unused: rounding of float32 features, squared
ROUNDING = 1e-5  # of the length 1: what is nearer than this differs by rounding of a float32 encoder


def unit_rows(features: Tensor) -> Tensor:
    """Rows of length 1 in float64; a row of zeros stays."""
    return F.normalize(features.double(), dim=1)


def is_collapsed(features: Tensor) -> bool:
    """True if all rows [n, d] have one direction, up to rounding: then every measure here is meaningless."""
    rows = unit_rows(features)
    return bool((rows - rows.mean(dim=0)).square().sum(dim=1).mean().sqrt() <= ROUNDING)


def has_enough_rows(num_rows: int, dim: int) -> bool:
    """True if a rotation of `dim` dimensions cannot simply interpolate `num_rows` points."""
    return num_rows >= MIN_ROWS_PER_DIM * dim


def nearest_rotation(source: Tensor, target: Tensor) -> Tensor:
    """R in SO(d), float64, that minimises the sum over rows [n, d] of |R source_i - target_i|^2 (Wahba's problem).

    With U S V^T the singular value decomposition of target^T source, R = U diag(1, ..., 1, det(U V^T)) V^T: the last
    factor keeps it from being a reflection. Where the features have no variance (dead columns, few dimensions in use)
    any R would do, and it is the identity.
    """
    num_rows, dim = source.shape
    unused = UNUSED * num_rows * torch.eye(dim, dtype=torch.float64, device=source.device)
    left, _, right_transposed = torch.linalg.svd(unit_rows(target).T @ unit_rows(source) + unused)
    sign = torch.det(left @ right_transposed).sign()
    return torch.cat([left[:, :-1], left[:, -1:] * sign], dim=1) @ right_transposed


def rotation_error(rotation: Tensor, source: Tensor, target: Tensor) -> float:
    """Root of the mean over rows of |rotation source_i - target_i|^2, in [0, 2]; rows [n, d] are taken at length 1."""
    difference = unit_rows(source) @ rotation.T - unit_rows(target)
    return float(difference.square().sum(dim=1).mean().sqrt())


def wahba(source: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """The rotation that best takes the features of images to those of the augmented images, and what is left over.

    The error is CARE's W_f divided by sqrt(n), in [0, 2]: 0 if the augmentation rotates the features, about sqrt 2 for
    unrelated ones. A fit to `shuffled` targets tells what no relation at all gives for the same features. Rows [n, d]
    must be 4 d or more.
    """
    rotation = nearest_rotation(source, target)
    return rotation, rotation_error(rotation, source, target)


def least_squares_error(source: Tensor, target: Tensor, seed: int = 0) -> float:
    """What the best linear map (any matrix, not only a rotation) from features to augmented features leaves over.

    Root of the mean over rows of |A source_i - target_i|^2, rows taken at length 1, where A is the least-squares map of
    the other four fifths of the rows: a matrix has d^2 free numbers, so that its error on the rows that it was fitted
    to would flatter it. 0 if the augmentation acts linearly, about 1 for unrelated features of mean 0. Rows [n, d] must
    be 4 d or more; the seed draws the five folds.
    """
    num_rows, dim = source.shape
    before, after = unit_rows(source), unit_rows(target)
    moments, products = before.T @ before, before.T @ after
    unused = UNUSED * num_rows * torch.eye(dim, dtype=torch.float64, device=before.device)
    total = 0.0
    for fold in _permutation(num_rows, seed, FOLD_STREAM).to(before.device).tensor_split(FOLDS):
        left, right = before[fold], after[fold]
        linear_map = torch.linalg.solve(moments - left.T @ left + unused, products - left.T @ right)
        total += float((left @ linear_map - right).square().sum())
    return (total / num_rows) ** 0.5


def composition_error(first: Tensor, second: Tensor, both: Tensor) -> float:
    """How far the rotation of a composed augmentation is from the composed rotations (corollary 1 of CARE).

    |both - second first|_F / sqrt(2 d), of the rotations [d, d] of an augmentation a, of another b, and of b after a: 0
    for a representation of the group, about 1 for unrelated rotations, and less for those if features leave dimensions
    unused, in which all rotations agree.
    """
    return float((both - second @ first).norm()) / (2 * both.shape[0]) ** 0.5


@dataclass(frozen=True)
class Gamma:
    """gamma_f of one augmentation.

    Attributes:
        value: None if no pair could be used, because the features are invariant to the augmentation.
        share_left_out: of the pairs, those whose denominator is 0.
    """

    value: float | None
    share_left_out: float


def gamma(features: Tensor, augmented: Tensor, seed: int = 0, partners: int = 4) -> Gamma:
    """CARE's gamma_f: change of the distances between images, relative to how far an augmentation moves them.

    The mean over pairs of images x, x' of
    (|f(ax') - f(ax)|^2 - |f(x') - f(x)|^2)^2 / (|f(ax') - f(x')|^2 + |f(ax) - f(x)|^2)^2,
    0 if the augmentation moves all features rigidly. Pairs that it does not move at all (both by less than rounding)
    have no value and are left out. The mean is heavy-tailed: pairs that hardly move weigh most, so encoders are to be
    compared beside the value of `shuffled_displacements`.

    Args:
        features, augmented: [n, d].
        seed: draws the pairs.
        partners: pairs of each image; no pair is taken twice while partners < n / 2.
    """
    order = _permutation(len(features), seed, PAIR_STREAM).to(features.device)
    before, after = unit_rows(features)[order], unit_rows(augmented)[order]
    change = _distances_to_partners(after, partners) - _distances_to_partners(before, partners)
    moved = (after - before).square().sum(dim=1)
    total_moved = moved + _of_partners(moved, partners)
    usable = total_moved > ROUNDING**2
    values = (change[usable] / total_moved[usable]).square()
    return Gamma(float(values.mean()) if len(values) else None, 1 - len(values) / usable.numel())


def shuffled(augmented: Tensor, seed: int = 0) -> Tensor:
    """The rows [n, d] given to other images, none to its own: the null for `nearest_rotation`."""
    return augmented[_other_rows(len(augmented), seed).to(augmented.device)]


def shuffled_displacements(features: Tensor, augmented: Tensor, seed: int = 0) -> Tensor:
    """Each image moved as another one was, and put back to length 1: the null for `gamma`.

    Images move as far as they do, but not where they belong. (Giving each image the augmented features of another
    one would instead move it much farther, and gamma_f falls with the distance.)
    """
    before = unit_rows(features)
    return unit_rows(before + shuffled(unit_rows(augmented) - before, seed))


def _of_partners(per_row: Tensor, partners: int) -> Tensor:
    """`[n]` -> `[partners, n]`: the value of the row that comes 1, 2, ... places earlier."""
    return torch.stack([per_row.roll(shift) for shift in range(1, partners + 1)])


def _distances_to_partners(rows: Tensor, partners: int) -> Tensor:
    """Squared distances `[partners, n]` of rows `[n, d]` to those that come 1, 2, ... places earlier."""
    products = [torch.linalg.vecdot(rows, rows.roll(shift, dims=0)) for shift in range(1, partners + 1)]
    squared_lengths = rows.square().sum(dim=1)
    return squared_lengths + _of_partners(squared_lengths, partners) - 2 * torch.stack(products)


def _permutation(count: int, seed: int, stream: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, stream]).permutation(count))


def _other_rows(count: int, seed: int) -> Tensor:
    """A permutation that leaves no row where it is (for 2 or more rows): one random cycle through all of them."""
    order = _permutation(count, seed, SHUFFLE_STREAM)
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others
