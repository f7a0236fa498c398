"""Small damages of a file, drawn at random: what disks, downloads, editors and mix-ups do to it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]


def _flip_bit(data: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(data)))
    return data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]


def _flip_bit_at_the_start(data: bytes, rng: np.random.Generator) -> bytes:
    return _flip_bit(data[:200], rng) + data[200:]  # headers, which a random bit of a long file hardly ever hits


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _truncate_to_blocks(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: 512 * int(rng.integers(-(-len(data) // 512)))]


def _overwrite_with_noise(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + rng.bytes(last - first) + data[last:]


def _overwrite_with_zeros(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + bytes(last - first) + data[last:]


def _repeat_span(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(data, rng)
    return data[:last] + data[first:]


def _remove_span(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + data[last:]


def _append_noise(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 2000)))


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    first = int(rng.integers(len(data)))
    return first, min(len(data), first + int(rng.integers(1, 600)))


BYTE_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bit, _flip_bit_at_the_start, _truncate, _truncate_to_blocks, _overwrite_with_noise, _overwrite_with_zeros,
    _repeat_span, _remove_span, _append_noise,
)  # fmt: skip


def mutations(data: bytes, rng: np.random.Generator) -> bytes:
    """A file's bytes with one damage: a bit, a span, or the end of it."""
    return BYTE_MUTATIONS[int(rng.integers(len(BYTE_MUTATIONS)))](data, rng)


def forged_headers(data: bytes, rng: np.random.Generator) -> bytes:
    """A tar file with some bytes of one header changed, and a checksum that fits: what no damage does by chance."""
    headers = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    place = headers[int(rng.integers(len(headers)))]
    header = bytearray(data[place : place + 512])
    for _ in range(int(rng.integers(1, 4))):
        field = ((0, 100), (124, 136), (124, 125), (156, 157), (157, 257), (345, 500))[int(rng.integers(6))]
        value = int(rng.choice([0, 32, 47, 48, 49, 50, 53, 55, 83, 103, 120, 128, 255, int(rng.integers(256))]))
        header[int(rng.integers(*field))] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e300, 10**18, 10**40, float("nan"), float("inf"), "", "x", "..", "\x00", "\ud800", [], {}, [[]],
    {"": None}, [1, 2, 3], "9" * 5000,
)  # fmt: skip


def json_mutations(data: bytes, rng: np.random.Generator) -> bytes:
    """A JSON file with one value of it edited: deleted, doubled, of another type, huge, or nested deeply."""
    content = json.loads(data)
    places = list(_places(content))
    container, key = places[int(rng.integers(len(places)))]
    edit = int(rng.integers(8))
    if edit == 0:
        del container[key]
    elif edit == 1:
        other, other_key = places[int(rng.integers(len(places)))]
        container[key] = json.loads(json.dumps(other[other_key]))
    elif edit == 2 and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif edit == 3 and isinstance(container, list):
        container.insert(key, container[key])
    elif edit == 4:
        container[key] = "MARK"
        deep = (b"[" * 100_000 + b"]" * 100_000) if rng.integers(2) else (b"[" * 500 + b"]" * 500)
        return json.dumps(content).encode().replace(b'"MARK"', deep)
    elif edit == 5 and isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] = -container[key] if rng.integers(2) else container[key] + 1
    else:
        container[key] = HOSTILE_VALUES[int(rng.integers(len(HOSTILE_VALUES)))]
    return json.dumps(content).encode()


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every container and key (or number) of a value in it."""
    found: list[tuple[Any, Any]] = []
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        found.append((content, key))
        if isinstance(value, dict | list):
            found += _places(value)
    return found
