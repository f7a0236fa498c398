"""Ordinary images as a `ViewCollection`: every image is an object with one view and no pose."""

import time
from pathlib import Path
from typing import Protocol

import numpy as np

from ssl_equi.data.collection import check_request
from ssl_equi.data.fit import Fit
from ssl_equi.data.stage_seconds import StageSeconds

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
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]

    @property
    def content_key(self) -> str:
        """As of a `ViewCollection`."""

    def load(self, index: int) -> tuple[np.ndarray, float]:
        """Image `index` as uint8 [H, W, 3] of any size, and the seconds that it took to read its bytes.

        Thread-safe. Raises DataError naming the image if it cannot be read.
        """


class SingleViews:
    """The images of a store, each brought to one size by `fit`; a `ViewCollection`.

    Several of them can share a store: one that trains on canvases, one that is probed on central crops.
    """

    def __init__(self, store: ImageStore, fit: Fit) -> None:
        self.store, self.fit = store, fit
        self.split = store.split
        self.folder = store.folder
        self.source = store.source
        self.fingerprint = store.fingerprint
        self.content_key = store.content_key
        self.plan_sha256 = store.fingerprint
        self.num_objects = len(store.labels)
        self.num_views = 1
        self.image_size = fit.image_size
        self.fills_image = fit.fills_image
        self.class_names = store.class_names
        self.labels = store.labels
        self.latents = np.zeros((self.num_objects, 1, 0), dtype=np.float32)
        self.quats_xyzw: np.ndarray | None = None
        self.mean_rgb: tuple[float, float, float] | None = store.mean_rgb
        self.std_rgb: tuple[float, float, float] | None = store.std_rgb

    def __reduce__(self) -> tuple[type["SingleViews"], tuple[ImageStore, Fit]]:
        return SingleViews, (self.store, self.fit)

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Decode images into `out` uint8 [b, k, H, W, 3]; see `ViewCollection.read_views`. All view indices are 0."""
        check_request(
            object_indices, view_indices, out, content_sizes_out,
            num_objects=self.num_objects, num_views=1, image_size=self.image_size,
        )  # fmt: skip
        began, reading = time.perf_counter(), 0.0
        for row, index in enumerate(object_indices.tolist()):
            for column in range(view_indices.shape[1]):
                image, seconds = self.store.load(index)
                reading += seconds
                content_size = self.fit.place(image, out[row, column])
                if content_sizes_out is not None:
                    content_sizes_out[row, column] = content_size
        return StageSeconds(reading, time.perf_counter() - began - reading)
