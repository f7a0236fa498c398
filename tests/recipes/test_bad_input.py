"""What a user can get wrong, and what can break under a run: one sentence with the cure, and nothing saved is lost."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recipes import sie, supervised
from ssl_equi.checkpoint import list_checkpoints
from ssl_equi.cli import run_recipe
from ssl_equi.data.sets import rendered
from ssl_equi.data.shards.manifest import index_folder, read_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import UserError
from ssl_equi.files import sha256_of_file
from tests.conftest import TINY
from tests.fakes import SmallConfig, event_lines, process_of_its_own, refused, train_only
from tests.launched import ROOT, clean_environment
from tests.recipes.conftest import with_changes

Fail = Callable[..., str]

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.fixture
def fail(small_config: SmallConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fail:
    """fail(config=None, **changes): runs recipes/sie.py, which must fail; returns the one sentence on stderr."""

    def run(config: Any = None, **changes: Any) -> str:
        changed = with_changes(config or small_config(sie, out=tmp_path / "run"), changes)
        return refused(lambda: sie.main(changed), capsys)

    return run


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny set, to be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lerning-rate", "1"], "--lerning-rate"),
        (["--dataset", "4diebench"], "4diebench"),
        (["--batch-size", "many"], "--batch-size"),
        (["--objective.predictor", "hypernet"], "hypernet"),
        (["papr"], "papr"),
    ],
)
def test_what_the_command_line_does_not_know_is_named_with_status_two(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sie.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_recipe(sie.main, {"embedded": sie.embedded, "paper": sie.paper}, sie.__doc__)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert named in captured.err + captured.out
    assert list(tmp_path.iterdir()) == []


def test_the_real_command_prints_one_line_and_no_traceback(small_options: list[str], tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "run"), *small_options, "--encoder", "resnet81"]
    command = [sys.executable, "recipes/sie.py", *options]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: timm has no model named 'resnet81': did you mean resnet")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- options that do not fit


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoder": "strided_cnn_tniy"}, "no model named 'strided_cnn_tniy': did you mean strided_cnn_tiny"),
        ({"batch_size": 25}, "batch size 25 does not fit a split of 24 objects: choose a size from 1 to 24"),
        ({"batch_size": 0}, "--batch-size is 0: give a number from 1 to"),
        ({"epochs": 0}, "--epochs is 0: give a number from 1 to"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan: give a number above 0"),
        ({"objective.equi_dim": 256}, "equi_dim is 256 but the encoder has 256 features: choose 1 to 255"),
        ({"objective.parts": "equi_only", "objective.equi_dim": 8}, "leave equi_dim unset"),
        ({"objective.projector": (32, 1)}, "projector is (32, 1): every width must leave at least 1 column"),
        ({"seed": -1}, "seed"),
        (
            {"actions": ("pose_base",)},
            "action 'pose_base' is none of this data's: choose from rotation_color, rotation_6d",
        ),
        ({"actions": ("azimuth", "elevation")}, "action 'azimuth' is none of this data's: choose from rotation_color"),
        (
            {"actions": ("rotation", "augmentation")},
            "augmentation goes with no latents: name it alone, or leave it out",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(fail: Fail, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in fail(**changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_3diebench_without_its_shards_says_how_to_make_them(fail: Fail, tmp_path: Path, folder: str | None) -> None:
    data_dir = None if folder is None else tmp_path / folder
    sentence = fail(dataset="3diebench", data_dir=data_dir)
    assert str(data_dir or "an unnamed folder") in sentence
    assert "`python datasets/threediebench.py` and give the folder as --data-dir" in sentence


@pytest.mark.parametrize("split", ["tset", "train", "ood_family"])
def test_a_split_that_cannot_be_evaluated_is_named_before_anything_is_rendered(
    fail: Fail, tmp_path: Path, split: str
) -> None:
    """The split of other families has other classes, which the trained heads could not name."""
    sentence = fail(data_dir=tmp_path / "data", evaluation_split=split)
    assert sentence == f"--evaluation-split is {split!r}: choose from test, val, ood_rotation"
    assert not (tmp_path / "data").exists()


def test_a_missing_evaluation_split_is_named(fail: Fail, own_data: Path) -> None:
    (own_data / "val.manifest.json").unlink()
    sentence = fail(dataset="3diebench", data_dir=own_data, evaluation_split="val")
    assert f"there is no manifest {own_data / 'val.manifest.json'}: build this data set" in sentence


# ---------------------------------------------------------------- damaged data


def test_a_truncated_shard_is_named_before_the_first_step(fail: Fail, own_data: Path, tmp_path: Path) -> None:
    shard = own_data / "train-000001.tar"
    size = shard.stat().st_size
    os.truncate(shard, size - 700)
    sentence = fail(data_dir=own_data)
    assert f"shard {shard} has {size - 700} bytes where the manifest says {size}: download it again" in sentence
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_nan_latents_are_found_before_the_first_step(fail: Fail, own_data: Path) -> None:
    """The sidecar and its checksum agree: the data were made with the NaN."""
    file = index_folder(own_data, "train") / "latents.npy"
    latents = np.load(file)
    latents[3, 1, 0] = np.nan
    np.save(file, latents)
    manifest = read_manifest(own_data, "train")
    sidecars = manifest.sidecars | {"latents.npy": sha256_of_file(file)}
    dataclasses.replace(manifest, sidecars=sidecars).write(own_data)
    sentence = fail(data_dir=own_data)
    assert str(file) in sentence and "holds NaN or infinity: rebuild this data set" in sentence


# ---------------------------------------------------------------- full disks


def fill_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, pattern: str) -> None:
    """The disk is full as soon as a file or folder of such a (temporary) name is being written."""
    really_sync = os.fsync

    def sync(descriptor: int) -> None:
        if any(folder.glob(pattern)):
            raise OSError(errno.ENOSPC, "No space left on device")
        really_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)


def test_a_full_disk_while_exporting_keeps_the_trained_run(
    small_config: SmallConfig, fail: Fail, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = small_config(sie, out=run, compare_with_random=False)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, run, "*encoder*")
        sentence = fail(config)
    assert f"the disk is full while writing {run / 'encoder'}: free some space" in sentence
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000006"]
    losses = event_lines(run)
    sie.main(dataclasses.replace(config, resume=True))
    assert event_lines(run) == losses
    assert (run / "encoder" / "model.safetensors").is_file() and (run / "report.html").is_file()


def test_a_full_disk_while_rendering_keeps_the_finished_shards(
    small_config: SmallConfig, fail: Fail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rendered, "embedded_config", lambda known, image_size: TINY)
    data = tmp_path / "data"
    config = small_config(sie, out=tmp_path / "run", data_dir=data, steps=1)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, data, "*train-000002*")
        sentence = fail(config)
    assert str(data) in sentence and "No space left on device" in sentence and "free some space" in sentence
    finished = {path: path.stat().st_mtime_ns for path in data.glob("train-00000[01].tar")}
    assert len(finished) == 2
    assert not (data / "train.manifest.json").exists()
    train_only(sie, config)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "the finished shards were rendered again"
    assert ShardDataset(data, "train").num_objects == 24


# ---------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def trained_once(small_config: SmallConfig, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The configuration of a run with a checkpoint in its folder."""
    config = small_config(sie, out=tmp_path_factory.mktemp("trained") / "run", save_every=2)
    with process_of_its_own():
        train_only(sie, config)
    return config


