"""The pictures of a report: views, nearest neighbours and what a prediction retrieves as arrays, and inline JPEGs.

The arrays are stored beside the numbers in an evaluation's `arrays.npz`, so that a page can be made again from it.
"""

import base64
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.samples import evenly_spread
from ssl_equi.geometry.rotations import geodesic_distance

NUM_QUERIES = 6
NUM_NEIGHBOURS = 6
MAX_IMAGE_SIDE = 96


def view_sheet(test: ViewCollection, max_objects: int = 8, max_views: int = 12) -> np.ndarray:
    """The first views of objects spread over the split, uint8 `[rows, columns, H, W, 3]`, shrunk for a page.

    A row is an object; objects with one view stand side by side, as many as fill whole rows.
    """
    if test.num_views == 1:
        columns = min(max_views, test.num_objects)
        rows = min(max_objects, test.num_objects // columns)
        objects = evenly_spread(test.num_objects, rows * columns)
        images = test.images(objects, np.zeros((len(objects), 1), np.int64))
        return shrink(images.reshape(rows, columns, *test.image_size, 3))
    objects = evenly_spread(test.num_objects, max_objects)
    views = np.tile(np.arange(min(max_views, test.fewest_views)), (len(objects), 1))
    return shrink(test.images(objects, views))


def neighbour_arrays(
    cache: FeatureCache, parts: Mapping[str, slice], test: ViewCollection, class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Strips of a query and its nearest other objects, for the invariant and the equivariant part.

    Without such parts, for the first one. Needs two objects; without them there are no strips.

    Args:
        cache: features of every view of `test`.

    Returns:
        `neighbour_images/PART` uint8 `[Q, 1 + k, H, W, 3]`, the query first, and `neighbour_captions/PART` text
        `[Q, 1 + k]`: the query's class; then the angle to the query's pose, or the class without poses, with a tick
        for the same class.
    """
    k = min(NUM_NEIGHBOURS, test.num_objects - 1)
    if k < 1:
        return {}
    query_objects = torch.from_numpy(evenly_spread(test.num_objects, NUM_QUERIES))
    queries = torch.stack([query_objects, torch.zeros_like(query_objects)], dim=1)
    arrays = {}
    for part in [part for part in ("inv", "equi") if part in parts] or list(parts)[:1]:
        found = nearest_neighbours(cache.features[..., parts[part]], queries, k, cache.has_view)
        views = torch.cat([queries[:, None], found], dim=1)
        arrays[f"neighbour_images/{part}"] = _read_each(test, views)
        arrays[f"neighbour_captions/{part}"] = np.array(_captions(cache, queries, found, class_names))
    return arrays


def retrieval_strip_arrays(
    task: str, part: str, test: ViewCollection, source: Tensor, asked_for: Tensor, nearest: Tensor, ranks: Tensor
) -> dict[str, np.ndarray]:
    """Strips of retrieval by a predictor: the view it starts from, the one asked for, and those nearest to its answer.

    Args:
        source, asked_for: int64 `[Q, 2]`, object and view.
        nearest: int64 `[Q, k, 2]`, the views nearest to the prediction, nearest first.
        ranks: int64 `[Q]`, rank of the view asked for.

    Returns:
        `retrieval_images/TASK/PART` uint8 `[Q, 2 + k, H, W, 3]`, `retrieval_hits/TASK/PART` bool `[Q, k]`, which of
        the nearest is the one asked for, and `retrieval_strip_ranks/TASK/PART` int64 `[Q]`.
    """
    views = torch.cat([source[:, None], asked_for[:, None], nearest], dim=1)
    hits = (nearest == asked_for[:, None]).all(dim=-1)
    return {
        f"retrieval_images/{task}/{part}": _read_each(test, views),
        f"retrieval_hits/{task}/{part}": hits.cpu().numpy(),
        f"retrieval_strip_ranks/{task}/{part}": ranks.cpu().numpy(),
    }


def nearest_neighbours(features: Tensor, queries: Tensor, k: int, there: Tensor | None = None) -> Tensor:
    """The `k` nearest other objects of each query view by cosine, each by its nearest view.

    Args:
        features: `[n_objects, n_views, D]`.
        queries: int64 `[Q, 2]`, object and view.
        there: bool `[n_objects, n_views]`, where there are views; everywhere if it isn't given.

    Returns:
        int64 `[Q, k, 2]`, object and view, nearest first.
    """
    unit = torch.nn.functional.normalize(features, dim=-1)
    query_objects, query_views = queries.unbind(dim=1)
    similarity = torch.einsum("qd,ovd->qov", unit[query_objects, query_views], unit)
    if there is not None:
        similarity.masked_fill_(~there, -torch.inf)
    best_similarity, best_view = similarity.max(dim=2)
    best_similarity[torch.arange(len(queries)), query_objects] = -torch.inf
    objects = best_similarity.topk(k, dim=1).indices
    return torch.stack([objects, best_view.gather(1, objects)], dim=-1)


def image_data_uri(image: np.ndarray, quality: int = 88) -> str:
    """uint8 `[H, W, 3]` as a `data:` URI (JPEG)."""
    import simplejpeg

    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="444")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def shrink(images: np.ndarray, max_side: int = MAX_IMAGE_SIDE) -> np.ndarray:
    """uint8 `[..., H, W, 3]` averaged over whole blocks of pixels until its longer side is at most `max_side`."""
    height, width = images.shape[-3:-1]
    factor = -(-max(height, width) // max_side)
    if factor == 1:
        return images
    images = images[..., : height // factor * factor, : width // factor * factor, :]
    blocks = images.reshape(*images.shape[:-3], height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(-4, -2)).round().astype(np.uint8)


def tile(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """uint8 `[rows, columns, H, W, 3]` as one image with mid-grey gaps."""
    rows, columns, height, width, _ = images.shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 128, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = images[row, column]
    return sheet


def _captions(cache: FeatureCache, queries: Tensor, found: Tensor, class_names: Sequence[str]) -> list[list[str]]:
    objects, views = found.unbind(dim=-1)
    query_labels = cache.labels[queries[:, 0]]
    same_class = cache.labels[objects] == query_labels[:, None]
    if cache.quats_xyzw is None:
        notes = [[class_names[label] for label in row] for row in cache.labels[objects].tolist()]
    else:
        query_quats = cache.quats_xyzw[queries[:, 0], queries[:, 1]]
        angles_rad = geodesic_distance(query_quats[:, None], cache.quats_xyzw[objects, views])
        notes = [[f"{angle:.0f}°" for angle in row] for row in torch.rad2deg(angles_rad).tolist()]
    return [
        [class_names[int(label)], *(f"{'✓ ' if is_same else ''}{note}" for is_same, note in zip(same, row))]
        for label, same, row in zip(query_labels, same_class.tolist(), notes, strict=True)
    ]


def _read_each(test: ViewCollection, views: Tensor) -> np.ndarray:
    """Shrunk uint8 `[..., H, W, 3]` of objects and views int64 `[..., 2]`."""
    flat = views.reshape(-1, 2).cpu().numpy()
    images = shrink(test.images(flat[:, 0], flat[:, 1:])[:, 0])
    return images.reshape(*views.shape[:-1], *images.shape[1:])
