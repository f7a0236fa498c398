"""Saliency maps of a set of images as one file of numbers, computed here once or brought by the user.

The file is a NumPy array [n, H, W], or [n, V, H, W] for V views of each object, of float16, float32 or uint8, in the
order of the objects; a map's values are densities up to a factor. It stays on the disk: reading a batch reads its maps.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.manifest import canonical_json
from ssl_equi.data.npy import map_npy
from ssl_equi.errors import DataError
from ssl_equi.files import building_progress, sync_folder, working_alone, write_errors_named
from ssl_equi.views.saliency import centre_surround, spectral_residual

SaliencySource = Literal["spectral_residual", "centre_surround"]
SALIENCY_SOURCES: dict[str, Callable[[Tensor], Tensor]] = {
    "spectral_residual": spectral_residual,
    "centre_surround": centre_surround,
}
FILE_TYPES = (np.float16, np.float32, np.uint8)
MAPS_VERSION = 1  # raised when the same images would get other maps, so that no cache is stale
IMAGES_AT_ONCE = 256


class SaliencyMaps:
    """The maps of all views of a collection, in a file.

    Args:
        file: .npy, see above.
        collection: what the maps are of; a file without V is of collections with one view an object.

    Raises:
        DataError: the file is missing, not such an array, or of other images.
    """

    def __init__(self, file: Path, collection: ViewCollection) -> None:
        self.file = Path(file)
        height, width = collection.image_size
        maps = map_npy(self.file, str(self.file), DataError, "give a .npy file of saliency maps that numpy.save wrote")
        if maps.dtype not in FILE_TYPES or maps.ndim not in (3, 4):
            raise DataError(
                f"{self.file} holds {maps.dtype} {maps.shape}: give one array of float16, float32 or uint8 [objects, "
                "height, width], or [objects, views, height, width]"
            )
        self._maps = maps if maps.ndim == 4 else maps[:, None]
        if self._maps.shape[:2] != (collection.num_objects, collection.num_views):
            raise DataError(
                f"{self.file} has maps of {self._maps.shape[0]} objects with {self._maps.shape[1]} views and split "
                f"{collection.split!r} of {collection.folder} holds {collection.num_objects} with "
                f"{collection.num_views}: give the file of this split"
            )
        if self._maps.shape[2:] != (height, width):
            raise DataError(
                f"{self.file} has maps of {self._maps.shape[2]} x {self._maps.shape[3]} pixels and the images of split "
                f"{collection.split!r} have {height} x {width}: resize the maps to the images"
            )

    def read(self, object_indices: Tensor | np.ndarray, view_indices: Tensor | np.ndarray) -> Tensor:
        """The maps of views [b] of objects [b]: float32 [b, H, W] on the CPU, each with the sum 1.

        Raises:
            DataError: names the first object whose map has negative or non-finite values, or no value above zero.
            IndexError: an index is out of range.
        """
        objects, views = (np.asarray(torch.as_tensor(index).cpu()) for index in (object_indices, view_indices))
        maps = self._maps[objects, views].astype(np.float32)
        largest, smallest = maps.max(axis=(1, 2)), maps.min(axis=(1, 2))
        # A value that is not a number makes the largest one that, so every comparison with it fails.
        good = (smallest >= 0) & (largest > 0) & (largest < np.inf)
        if not good.all():
            row = int(np.argmin(good))
            if largest[row] == smallest[row] == 0:
                problem, cure = "is zero everywhere", "give a uniform map where nothing is salient"
            elif smallest[row] < 0:
                problem, cure = "has negative values", "give densities, such as exp of log densities"
            else:
                problem, cure = "has values that are not finite", "compute it again"
            raise DataError(f"the map of object {objects[row]}, view {views[row]}, in {self.file} {problem}: {cure}")
        maps /= largest[:, None, None]
        maps /= maps.sum(axis=(1, 2), keepdims=True)
        return torch.from_numpy(maps)


def computed_saliency(collection: ViewCollection, source: SaliencySource, folder: Path | None = None) -> SaliencyMaps:
    """The maps of a collection, computed when they are first asked for and read from a file ever after.

    They are stored as float16 with a largest value of 1 each. Of a picture that doesn't fill its canvas the map is
    computed on the picture alone, and is zero around it. Safe to call from several processes at once.

    Args:
        source: spectral_residual or centre_surround, see `ssl_equi.views.saliency`.
        folder: where the file is kept; `saliency/` in the user's cache folder when None.

    Raises:
        DataError: an unknown source, an image that can't be read, or a file that can't be written.
    """
    if source not in SALIENCY_SOURCES:
        raise DataError(f"the source of saliency is {source!r}: choose {' or '.join(SALIENCY_SOURCES)}")
    folder = user_cache_path("ssl_equi") / "saliency" if folder is None else folder
    file = folder / _file_name(collection, source)
    if not file.exists():
        with write_errors_named(file):
            folder.mkdir(parents=True, exist_ok=True)
            with working_alone(file.with_name(f".{file.name}.lock"), f"computing {file}"):
                if not file.exists():
                    _compute(collection, source, file)
    return SaliencyMaps(file, collection)


def _file_name(collection: ViewCollection, source: str) -> str:
    """Names the maps by all that they depend on: the images, how they lie in their buffers, and the source."""
    identity = {
        "version": MAPS_VERSION,
        "source": source,
        "fingerprint": collection.content_key,
        "split": collection.split,
        "image_size": list(collection.image_size),
        "fills_image": collection.fills_image,
    }
    return f"{source}-{hashlib.sha256(canonical_json(identity)).hexdigest()[:16]}.npy"


def _compute(collection: ViewCollection, source: str, file: Path) -> None:
    shape = (collection.num_objects, collection.num_views, *collection.image_size)
    temporary = file.with_name(f".writing-{file.name}-{os.getpid()}")
    try:
        maps = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        flat = maps.reshape(-1, *collection.image_size)
        with building_progress() as progress:
            bar = progress.add_task(f"computing saliency of {collection.split}", total=len(flat))
            for rows, images, sizes in _image_batches(collection):
                flat[rows] = _scaled_maps(images, sizes, SALIENCY_SOURCES[source])
                progress.advance(bar, len(images))
        maps.flush()
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
    if not progress.console.is_terminal:
        print(f"computed the {source} saliency of {collection.split}: {len(flat):,} maps in {file}", flush=True)


def _image_batches(collection: ViewCollection) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """All views in order: their numbers, pixels uint8 [b, H, W, 3], and content sizes [b, 2] if they have such."""
    total = collection.num_objects * collection.num_views
    for start in range(0, total, IMAGES_AT_ONCE):
        numbers = np.arange(start, min(start + IMAGES_AT_ONCE, total))
        objects, views = np.divmod(numbers, collection.num_views)
        pixels = np.zeros((len(numbers), 1, *collection.image_size, 3), dtype=np.uint8)
        sizes = None if collection.fills_image else np.zeros((len(numbers), 1, 2), dtype=np.int64)
        collection.read_views(objects, views[:, None], pixels, sizes)
        yield slice(start, start + len(numbers)), pixels[:, 0], None if sizes is None else sizes[:, 0]


def _scaled_maps(pixels: np.ndarray, sizes: np.ndarray | None, saliency: Callable[[Tensor], Tensor]) -> np.ndarray:
    """float32 [b, H, W] with a largest value of 1 each."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if sizes is None:
        maps = saliency(images)
    else:
        maps = torch.zeros(len(images), *images.shape[2:])
        for image, whole_map, (height, width) in zip(images, maps, sizes.tolist(), strict=True):
            whole_map[:height, :width] = saliency(image[None, :, :height, :width])[0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True)).numpy()
