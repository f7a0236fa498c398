"""Photographs and models of real things that tests read where they are there; none is part of the project."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """A folder of real data; skips the test, with a sentence, where it isn't there."""
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not part of the project: it is looked for in {DATA}")
    return DATA / name
