import os

import pytest

from ssl_equi.errors import visible, visible_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("café 图 ✓ ° R₂t₂", "café 图 ✓ ° R₂t₂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("a\x00b\x1b[31m\x7f", r"a\x00b\x1b[31m\x7f"),
        ("\ufffe\U0001ffff", r"\ufffe\U0001ffff"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown
    shown.encode()


def test_values_keep_their_nesting() -> None:
    assert visible_values({"\ud800": ["\x00", 1, None, ("x",)]}) == {r"\ud800": [r"\x00", 1, None, ["x"]]}
