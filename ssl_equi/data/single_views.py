"""Ordinary images as a `ViewCollection`: every image is an object with one view and no pose."""

from pathlib import Path
from typing import Protocol

import numpy as np

from ssl_equi.data.collection import Rgb, ViewCollection
from ssl_equi.data.images import Fit

# Mean and standard deviation of ImageNet's training pixels in units of [0, 1], as everybody uses them.
IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)


class ImageStore(Protocol):
    """Where the images of a split come from; its attributes are those of a `ViewCollection`."""

    split: str
    folder: Path
    source: str
    fingerprint: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    mean_rgb: Rgb
    std_rgb: Rgb

    @property
    def content_key(self) -> str:
        """As of a `ViewCollection`."""

    def read_image(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [H, W, 3] of any size; thread-safe.

        Raises DataError naming the image if it cannot be read. The time for its bytes goes to the clock as reading.
        """


class SingleViews(ViewCollection):
    """The images of a store, each brought to one size by `fit`.

    Several of them can share a store: one that trains on canvases, one that is probed on central crops.
    """

    def __init__(self, store: ImageStore, fit: Fit) -> None:
        self.store, self.fit = store, fit
        self.split, self.folder, self.source = store.split, store.folder, store.source
        self.fingerprint = self.plan_sha256 = store.fingerprint
        self.content_key = store.content_key
        self.num_objects, self.num_views = len(store.labels), 1
        self.image_size, self.fills_image = fit.image_size, fit.fills_image
        self.class_names, self.labels = store.class_names, store.labels
        self.latents = np.zeros((self.num_objects, 1, 0), dtype=np.float32)
        self.quats_xyzw = None
        self.mean_rgb, self.std_rgb = store.mean_rgb, store.std_rgb

    def __reduce__(self) -> tuple[type["SingleViews"], tuple[ImageStore, Fit]]:
        return SingleViews, (self.store, self.fit)

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        for row, column in np.ndindex(view_indices.shape):
            content_size = self.fit.place(self.store.read_image(int(object_indices[row])), out[row, column])
            if sizes_out is not None:
                sizes_out[row, column] = content_size
