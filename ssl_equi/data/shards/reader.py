"""Reading a split of rendered objects: any view of any object, at the cost of decoding it."""

from pathlib import Path

import numpy as np

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.shards.files import open_shard_files
from ssl_equi.data.shards.format import decode_view, problem_of_bytes, view_suffix
from ssl_equi.data.shards.index import SplitIndex, read_index
from ssl_equi.data.shards.manifest import Manifest, read_manifest
from ssl_equi.data.stage_seconds import CLOCK
from ssl_equi.errors import DataError


class ShardDataset(ViewCollection):
    """The split `split` of the data set in `folder`, all images of one size; also `keys` (bytes [n]) and `manifest`.

    The arrays are views of memory-mapped files. It may be used from threads, be forked with, or be pickled to a
    spawned process.

    Raises DataError when the split is unfinished, incomplete, cut, changed or of another format version. The pixels
    are checked when they are read; `ssl_equi.data.shards.verify` checks every byte.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.manifest: Manifest = read_manifest(self.folder, split)
        self._files = open_shard_files(self.folder, self.manifest.shards)
        self._index: SplitIndex = read_index(self.folder, self.manifest)
        self.fingerprint = self.content_key = self.manifest.fingerprint
        self.source, self.plan_sha256 = self.manifest.source, self.manifest.plan_sha256
        self.num_objects, self.num_views = self.manifest.num_objects, self.manifest.num_views
        self.image_size, self.fills_image = self.manifest.image_size, True
        self.class_names = self.manifest.class_names
        self.mean_rgb, self.std_rgb = self.manifest.mean_rgb, self.manifest.std_rgb
        self.schema = self.manifest.schema
        self.labels, self.latents = self._index.labels, self._index.latents
        self.quats_xyzw, self.keys = self._index.quats_xyzw, self._index.keys

    def __reduce__(self) -> tuple[type["ShardDataset"], tuple[Path, str]]:
        return ShardDataset, (self.folder, self.split)

    def __len__(self) -> int:
        return self.num_objects

    def close(self) -> None:
        """Close this process's descriptors; reading again opens them again."""
        self._files.close()

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        for row, object_index in enumerate(object_indices.tolist()):
            for column, view_index in enumerate(view_indices[row].tolist()):
                data = self.read_encoded(object_index, view_index)
                self.decode_encoded(data, object_index, view_index, out[row, column])

    def read_encoded(self, object_index: int, view_index: int) -> bytes:
        """The file of one view, which matches its size and CRC-32C.

        Raises DataError naming shard, member and byte offset otherwise.
        """
        index = self._index
        size = int(index.sizes[object_index, view_index])
        offset = int(index.offsets[object_index, view_index])
        with CLOCK.during("reading"):
            data = self._files.read(int(index.shard_numbers[object_index]), offset, size)
            problem = problem_of_bytes(data, size, int(index.crc32c[object_index, view_index]))
        if problem:
            raise self._damaged(object_index, view_index, problem)
        return data

    def decode_encoded(self, data: bytes, object_index: int, view_index: int, out: np.ndarray) -> None:
        """Decode what `read_encoded` gave for a view into `out` uint8 [H, W, 3]; raises DataError as that does."""
        problem = decode_view(data, out, self.manifest.view_format)
        if problem:
            raise self._damaged(object_index, view_index, problem)

    def _damaged(self, object_index: int, view_index: int, problem: str) -> DataError:
        suffix = view_suffix(view_index, self.num_views, self.manifest.view_format)
        shard = self._files.paths[int(self._index.shard_numbers[object_index])]
        offset = int(self._index.offsets[object_index, view_index])
        return DataError(
            f"image '{self.keys[object_index].decode()}.{suffix}' at byte {offset} of shard {shard} {problem}: "
            f"rebuild this shard or download it again"
        )
