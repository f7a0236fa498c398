"""Reading .npy and .npz files that may hold anything: plain arrays, or one sentence. Nothing is ever unpickled.

NumPy's own reader passes a damaged header to Python's tokenizer and parser, whose errors are of many types, and makes
room for whatever size a header states.
"""

import io
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_equi.files import size_of_regular_file

_MAGIC = b"\x93NUMPY"
_MOST_HEADER_BYTES = 1 << 12  # NumPy writes 128 for arrays of up to 10 dimensions
_MOST_DIMENSIONS = 32
# Numbers, booleans and text; no Python objects and no records of several fields.
_HEADER = re.compile(
    r"\s*\{\s*'descr':\s*'([<>|][biufSU]\d{1,6})',\s*'fortran_order':\s*(True|False),"
    r"\s*'shape':\s*\(((?:\d{1,18},\s*)*(?:\d{1,18})?)\),?\s*\}\s*"
)


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    bytes: int  # of the header itself; the numbers follow

    @property
    def file_bytes(self) -> int:
        return self.bytes + math.prod(self.shape) * self.dtype.itemsize


def parse_npy(
    content: bytes,
    name: str,
    error_type: type[Exception],
    cure: str,
    *,
    dtype: Any = None,
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """The array in the bytes of a .npy file, read-only, of any `dtype` and `shape` where these are None.

    Raises `error_type`, which calls it `name` and ends with the cure, for bytes that are no plain .npy file, cut, too
    long, or another array than expected.
    """
    header = _checked_header(content, len(content), name, error_type, cure, dtype, shape)
    count = math.prod(header.shape)
    flat = np.frombuffer(content, header.dtype, count, header.bytes) if count else np.empty(0, header.dtype)
    return flat.reshape(header.shape, order=header.order)


def map_npy(
    path: Path,
    name: str,
    error_type: type[Exception],
    cure: str,
    *,
    dtype: Any = None,
    shape: tuple[int, ...] | None = None,
    copy_on_write: bool = False,
) -> np.ndarray:
    """The array in a .npy file as a memory map, read-only or `copy_on_write`; otherwise as `parse_npy`."""
    size = size_of_regular_file(path, name, error_type, cure)
    try:
        with open(path, "rb") as file:
            header = _checked_header(file.read(_MOST_HEADER_BYTES + 16), size, name, error_type, cure, dtype, shape)
            if not math.prod(header.shape):
                return np.empty(header.shape, header.dtype)
            mode: Literal["r", "c"] = "c" if copy_on_write else "r"
            mapped = np.memmap(file, header.dtype, mode, header.bytes, header.shape, header.order)
    except (OSError, ValueError) as error:  # ValueError: the file was cut after its size was asked for
        raise error_type(f"{name} can't be read ({error}): {cure}") from error
    return np.asarray(mapped)  # a plain view of the mapped memory; indexing a memmap itself is several times slower


def read_stored_npz(path: Path, error_type: type[Exception], cure: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file that `numpy.savez` wrote, which doesn't compress; `error_type` for any other file."""
    size = size_of_regular_file(path, str(path), error_type, cure)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                    raise ValueError(f"'{entry.filename}' is compressed, or larger than the file")
                arrays[entry.filename.removesuffix(".npy")] = archive.read(entry)
    except Exception as error:  # zipfile raises errors of many types for damaged files
        raise error_type(f"{path} is no readable .npz file ({error}): {cure}") from error
    return {name: parse_npy(data, f"'{name}' in {path}", error_type, cure) for name, data in arrays.items()}


def npy_bytes(array: np.ndarray) -> bytes:
    """The .npy file of a plain array."""
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=False)
    return content.getvalue()


def _checked_header(
    start: bytes,
    file_bytes: int,
    name: str,
    error_type: type[Exception],
    cure: str,
    dtype: Any,
    shape: tuple[int, ...] | None,
) -> _Header:
    try:
        header = _parse_header(start)
    except ValueError as error:
        raise error_type(f"{name} is not a plain .npy array ({error}): {cure}") from error
    expected_dtype = header.dtype if dtype is None else np.dtype(dtype)
    expected_shape = header.shape if shape is None else shape
    if header.dtype != expected_dtype or header.shape != expected_shape:
        raise error_type(
            f"{name} holds {header.dtype} {header.shape}, expected {expected_dtype} {expected_shape}: {cure}"
        )
    if header.file_bytes != file_bytes:
        raise error_type(
            f"{name} has {file_bytes:,} bytes where its header of {header.dtype} {header.shape} asks for "
            f"{header.file_bytes:,}: {cure}"
        )
    return header


def _parse_header(start: bytes) -> _Header:
    """Raises ValueError with what is wrong."""
    if not start.startswith(_MAGIC):
        raise ValueError("it doesn't begin as one")
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its format version is {version}")
    first = 10 if version == (1, 0) else 12
    length = int.from_bytes(start[8:first], "little")
    if length > _MOST_HEADER_BYTES or len(start) < first + length:
        raise ValueError(f"its header has {length:,} bytes")
    match = _HEADER.fullmatch(start[first : first + length].decode("latin-1"))
    if match is None:
        raise ValueError("its header is damaged, or of Python objects or records")
    try:
        dtype = np.dtype(match[1])
    except TypeError:
        raise ValueError(f"its type is {match[1]!r}") from None
    shape = tuple(int(number) for number in match[3].split(",") if number.strip())
    if dtype.itemsize == 0 or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"its type is {match[1]!r} and it has {len(shape)} dimensions")
    if math.prod(max(1, side) for side in shape) * dtype.itemsize >= 2**62:
        raise ValueError(f"its shape is {shape}")
    return _Header(dtype, shape, "F" if match[2] == "True" else "C", first + length)
