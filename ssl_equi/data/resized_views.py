"""A split whose images are brought to another size."""

import hashlib
from pathlib import Path

import numpy as np

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.errors import DataError
from ssl_equi.data.fit import CenterCrop
from ssl_equi.data.stage_seconds import StageSeconds

__all__ = ["ResizedViews"]


class ResizedViews:
    """Each view resized, bilinearly and with anti-aliasing where it shrinks, to a square; a `ViewCollection`.

    Args:
        stored: its pictures fill their squares.
        side: of the resized pictures in pixels.

    Raises:
        DataError: the pictures are not square, or don't fill their buffer.
    """

    def __init__(self, stored: ViewCollection, side: int) -> None:
        height, width = stored.image_size
        if height != width or not stored.fills_image:
            raise DataError(
                f"views of split {stored.split!r} lie in a buffer of {height} x {width} pixels: only views that fill a "
                "square can be resized, crop them first"
            )
        self._stored, self._fit = stored, CenterCrop(side, side)
        self.image_size, self.fills_image = (side, side), True
        self.split, self.num_objects, self.num_views = stored.split, stored.num_objects, stored.num_views
        self.class_names, self.labels = stored.class_names, stored.labels
        self.latents, self.quats_xyzw = stored.latents, stored.quats_xyzw
        self.mean_rgb, self.std_rgb = stored.mean_rgb, stored.std_rgb
        self.fingerprint = _hashed(stored.fingerprint, side)
        self.content_key = _hashed(stored.content_key, side)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._stored.folder

    @property
    def source(self) -> str:
        """What the images are, in words."""
        return f"{self._stored.source}, resized to {self.image_size[0]} pixels"

    @property
    def plan_sha256(self) -> str:
        """The same for the same data set and size on another machine."""
        return _hashed(self._stored.plan_sha256, self.image_size[0])

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """As `ViewCollection.read_views`."""
        stored = np.empty((*view_indices.shape, *self._stored.image_size, 3), dtype=np.uint8)
        stage_seconds = self._stored.read_views(object_indices, view_indices, stored)
        for image, place in zip(stored.reshape(-1, *stored.shape[2:]), out.reshape(-1, *out.shape[2:]), strict=True):
            self._fit.place(image, place)
        if content_sizes_out is not None:
            content_sizes_out[...] = self.image_size
        return stage_seconds


def _hashed(stored_hash: str, side: int) -> str:
    return hashlib.sha256(f"{stored_hash} resized to {side}".encode()).hexdigest()