@pytest.fixture
def trained(trained_once: Any, tmp_path: Path) -> Any:
    """The same with a copy of the folder."""
    return dataclasses.replace(trained_once, out=Path(shutil.copytree(trained_once.out, tmp_path / "run")))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder but for the notes on who last used it."""
    files = {path for path in folder.rglob("*") if path.is_file() and path.name != "versions.json"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_resuming_with_other_options_names_the_option(trained: Any, fail: Fail) -> None:
    before = contents(trained.out)
    sentence = fail(trained, resume=True, **{"objective.projector": (64, 64, 64)})
    assert (
        "made with objective.projector = [32, 32, 32] and this command asks for [64, 64, 64]: resume with" in sentence
    )
    assert contents(trained.out) == before


def test_resuming_with_other_data_is_refused(trained: Any, fail: Fail, own_data: Path) -> None:
    manifest = read_manifest(own_data, "train")
    dataclasses.replace(manifest, plan_sha256="0" * 64, source="something else").write(own_data)
    sentence = fail(trained, resume=True, data_dir=own_data)
    assert "was trained on other data (3DIEBench-P" in sentence and str(own_data) in sentence
    assert "resume with the first --data-dir" in sentence


def test_a_damaged_config_of_a_run_is_named(trained: Any, fail: Fail) -> None:
    for content, named in (("{", "is not valid JSON"), ("[" * 100_000, "levels deep"), ("[]", "not an object")):
        (trained.out / "config.json").write_text(content)
        sentence = fail(trained, resume=True)
        assert str(trained.out / "config.json") in sentence and named in sentence
        assert "delete this file to resume" in sentence


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(trained: Any, fail: Fail) -> None:
    losses = event_lines(trained.out)
    newest = list_checkpoints(trained.out / "checkpoints")[-1]
    os.truncate(newest / "objective.safetensors", 1000)
    sentence = fail(trained, resume=True)
    assert f"checkpoint {newest} is damaged" in sentence and "delete this folder and resume" in sentence
    assert event_lines(trained.out) == losses
    shutil.rmtree(newest)
    train_only(sie, dataclasses.replace(trained, resume=True))
    assert event_lines(trained.out) == losses


def test_a_class_is_learnt_of_two_classes_at_least(small_config: SmallConfig) -> None:
    data: Any = SimpleNamespace(train=SimpleNamespace(class_names=("mug",)))
    config = small_config(supervised, actions=())
    with pytest.raises(UserError, match=r"number of classes of the data is 1, .* give --objective\.class-weight 0"):
        supervised.build(config, data)
