"""What loader, probes and checkpoints ask of a split, whatever it is stored as: `ViewCollection`."""

from pathlib import Path

import numpy as np

from ssl_equi.data.stage_seconds import CLOCK
from ssl_equi.latents.schema import LatentSchema

Rgb = tuple[float, float, float]


class ViewCollection:
    """One split of a data set, held ready for reading any view of any object: n objects with V views each.

    Rendered shards have many views of an object and know each one's pose; ordinary images are objects with one view
    and no pose. A kind of split sets the attributes and has `_read`.
    """

    split: str
    folder: Path  # where the files lie
    source: str  # what the images are, in words
    fingerprint: str  # SHA-256 that identifies the files that were read
    # Names caches of this machine: the fingerprint, or where that is of names and sizes also of the files' times, so
    # that it changes when files are written anew under the same names.
    content_key: str
    plan_sha256: str  # the same for the same data set on another machine
    num_objects: int
    num_views: int  # V of each object; 1 for ordinary images
    image_size: tuple[int, int]  # height and width in pixels of the buffer that a view is decoded into
    fills_image: bool  # every picture is as large as `image_size`; otherwise `read_views` reports each one's size
    class_names: tuple[str, ...]  # a label is an index into them
    labels: np.ndarray  # int64 [n]; -1 for an object without a label
    schema: LatentSchema | None = None  # what is known about the views, column by column; None where nothing is
    latents: np.ndarray  # float32 [n, V, L]; L is 0 without a schema
    quats_xyzw: np.ndarray | None  # float32 [n, V, 4], each view's absolute rotation; None where the schema has none
    mean_rgb: Rgb | None  # of the pixels in units of [0, 1]; None if it is not known
    std_rgb: Rgb | None

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> None:
        """Decode the views `view_indices` [b, k] of the objects `object_indices` [b] into `out` uint8 [b, k, H, W, 3].

        A picture that is smaller than the buffer lies in its top-left corner, the rest is zero; its height and width
        are written into `content_sizes_out` int64 [b, k, 2] if that is given. Safe to call from several threads on
        separate buffers. `ssl_equi.data.stage_seconds.CLOCK` has how long the calling thread read and decoded.

        Raises:
            DataError: an image cannot be read; the message names it.
            ValueError, IndexError: wrong arguments.
        """
        expected = (*view_indices.shape, *self.image_size, 3)
        if view_indices.ndim != 2 or object_indices.shape != view_indices.shape[:1]:
            raise ValueError(
                f"object_indices {object_indices.shape} and view_indices {view_indices.shape} do not belong together: "
                f"give [b] and [b, k]"
            )
        if out.shape != expected or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(
                f"out is {out.dtype} {out.shape}: give a writable, contiguous uint8 array of shape {expected}"
            )
        if content_sizes_out is not None:
            if content_sizes_out.shape != (*view_indices.shape, 2) or content_sizes_out.dtype != np.int64:
                raise ValueError(
                    f"content_sizes_out is {content_sizes_out.dtype} {content_sizes_out.shape}: give an int64 array of "
                    f"shape {(*view_indices.shape, 2)}"
                )
            content_sizes_out[...] = self.image_size
        for name, indices, end in (
            ("object", object_indices, self.num_objects),
            ("view", view_indices, self.num_views),
        ):
            if indices.size and not (indices.min() >= 0 and indices.max() < end):
                raise IndexError(f"a {name} index lies outside 0..{end - 1}: draw indices from this split")
        with CLOCK.during("decoding"):
            self._read(object_indices, view_indices, out, content_sizes_out)

    def images(self, object_indices: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """The views `view_indices` [b, k] of the objects `object_indices` [b] as uint8 [b, k, H, W, 3]."""
        out = np.zeros((*view_indices.shape, *self.image_size, 3), dtype=np.uint8)
        self.read_views(object_indices, view_indices, out)
        return out

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        """`read_views` with arguments that fit; sizes are those of whole images, and reading is told to the clock."""
        raise NotImplementedError
