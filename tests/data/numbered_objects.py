"""A data set without files, for tests of loaders; it imports little, so that worker processes start fast."""

import os
from pathlib import Path

import numpy as np

from ssl_equi.data.collection import ViewCollection


class NumberedObjects(ViewCollection):
    """Views of 2 x 2 pixels whose first two channels are the numbers of object and view.

    Reading `misbehaving_object` ends the process with exit status 3 if `misbehaviour` is "exit"; else it raises an
    error that no reader should.
    """

    split, source, fingerprint, content_key, plan_sha256 = "train", "numbers", "1", "1", "1"
    folder = Path()
    class_names = ("object",)
    mean_rgb = std_rgb = None
    fills_image = True
    image_size = (2, 2)
    quats_xyzw = None
    num_views = 5

    def __init__(self, num_objects: int, misbehaving_object: int = -1, misbehaviour: str = "") -> None:
        self.num_objects, self._misbehaving, self._misbehaviour = num_objects, misbehaving_object, misbehaviour
        self.labels = np.zeros(num_objects, dtype=np.int64)
        self.latents = np.zeros((num_objects, self.num_views, 0), dtype=np.float32)

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        if self._misbehaving in object_indices:
            if self._misbehaviour == "exit":
                os._exit(3)
            raise ZeroDivisionError(self._misbehaviour)
        out[..., 0], out[..., 1] = object_indices[:, None, None, None], view_indices[:, :, None, None]
