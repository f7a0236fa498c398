"""Text from outside (names of folders, classes and files) as it can be stored and shown anywhere."""

import unicodedata
from typing import Any


def visible(text: str) -> str:
    r"""The text with control characters, and bytes of a file's name that are no UTF-8, written as escapes: `caf\xe9`.

    What is left can be encoded, printed and put into HTML and SVG; text that already can is returned as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _is_hidden(character) else character for character in text)


def visible_values(value: Any) -> Any:
    """A JSON value with all of its text visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key) if isinstance(key, str) else key: visible_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible_values(item) for item in value]
    return value


def _is_hidden(character: str) -> bool:
    """Control characters but for line breaks and tabs, lone surrogates, and code points that are no characters."""
    return unicodedata.category(character) in ("Cc", "Cs", "Cn") and character not in "\n\t"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file's name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
