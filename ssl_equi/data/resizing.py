"""Views of rendered shards brought to another size than the stored one when they are read."""

import hashlib

import numpy as np

from ssl_equi.data.fit import CenterCrop
from ssl_equi.data.manifest import Manifest
from ssl_equi.data.shard import decode_view
from ssl_equi.errors import DataError


class Resizing:
    """How the views of a split become squares of `side` pixels; those that already are stay equal to the bit.

    Bilinear, with anti-aliasing where a view shrinks. The hashes of a split whose views are resized differ from those
    of the stored one and from those of every other size.

    Args:
        manifest: of the split.
        side: in pixels; that of the stored views when None.

    Raises:
        DataError: the stored views are not square and are to be resized.
    """

    def __init__(self, manifest: Manifest, side: int | None) -> None:
        height, width = self.stored_size = manifest.image_size
        self._view_format = manifest.view_format
        self.fit: CenterCrop | None = None
        self.image_size = self.stored_size
        self.source, self.fingerprint = manifest.source, manifest.fingerprint
        self.plan_sha256 = manifest.plan_sha256
        if side is None or self.stored_size == (side, side):
            return
        if height != width:
            raise DataError(
                f"the views of split {manifest.split!r} have {height} x {width} pixels and only squares can be resized "
                f"to --image-size {side}: pad or crop the images to squares before converting them"
            )
        self.fit = CenterCrop(side, side)
        self.image_size = self.fit.image_size
        self.source = f"{manifest.source}, resized to {side} pixels"
        self.fingerprint = _hashed(manifest.fingerprint, side)
        self.plan_sha256 = _hashed(manifest.plan_sha256, side)

    def decode(self, data: bytes, out: np.ndarray) -> str | None:
        """Decode a stored view into `out` uint8 [H, W, 3]; returns what is wrong with it, None if nothing is."""
        if self.fit is None:
            return decode_view(data, out, self._view_format)
        stored = np.empty((*self.stored_size, 3), dtype=np.uint8)
        problem = decode_view(data, stored, self._view_format)
        if problem is None:
            self.fit.place(stored, out)
        return problem


def _hashed(stored_hash: str, side: int) -> str:
    return hashlib.sha256(f"{stored_hash} resized to {side}".encode()).hexdigest()
