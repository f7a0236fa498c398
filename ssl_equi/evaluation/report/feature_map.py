"""A map of the features in two dimensions, and their singular values: what the report draws of a representation.

The map's input are principal components (Pearson, 1901), whose first two are the plain map; t-SNE (van der Maaten and
Hinton, JMLR 2008) starts from them where it is asked for.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.task_samples import feature_matrix
from ssl_equi.geometry.rotations import rotation_angle

MAX_POINTS = 1500
MAX_COMPONENTS = 50
CONSTANT = 1e-6  # smallest singular value that counts, as a share of the features' own size

MapMethod = Literal["pca", "tsne"]


def map_arrays(cache: FeatureCache, parts: Mapping[str, slice], seed: int = 0) -> dict[str, np.ndarray]:
    """What the report needs for maps and spectra, by the keys of an evaluation's `arrays.npz`.

    Args:
        cache: every view of the evaluated split.
        parts: columns of the features.
        seed: of the views that are drawn where there are more than `MAX_POINTS`; the same for all parts and encoders.

    Returns:
        `map_labels` int64 `[n]`, n <= 1500 views; `map_angle_deg` float32 `[n]`, the angle of each view's rotation
        from the upright pose, absent where poses are unknown; `map_features/PART` float32 `[n, k]`, the first
        k <= 50 principal components, no columns if the part is constant; `singular_values/PART` float32 `[<= D]`, the
        standard deviations of all views' features along their principal axes, descending.
    """
    drawn = _drawn_views(cache.num_images, seed)
    arrays = {"map_labels": cache.labels.cpu().numpy()[cache.has_view.nonzero()[:, 0].cpu().numpy()[drawn]]}
    if cache.quats_xyzw is not None:
        quats_xyzw = cache.rows(cache.quats_xyzw).cpu()[torch.from_numpy(drawn)].double()
        arrays["map_angle_deg"] = torch.rad2deg(rotation_angle(quats_xyzw)).float().numpy()
    for part, columns in parts.items():
        deviations, components = _principal_components(feature_matrix(cache.part(columns)).cpu())
        arrays[f"singular_values/{part}"] = deviations.float().numpy()
        arrays[f"map_features/{part}"] = components[torch.from_numpy(drawn)].float().numpy()
    return arrays


def map_coordinates(components: np.ndarray, method: MapMethod, seed: int = 0) -> np.ndarray:
    """Where the points stand on the map, `[n, 2]`, from principal components `[n, k]`; the same in every call.

    A second axis of zeros is added if there is one component only.

    Raises:
        ValueError: there is no component: the features are constant.
        UserError: t-SNE is asked for and scikit-learn is not installed.
    """
    if components.shape[1] == 0:
        raise ValueError("the features have no component, because they are constant: there is no map to draw")
    if method == "pca" or components.shape[1] == 1 or len(components) < 5:
        return np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
    manifold = _manifold()
    # Below a third of the points, as scikit-learn asks; the start is the map by principal components.
    perplexity = min(30.0, (len(components) - 1) / 3)
    return manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)


def _drawn_views(count: int, seed: int) -> np.ndarray:
    """At most `MAX_POINTS` rows out of `count`, ascending."""
    if count <= MAX_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:MAX_POINTS])


def _principal_components(features: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations `[D]` along the principal axes, and coordinates `[N, k]` on those that vary, float64.

    Of the two directions of an axis the one is taken whose largest entry is positive.
    """
    features = features.double()
    centred = features - features.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    deviations = variances.flip(0).clamp(min=0).sqrt()[: len(centred)]
    size = float(features.square().sum(dim=1).mean().sqrt())
    count = min(MAX_COMPONENTS, int((deviations > CONSTANT * size).sum()))
    chosen = axes.flip(1)[:, :count]
    largest = chosen.gather(0, chosen.abs().argmax(dim=0, keepdim=True))
    return deviations, centred @ (chosen * largest.sign())


def _manifold() -> ModuleType:
    try:
        from sklearn import manifold
    except ImportError as error:
        raise UserError("t-SNE needs scikit-learn: pip install 'ssl-equi[maps]', or take --map pca") from error
    return manifold
