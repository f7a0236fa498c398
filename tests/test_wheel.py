"""From nothing but the wheel: demo, own photographs, starting from weights, evaluation, and ONNX, a command each."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SMALL = ("--image-size", "32", "--batch-size", "4", "--steps", "2", "--no-compare-with-random")
# Four objects of each of 24 families, at 32 pixels, in place of the demo's thousand.
TINY_DATA = [f"--set.{side}" for side in ("image-size=32", "train-objects=4", "val-objects=1", "test-objects=2")]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs `ssl-equi` of the wheel in a folder of its own, where no clone is; returns what it prints."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    work, installed = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("installed")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(work), versions=["standard"])
    zipfile.ZipFile(wheel).extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*words: str) -> str:
        call = [sys.executable, "-m", "ssl_equi", *words]
        done = subprocess.run(call, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("where", "demo").strip() == str(installed / "ssl_equi" / "scripts" / "recipes" / "sie.py")
    run("data", "procedural", "--out", "data", *(word for option in TINY_DATA for word in option.split("=")))
    run("demo", "--data-dir", "data", "--out", "runs/demo", *SMALL)
    run.work = work  # type: ignore[attr-defined]
    return run


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


def test_onnx_runs(command: Callable[..., str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="it comes with the extra onnx")
    command("export", "runs/demo", "--to", "onnx", "--out", "demo.onnx")
    session = onnxruntime.InferenceSession(command.work / "demo.onnx")  # type: ignore[attr-defined]
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    invariant, equivariant = session.run(["inv", "equi"], {"images": images})
    assert invariant.shape == equivariant.shape == (3, 256) and np.isfinite(invariant).all()
