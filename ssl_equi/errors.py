"""Errors that are meant for users, and text from outside as it can be shown."""

import unicodedata
from typing import Any


class UserError(RuntimeError):
    """Something that the user can mend; the message is one sentence with the thing, its value and the cure."""


class RunError(UserError):
    """A run can't start or go on; the message says what to do."""


class LostProcessError(RunError):
    """Another process of the run has ended or hangs."""


class CheckpointError(UserError):
    """A checkpoint can't be written, read, or put into the objects that it should fill."""


class LayoutError(CheckpointError):
    """The tensors are not those of the layout: what is wrong, and what to do."""

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(f"{problem}: {cure}")
        self.problem = problem


class DataError(UserError):
    """A file of a data set is missing, damaged, or not what its manifest says; the message names it and the cure."""


class LostShardError(DataError):
    """A whole file of records can't be read any more, which is never skipped as one bad record is."""


class EncoderError(UserError):
    """An encoder can't be made; the message says what to change."""


class ImageSizeError(EncoderError):
    """An encoder can't take images of this size."""


class FeatureError(UserError):
    """Features can't be used; the message names the encoder and the first bad view."""


def visible(text: str) -> str:
    r"""The text with control characters, and bytes of a file's name that are no UTF-8, written as escapes: `caf\xe9`.

    What is left can be encoded, printed and put into HTML and SVG; text that already can is returned as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible_character, text))


def visible_values(value: Any) -> Any:
    """A JSON value with all of its text visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key) if isinstance(key, str) else key: visible_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible_values(item) for item in value]
    return value


def _visible_character(character: str) -> str:
    # Hidden are control characters, lone surrogates, and code points that are no characters.
    if unicodedata.category(character) not in ("Cc", "Cs", "Cn") or character in "\n\t":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file's name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def described(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
