"""From nothing but the wheel, in an empty environment: training, evaluation, export and ONNX, a command each.

The wheel is built from the source archive and installed with its extra `onnx` by uv, which needs a package index or a
cache of what was installed before.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SMALL = ("--image-size", "32", "--batch-size", "4", "--steps", "2", "--no-compare-with-random")
# Four objects of each of 24 families, at 32 pixels, in place of the demo's thousand.
TINY_DATA = [f"--set.{side}" for side in ("image-size=32", "train-objects=4", "val-objects=1", "test-objects=2")]
UNREACHABLE = ("Failed to fetch", "error sending request", "dns error", "Network connectivity is disabled")
# What the shell around the tests says about other environments.
OF_OTHERS = ("PYTHONPATH", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
RUN_ONNX = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession("demo.onnx")
images = numpy.random.default_rng(0).random((3, 3, 32, 32), dtype=numpy.float32)
invariant, equivariant = session.run(["inv", "equi"], {"images": images})
assert invariant.shape == equivariant.shape == (3, 256) and numpy.isfinite(invariant).all()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a program of the new environment in a folder of its own, where no clone is; returns what it prints."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv, which makes the empty environment, is not installed")
    work, environment = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("environment") / "venv"
    variables = {name: value for name, value in os.environ.items() if name not in OF_OTHERS}

    def run(*call: str) -> str:
        done = subprocess.run(call, cwd=work, env=variables, capture_output=True, text=True)
        if call[0] == uv and any(message in done.stderr for message in UNREACHABLE):
            pytest.skip(f"uv reaches no package index: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(uv, "build", str(ROOT), "--out-dir", "dist")  # the wheel from the source archive
    (wheel,) = work.glob("dist/*.whl")
    run(uv, "venv", "--python", sys.executable, str(environment))
    run(uv, "pip", "install", "--python", str(environment / "bin" / "python"), f"{wheel}[onnx]")

    def run_installed(program: str, *words: str) -> str:
        return run(str(environment / "bin" / program), *words)

    return run_installed


@pytest.fixture(scope="module")
def command(run: Callable[..., str]) -> Callable[..., str]:
    """Runs `ssl-equi` of the new environment, where a small demo has been trained."""

    def command(*words: str) -> str:
        return run("ssl-equi", *words)

    installed = Path(command("where", "demo").strip())
    assert installed.parts[-4:] == ("ssl_equi", "scripts", "recipes", "sie.py") and ROOT not in installed.parents
    command("data", "procedural", "--out", "data", *(word for option in TINY_DATA for word in option.split("=")))
    command("demo", "--data-dir", "data", "--out", "runs/demo", *SMALL)
    return command


def test_own_photographs(command: Callable[..., str], flat_folder: Path) -> None:
    said = command("train", "simclr", "--images", str(flat_folder), "--out", "runs/own", *SMALL)
    assert "crop of an augmentation" in said and "open runs/own/report.html" in said


def test_start_from_weights(command: Callable[..., str]) -> None:
    command("train", "vicreg", "--init", "runs/demo", "--data-dir", "data", "--out", "runs/tuned", *SMALL)
    assert "| tuned |" in command("table", "runs/demo", "runs/tuned", "--layout", "methods")


def test_evaluation(command: Callable[..., str]) -> None:
    options = ("--image-size", "32", "--seeds", "1", "--no-compare-with-random")
    said = command("evaluate", "--encoder", "runs/demo", "--data-dir", "data", "--tasks", "classification", *options)
    assert "classification" in said and "top1" in said


def test_onnx_runs(command: Callable[..., str], run: Callable[..., str]) -> None:
    command("export", "runs/demo", "--to", "onnx", "--out", "demo.onnx")
    run("python", "-c", RUN_ONNX)
