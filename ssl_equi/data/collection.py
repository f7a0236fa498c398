"""What the loader, the probes and the checkpoints ask of a set of images, whatever it is stored as.

A collection holds n objects with V views each. Rendered shards have many views of an object and know each one's pose;
ordinary images are objects with one view and no pose.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from ssl_equi.data.stage_seconds import StageSeconds


class DecodedViews(Protocol):
    """What a loader makes batches from: pixels on request, and what is known about each object and view."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the buffer that a view is decoded into."""

    @property
    def fills_image(self) -> bool:
        """True if every picture is as large as `image_size`; otherwise `read_views` reports each one's size."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]; -1 for an object without a label."""

    @property
    def latents(self) -> np.ndarray:
        """float32 [n, V, L]; L is 0 where nothing is known about the views."""

    @property
    def quats_xyzw(self) -> np.ndarray | None:
        """float32 [n, V, 4], each view's absolute rotation; None where poses are unknown."""

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Decode the views `view_indices` [b, k] of the objects `object_indices` [b] into `out` uint8 [b, k, H, W, 3].

        A picture that is smaller than the buffer lies in its top-left corner, the rest is zero; its height and width
        are written into `content_sizes_out` int64 [b, k, 2] if that is given. Returns how long the calling thread took
        for reading and for decoding. Safe to call from several threads on separate buffers. Raises DataError naming
        the image that cannot be read, ValueError or IndexError for wrong arguments.
        """


class ViewCollection(DecodedViews, Protocol):
    """One split of a data set, held ready for reading any view of any object."""

    @property
    def split(self) -> str:
        """Name of the split."""

    @property
    def folder(self) -> Path:
        """Where the files lie."""

    @property
    def source(self) -> str:
        """What the images are, in words."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the files that were read."""

    @property
    def content_key(self) -> str:
        """Names caches of this machine: the fingerprint, or where that is of names and sizes also of the files' times.

        It changes when files are written anew, under the same names too.
        """

    @property
    def plan_sha256(self) -> str:
        """SHA-256 that is the same for the same data set on another machine."""

    @property
    def num_objects(self) -> int:
        """Number of objects n."""

    @property
    def num_views(self) -> int:
        """Views V of each object; 1 for ordinary images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """A label is an index into them."""

    @property
    def mean_rgb(self) -> tuple[float, float, float] | None:
        """Mean of the pixels in units of [0, 1]; None if it is not known."""

    @property
    def std_rgb(self) -> tuple[float, float, float] | None:
        """Standard deviation of the pixels in units of [0, 1]; None if it is not known."""


def check_request(
    object_indices: np.ndarray,
    view_indices: np.ndarray,
    out: np.ndarray,
    content_sizes_out: np.ndarray | None,
    *,
    num_objects: int,
    num_views: int,
    image_size: tuple[int, int],
) -> None:
    """Raise ValueError or IndexError unless the arguments of `read_views` fit each other and the collection."""
    expected = (*view_indices.shape, *image_size, 3)
    if view_indices.ndim != 2 or object_indices.shape != view_indices.shape[:1]:
        raise ValueError(
            f"object_indices {object_indices.shape} and view_indices {view_indices.shape} do not belong together: "
            f"give [b] and [b, k]"
        )
    if out.shape != expected or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out is {out.dtype} {out.shape}: give a writable, contiguous uint8 array of shape {expected}")
    if content_sizes_out is not None and (
        content_sizes_out.shape != (*view_indices.shape, 2) or content_sizes_out.dtype != np.int64
    ):
        raise ValueError(
            f"content_sizes_out is {content_sizes_out.dtype} {content_sizes_out.shape}: give an int64 array of shape "
            f"{(*view_indices.shape, 2)}"
        )
    for name, indices, end in (("object", object_indices, num_objects), ("view", view_indices, num_views)):
        if indices.size and not (indices.min() >= 0 and indices.max() < end):
            raise IndexError(f"a {name} index lies outside 0..{end - 1}: draw indices from this split")
