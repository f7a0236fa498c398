"""What is sent to a GPU machine is complete: nothing is imported that neither list of tools/gpu names."""

import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tools" / "gpu"


@pytest.fixture
def fetch_wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import fetch_wheels

    return fetch_wheels


@pytest.fixture
def check_imports(fetch_wheels: ModuleType) -> ModuleType:
    import check_imports

    return check_imports


def test_everything_imports_and_builds_with_all_else_hidden() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    checked = subprocess.run(
        [sys.executable, str(FOLDER / "check_imports.py"), "--hide"],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    assert "objectives are built" in checked.stdout


def test_what_neither_list_names_is_hidden(fetch_wheels: ModuleType, check_imports: ModuleType) -> None:
    presupposed = check_imports.asked_for(fetch_wheels.requirements(check_imports.PRESUPPOSED))
    assert {"torch", "sympy", "filelock", "pygments"} <= presupposed  # sympy is asked for by torch, pygments by rich
    hider = check_imports.Hider(presupposed)
    assert {"timm", "lightly"} <= hider.hidden.keys()
    with pytest.raises(ModuleNotFoundError, match=r"timm.layers belongs to timm, which is hidden"):
        hider.find_spec("timm.layers")
    assert hider.find_spec("torch.nn") is None and hider.find_spec("json") is None


def test_pinned_versions_are_those_that_the_tests_run_with_and_the_package_allows(fetch_wheels: ModuleType) -> None:
    packaging = pytest.importorskip("packaging.requirements")
    pinned = dict(line.split("==") for line in fetch_wheels.requirements())
    pinned = {fetch_wheels.normalised(name): release for name, release in pinned.items()}
    asked = [packaging.Requirement(line) for line in requires("ssl-equi") or []]
    for requirement in asked:
        release = pinned.get(fetch_wheels.normalised(requirement.name))
        assert release is None or requirement.specifier.contains(release), requirement
    assert all(version(name).partition(".")[0] == release.partition(".")[0] for name, release in pinned.items())


def test_pip_is_asked_for_wheels_only_and_for_no_server(fetch_wheels: ModuleType) -> None:
    command = fetch_wheels.download_command("3.12", Path("wheels"), ["timm==1.0.31"])
    assert {"--no-deps", "--only-binary=:all:", "3.12", "timm==1.0.31"} <= set(command)
    assert not any("://" in argument or "index" in argument for argument in command)


def test_wheels_are_one_for_each_line_and_light(
    fetch_wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["docstring_parser==0.2.0", "google-crc32c==1.9.0"]
    (tmp_path / "google_crc32c-1.9.0-cp312-cp312-manylinux_2_17_x86_64.whl").write_bytes(b"12")
    with pytest.raises(SystemExit, match=r"lacks docstring-parser==0\.2\.0 and has nothing too much: delete it"):
        fetch_wheels.check_wheels(tmp_path, wanted)
    (tmp_path / "docstring_parser-0.2.0-cp312-cp312-manylinux_2_17_x86_64.whl").write_bytes(b"345")
    assert fetch_wheels.check_wheels(tmp_path, wanted) == 5
    monkeypatch.setattr(fetch_wheels, "LARGEST_BYTES", 4)
    with pytest.raises(SystemExit, match="should travel"):
        fetch_wheels.check_wheels(tmp_path, wanted)
    (tmp_path / "docstring_parser-0.1.0-cp312-cp312-manylinux_2_17_x86_64.whl").write_bytes(b"345")
    with pytest.raises(SystemExit, match=r"lacks nothing and has docstring-parser==0\.1\.0 too much"):
        fetch_wheels.check_wheels(tmp_path, wanted)
