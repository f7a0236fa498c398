"""The command `ssl-equi`, in a clone and in the wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ssl_equi import __main__ as command
from ssl_equi.__main__ import COMMANDS, chosen_script, scripts_of
from ssl_equi.cli import explain_errors

ROOT = Path(__file__).parents[1]


def called(*words: str, path: Path = ROOT, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path), "COLUMNS": "80"}
    call = [sys.executable, "-m", "ssl_equi", *words]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("words", "script", "options"),
    [
        (["train", "sie", "paper", "--seed", "1"], "recipes/sie.py", ["paper", "--seed", "1"]),
        (["evaluate", "--encoder", "runs/sie"], "evaluation/suite.py", ["--encoder", "runs/sie"]),
        (["evaluate", "sequences", "runs/seq"], "evaluation/sequences.py", ["runs/seq"]),
        (["report", "runs/sie", "runs/vicreg"], "evaluation/report.py", ["runs/sie", "runs/vicreg"]),
        (["export", "runs/sie", "--to", "onnx"], "evaluation/export.py", ["runs/sie", "--to", "onnx"]),
        (["data", "meshes", "--help"], "datasets/meshes.py", ["--help"]),
        (["demo", "--seed", "1"], "recipes/sie.py", ["demo", "--seed", "1"]),
    ],
)
def test_words_name_a_script_and_leave_its_options(words: list[str], script: str, options: list[str]) -> None:
    assert chosen_script(words[0], COMMANDS[words[0]], words[1:]) == (ROOT / script, options)


@pytest.mark.parametrize(("words", "hint"), [(["trian"], "did you mean train"), (["train", "sei"], "did you mean sie")])
def test_a_name_that_does_not_exist_gets_a_hint(words: list[str], hint: str) -> None:
    said = called(*words)
    assert said.returncode == 2 and hint in said.stderr and said.stdout == ""


def test_every_script_is_listed_with_what_it_does() -> None:
    text = called("train").stdout
    assert max(map(len, text.splitlines())) <= 80
    listed = [line.split()[0] for line in text.splitlines()[1:] if not line.startswith("    ")]
    assert listed == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
    assert "SIE: a representation split into an invariant" in text
    assert "ssl-equi demo" in called().stdout


def test_a_method_trains_and_notes_how_it_was_called(tiny_data: Path, tmp_path: Path) -> None:
    options = ["--data-dir", str(tiny_data), "--image-size", "32", "--batch-size", "8", "--steps", "1", "--no-evaluate"]
    said = called("train", "vicreg", *options, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    command = json.loads((tmp_path / "runs" / "vicreg" / "versions.json").read_text())["command"]
    assert command == f"ssl-equi train vicreg {' '.join(options)}"


def test_the_wheel_has_the_scripts_and_finds_them(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    for entry in (entry for entry in COMMANDS.values() if entry.folder != "tools"):
        for script in scripts_of(entry).values():
            assert f"ssl_equi/scripts/{script.relative_to(ROOT)}" in names
    assert "ssl-equi = ssl_equi.__main__:main" in next((tmp_path / "installed").glob("*/entry_points.txt")).read_text()
    found = called("where", "train", "sie", path=tmp_path / "installed", folder=tmp_path).stdout.strip()
    assert found == str(tmp_path / "installed" / "ssl_equi" / "scripts" / "recipes" / "sie.py")
    assert {f"ssl_equi/shell/{name}" for name in ("candidates.sh", "bash.sh", "zsh.sh", "fish.fish")} <= set(names)
    refused = called("new-method", "mine", path=tmp_path / "installed", folder=tmp_path)
    assert refused.returncode == 1 and "works on a clone" in refused.stderr


@pytest.mark.slow
def test_a_sweep_trains_each_seed_and_prints_their_table(tiny_data: Path, tmp_path: Path) -> None:
    options = ["--data-dir", str(tiny_data), "--image-size", "32", "--batch-size", "8", "--steps", "1"]
    said = called("train", "vicreg", "--seeds", "0", "1", *options, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "vicreg: 2 seeds" in said.stdout and "| classification | `top1` | `all` |" in said.stdout
    again = called("train", "vicreg", "--seeds", "0", "1", *options, folder=tmp_path)
    assert "runs/vicreg-seed1 is finished" in again.stdout


@pytest.mark.parametrize("interrupted", ["while it imports", "in its work"])
def test_ctrl_c_leaves_one_sentence(
    interrupted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["ssl-equi", "report", "runs/sie"])
    monkeypatch.setattr(command, "run", stop if interrupted == "while it imports" else lambda *_: explain_errors(stop))
    with pytest.raises(SystemExit, match="130"):
        command.main()
    assert capsys.readouterr().err == "\nstopped by Ctrl-C: run the same command again\n"
