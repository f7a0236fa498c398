"""Real data beside the repository, which is not part of it."""

from pathlib import Path

import pytest

_DATA = Path(__file__).parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """A folder of real data; skips the test where it isn't there."""
    folder = _DATA / name
    if not folder.is_dir():
        pytest.skip(f"real data are not part of the project: {name} is looked for in {_DATA}")
    return folder
