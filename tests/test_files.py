"""Reading JSON that may hold anything: an object, or one sentence that names the file; work in order."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssl_equi.errors import UserError
from ssl_equi.files import map_in_order, read_json_object

NOT_OBJECTS = {
    "no_utf8": (b'{"a": "\xff"}', "UTF-8 (byte 7)"),
    "utf16": ('{"a": 1}'.encode("utf-16"), "UTF-8"),
    "empty": (b"", "not valid JSON"),
    "cut": (b'{"a": [1, 2', "not valid JSON"),
    "list": (b"[1]", "a JSON array"),
    "null": (b"null", "a JSON null"),
    "text": (b'"a"', "a JSON string"),
    "number": (b"1.5", "a JSON number"),
    "doubled": (b'{"a": {"b": 1, "b": 2}}', "key 'b' is there twice"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "beyond 64 bits"),
    "integer": (b'{"a": 18446744073709551616}', "beyond 64 bits"),
    "float": (b'{"a": 1e999}', "1e999 is a number beyond float64"),
    "nan": (b'{"a": NaN}', "NaN is no JSON number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is no JSON number"),
    "nested": (b'{"a":' * 300 + b"1" + b"}" * 300, "over 100 levels deep"),
    "nested_a_lot": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "over 100 levels deep"),
    "half_a_pair": (b'{"a": "\\ud800"}', "half of a surrogate pair"),
}


@pytest.mark.parametrize("kind", NOT_OBJECTS)
def test_anything_but_an_object_is_one_sentence(kind: str, tmp_path: Path) -> None:
    content, expected = NOT_OBJECTS[kind]
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json_object(path, UserError, "mend it")
    sentence = str(caught.value)
    assert str(path) in sentence and expected in sentence and sentence.endswith(": mend it")
    assert "\n" not in sentence and len(sentence) < 300 + len(str(path))


def test_missing_folder_and_huge_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json is missing: "):
        read_json_object(tmp_path / "missing.json", UserError)
    with pytest.raises(UserError, match="is not a file: "):
        read_json_object(tmp_path, UserError)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="is not a file: "):
        read_json_object(tmp_path / "pipe.json", UserError)
    huge = tmp_path / "huge.json"
    huge.touch()
    os.truncate(huge, 10 << 40)
    with pytest.raises(UserError, match="10,995,116,277,760 bytes, more than"):
        read_json_object(huge, UserError)


def test_objects_are_read_as_they_are(tmp_path: Path) -> None:
    content = {"a": [1, -1.5, None, True, {"b": "\u00e4 \U0001f600"}], "seed": 2**64 - 1, "low": -(2**63)}
    for encoded in (json.dumps(content).encode(), json.dumps(content, ensure_ascii=False).encode("utf-8-sig")):
        (tmp_path / "x.json").write_bytes(encoded)
        assert read_json_object(tmp_path / "x.json", UserError) == content


def test_map_in_order_keeps_the_order_and_reads_ahead_only_so_far() -> None:
    started: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            started.append(number)
        time.sleep(0.002 * (number % 3))
        return number * number

    with ThreadPoolExecutor(4) as pool:
        results = map_in_order(pool, work, range(30), ahead=5)
        assert next(results) == 0
        assert max(started) <= 5
        assert [0, *results] == [number * number for number in range(30)]
