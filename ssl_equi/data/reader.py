"""Reading a split: any view of any object, at the cost of decoding it.

A dataset may be used from threads, be forked with, or be pickled to a spawned process.
"""

import time
from pathlib import Path

import numpy as np

from ssl_equi.data.collection import check_request
from ssl_equi.data.index import SplitIndex, read_index
from ssl_equi.data.manifest import Manifest, read_manifest
from ssl_equi.data.resizing import Resizing
from ssl_equi.data.shard import problem_of_bytes, view_suffix
from ssl_equi.data.shard_files import open_shard_files
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError


class ShardDataset:
    """The split `split` of the data set in `folder`; n objects with V views each, all images of one size.

    A `ssl_equi.data.collection.ViewCollection`, whose attributes are described there; also `keys` (bytes [n]),
    `manifest`, `stored_size` (height and width of the files) and `fit` (None if views keep that size). The arrays are
    views of memory-mapped files. With `image_size` views are resized to squares of so many pixels when they are read.

    Raises DataError when the split is unfinished, incomplete, cut, changed or of another format version. The pixels
    are checked when they are read; `ssl_equi.data.verify` checks every byte.
    """

    def __init__(self, folder: Path, split: str, image_size: int | None = None) -> None:
        self.folder = Path(folder)
        self.split = split
        self.manifest: Manifest = read_manifest(self.folder, split)
        self._files = open_shard_files(self.folder, self.manifest.shards)
        self._index: SplitIndex = read_index(self.folder, self.manifest)
        self._side = image_size
        self._resizing = Resizing(self.manifest, image_size)

        self.num_objects = self.manifest.num_objects
        self.num_views = self.manifest.num_views
        self.class_names = self.manifest.class_names
        self.stored_size, self.fit = self._resizing.stored_size, self._resizing.fit
        self.image_size = self._resizing.image_size
        self.fills_image = True
        self.mean_rgb = self.manifest.mean_rgb
        self.std_rgb = self.manifest.std_rgb
        self.source = self._resizing.source
        self.plan_sha256 = self._resizing.plan_sha256
        self.fingerprint = self.content_key = self._resizing.fingerprint
        self.labels = self._index.labels
        self.latents = self._index.latents
        self.quats_xyzw = self._index.quats_xyzw
        self.keys = self._index.keys

    def __reduce__(self) -> tuple[type["ShardDataset"], tuple[Path, str, int | None]]:
        return ShardDataset, (self.folder, self.split, self._side)

    def __len__(self) -> int:
        return self.num_objects

    def close(self) -> None:
        """Close this process's descriptors; reading again opens them again."""
        self._files.close()

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Decode the views `view_indices` [b, k] of the objects `object_indices` [b] into `out` uint8 [b, k, H, W, 3].

        Every image is as large as the buffer, which is what `content_sizes_out` int64 [b, k, 2] then holds. Returns
        how long reading and decoding took; see `ViewCollection.read_views`. Safe to call from several threads on
        separate buffers. Raises DataError naming shard, member and byte offset for a view that cannot be read, fails
        its CRC-32C or does not decode; ValueError or IndexError for wrong arguments.
        """
        check_request(
            object_indices, view_indices, out, content_sizes_out,
            num_objects=self.num_objects, num_views=self.num_views, image_size=self.image_size,
        )  # fmt: skip
        if content_sizes_out is not None:
            content_sizes_out[...] = self.image_size
        now, reading, began = time.perf_counter, 0.0, time.perf_counter()
        for row, object_index in enumerate(object_indices.tolist()):
            for column, view_index in enumerate(view_indices[row].tolist()):
                began_to_read = now()
                data = self.read_encoded(object_index, view_index)
                reading += now() - began_to_read
                self.decode_encoded(data, object_index, view_index, out[row, column])
        return StageSeconds(reading, now() - began - reading)

    def read_encoded(self, object_index: int, view_index: int) -> bytes:
        """The JPEG of one view, which matches its size and CRC-32C; DataError as `read_views`."""
        index = self._index
        size = int(index.sizes[object_index, view_index])
        offset = int(index.offsets[object_index, view_index])
        data = self._files.read(int(index.shard_numbers[object_index]), offset, size)
        problem = problem_of_bytes(data, size, int(index.crc32c[object_index, view_index]))
        if problem:
            self._raise_damaged(object_index, view_index, problem)
        return data

    def decode_encoded(self, data: bytes, object_index: int, view_index: int, out: np.ndarray) -> None:
        """Decode what `read_encoded` gave for a view into `out` uint8 [H, W, 3]; DataError as `read_views`."""
        problem = self._resizing.decode(data, out)
        if problem:
            self._raise_damaged(object_index, view_index, problem)

    def _raise_damaged(self, object_index: int, view_index: int, problem: str) -> None:
        member = (
            f"{self.keys[object_index].decode()}.{view_suffix(view_index, self.num_views, self.manifest.view_format)}"
        )
        shard = self._files.paths[int(self._index.shard_numbers[object_index])]
        offset = int(self._index.offsets[object_index, view_index])
        raise DataError(
            f"image '{member}' at byte {offset} of shard {shard} {problem}: rebuild this shard or download it again"
        )
