"""Reading .npy and .npz files that may hold anything: the array, or one sentence that names the file."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_equi.data.npy import map_npy, npy_bytes, parse_npy, read_stored_npz
from ssl_equi.errors import UserError


def with_header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin-1") + data


def header_of(descr: str, shape: str) -> bytes:
    return with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


NO_ARRAYS = {
    "empty": (b"", "doesn't begin as one"),
    "text": (b"1 2 3", "doesn't begin as one"),
    "version": (b"\x93NUMPY\x09\x00" + bytes(200), "version is (9, 0)"),
    "cut_header": (npy_bytes(np.ones(3))[:50], "its header has 118 bytes"),
    "cut": (npy_bytes(np.ones(3))[:-1], "151 bytes where its header of float64 (3,) asks for 152"),
    "longer": (npy_bytes(np.ones(3)) + b"x", "153 bytes where"),
    "digits": (header_of("'<f4'", f"({'9' * 5000},)"), "its header has"),
    "many_digits": (header_of("'<f4'", f"({'9' * 50},)"), "damaged"),
    "ten_tib": (header_of("'|u1'", "(10995116277760,)"), "asks for 10,995,116,277,8"),
    "beyond": (header_of("'<f8'", "(999999999999999, 0, 999999999999999)"), "its shape is"),
    "negative": (header_of("'<f8'", "(-1,)"), "damaged"),
    "objects": (header_of("'|O'", "(1,)"), "Python objects"),
    "records": (header_of("[('a', '<f4')]", "(1,)"), "records"),
    "no_type": (header_of("'<f3'", "(1,)"), "its type is '<f3'"),
    "no_width": (header_of("'|S0'", "(1,)"), "its type is '|S0'"),
    "tokens": (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), (\n"), "damaged"),
    "nested": (with_header("(" * 4000), "damaged"),
    "long_header": (with_header(" " * 100_000, version=2), "its header has 100,000 bytes"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_anything_but_an_array_is_one_sentence(kind: str, tmp_path: Path) -> None:
    content, expected = NO_ARRAYS[kind]
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    sentences = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            parse_npy(content, "the array", UserError, "mend it")
        sentences.append(str(caught.value))
        with pytest.raises(UserError) as caught:
            map_npy(path, "the array", UserError, "mend it")
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert sentences[0].startswith("the array ") and expected in sentences[0] and sentences[0].endswith(": mend it")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(3.5), np.zeros((0, 4)),
        np.array([b"key", b"k"]), np.array(["\u00e4", "xyz"]), np.array([True, False]), np.arange(3, dtype=">i4"),
        np.ones((1, 1, 1, 2), np.float16),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_what_numpy_wrote_is_read_as_numpy_reads_it(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    assert path.read_bytes() == npy_bytes(array)
    for found in (map_npy(path, "x", UserError, ""), parse_npy(path.read_bytes(), "x", UserError, "")):
        assert found.dtype == array.dtype and found.shape == array.shape
        assert not found.size or not found.flags.writeable
        np.testing.assert_array_equal(found, np.load(path))
        assert found.flags.f_contiguous == np.load(path).flags.f_contiguous
    np.savez(tmp_path / "x.npz", first=array)
    np.testing.assert_array_equal(read_stored_npz(tmp_path / "x.npz", UserError, "")["first"], array)


@pytest.mark.parametrize(("expected"), [{"dtype": np.float32}, {"shape": (6,)}, {"dtype": ">f8"}])
def test_another_array_than_expected_is_named(expected: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((2, 3)))
    assert map_npy(path, "x", UserError, "", dtype=np.float64, shape=(2, 3)).shape == (2, 3)
    with pytest.raises(UserError, match=r"x holds float64 \(2, 3\), expected "):
        map_npy(path, "x", UserError, "", **expected)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("pipe", "is not a file"), ("", "is not a file"), ("nowhere", "is missing")):
        with pytest.raises(UserError, match=f"the array {problem}: mend it"):
            map_npy(tmp_path / name, "the array", UserError, "mend it")


def test_archives_that_unpack_to_more_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1 << 22))
    (tmp_path / "none.npz").write_bytes(b"PK\x03\x04")
    for name in ("bomb.npz", "none.npz"):
        with pytest.raises(UserError, match=r"is no readable \.npz file"):
            read_stored_npz(tmp_path / name, UserError, "write it again")


def test_a_map_may_be_changed_in_memory_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(4))
    found = map_npy(tmp_path / "x.npy", "x", UserError, "", copy_on_write=True)
    found[0] = 7
    assert np.load(tmp_path / "x.npy").tolist() == [1, 1, 1, 1]
