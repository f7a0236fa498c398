"""Some views of some objects of a split, as a split of its own."""

import hashlib
from pathlib import Path

import numpy as np

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.stage_seconds import StageSeconds

__all__ = ["ViewSubset", "spread_views"]


class ViewSubset:
    """Equally many views of some objects; a `ViewCollection`.

    Args:
        stored: the whole split.
        object_indices: int64 [m].
        view_indices: int64 [m, k], those of each object.

    Raises:
        ValueError: the indices don't belong together, or nothing is chosen.
    """

    def __init__(self, stored: ViewCollection, object_indices: np.ndarray, view_indices: np.ndarray) -> None:
        if view_indices.ndim != 2 or object_indices.shape != view_indices.shape[:1] or view_indices.size == 0:
            raise ValueError(
                f"object_indices {object_indices.shape} and view_indices {view_indices.shape} do not belong together: "
                "give [m] and [m, k] with at least one view"
            )
        self._stored = stored
        self.object_indices, self.view_indices = object_indices, view_indices
        self.split = stored.split
        self.image_size, self.fills_image = stored.image_size, stored.fills_image
        self.num_objects, self.num_views = view_indices.shape
        self.class_names = stored.class_names
        self.labels = stored.labels[object_indices]
        self.latents = stored.latents[object_indices[:, None], view_indices]
        quats_xyzw = stored.quats_xyzw
        self.quats_xyzw = None if quats_xyzw is None else quats_xyzw[object_indices[:, None], view_indices]
        self.fingerprint = self._hashed(stored.fingerprint)
        self.content_key = self._hashed(stored.content_key)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._stored.folder

    @property
    def source(self) -> str:
        """What the images are, in words."""
        return self._stored.source

    @property
    def plan_sha256(self) -> str:
        """The same for the same choice from the same data set on another machine."""
        return self._hashed(self._stored.plan_sha256)

    @property
    def mean_rgb(self) -> tuple[float, float, float] | None:
        """Mean of the whole split's pixels in units of [0, 1]."""
        return self._stored.mean_rgb

    @property
    def std_rgb(self) -> tuple[float, float, float] | None:
        """Standard deviation of the whole split's pixels in units of [0, 1]."""
        return self._stored.std_rgb

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """As `ViewCollection.read_views`."""
        chosen_views = self.view_indices[object_indices[:, None], view_indices]
        return self._stored.read_views(self.object_indices[object_indices], chosen_views, out, content_sizes_out)

    def _hashed(self, stored_hash: str) -> str:
        hasher = hashlib.sha256(stored_hash.encode())
        for indices in (self.object_indices, self.view_indices):
            hasher.update(f" {indices.shape} ".encode() + indices.astype(np.int64).tobytes())
        return hasher.hexdigest()


def spread_views(num_objects: int, num_views: int, max_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which views stand for a split of `num_objects` with `num_views` each where all of them are too many.

    First views are left out, equally many of each object and down to two, then objects: a standard error comes from
    objects, and a pair takes two views.

    Args:
        max_images: at least 2.

    Returns:
        Objects int64 `[m]` in order, and distinct views int64 `[m, k]` of each; m * k is at most `max_images`.
    """
    views_per_object = min(num_views, max(2, max_images // num_objects))
    count = min(num_objects, max_images // views_per_object)
    generator = np.random.default_rng(seed)
    object_indices = np.sort(generator.permutation(num_objects)[:count])
    view_indices = generator.random((num_objects, num_views)).argsort(axis=1)[object_indices, :views_per_object]
    return object_indices, np.sort(view_indices, axis=1)
