"""One damaged image under a run: it ends with a sentence, or, if asked, goes on without it and says so."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes import sie
from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.cli import explain_errors
from ssl_equi.data.order import BatchOrder
from ssl_equi.data.shards.reader import ShardDataset
from tests.data.image_sets import flip
from tests.fakes import SmallConfig, event_lines, numbers, train_only

pytestmark = pytest.mark.usefixtures("quick_probes")
BAD_OBJECT = 7


@pytest.fixture
def damaged_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny set in which a byte of every view of one training object has changed."""
    folder = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    dataset = ShardDataset(folder, "train")
    for offset in dataset._index.offsets[BAD_OBJECT].tolist():
        flip(folder / shard_of_the_bad_object(dataset), offset + 300)
    return folder


def shard_of_the_bad_object(dataset: ShardDataset) -> str:
    return dataset.manifest.shards[int(dataset._index.shard_numbers[BAD_OBJECT])].name


def steps_with_the_bad_object(folder: Path, steps: int) -> list[int]:
    dataset = ShardDataset(folder, "train")
    order = BatchOrder(dataset.num_objects, dataset.num_views, global_batch_size=8, views=2, seed=0)
    return [step for step in range(steps) if BAD_OBJECT in order.batch(step)[0]]


def sentence_of(config: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What a run that fails prints last, with exit status 1."""
    with pytest.raises(SystemExit) as stop:
        explain_errors(lambda: sie.main(config))
    assert stop.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_ends_at_a_bad_record_and_goes_on_without_it_or_once_it_is_restored(
    small_config: SmallConfig, tiny_data: Path, damaged_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = ShardDataset(damaged_data, "train")
    bad_steps = steps_with_the_bad_object(damaged_data, 6)
    assert len(bad_steps) == 2, "once in each of two epochs"

    # By default the run ends, with one sentence that names shard and key.
    config = small_config(
        sie, out=tmp_path / "run", data_dir=damaged_data, save_every=1, compare_with_random=False, max_skipped=1
    )
    sentence = sentence_of(config, capsys)
    assert f"image '{dataset.keys[BAD_OBJECT].decode()}.v0" in sentence
    assert f"{damaged_data / shard_of_the_bad_object(dataset)} does not match its CRC-32C" in sentence
    assert len(event_lines(tmp_path / "run")) == bad_steps[0] > 0
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert newest.name == f"step-{bad_steps[0]:08d}" and read_state(newest, "run")["step"] == bad_steps[0]

    # With whole data it ends as if nothing had happened.
    restored = Path(shutil.copytree(tmp_path / "run", tmp_path / "restored"))
    train_only(sie, dataclasses.replace(config, out=restored, data_dir=tiny_data, resume=True))
    train_only(sie, dataclasses.replace(config, out=tmp_path / "intact", data_dir=tiny_data))
    assert event_lines(restored) == event_lines(tmp_path / "intact")

    # Skipping is no other run: the broken one goes on as one that skipped from the start.
    capsys.readouterr()
    sie.main(dataclasses.replace(config, resume=True, on_bad_record="skip"))
    shown = capsys.readouterr().out
    train_only(sie, dataclasses.replace(config, out=tmp_path / "whole", on_bad_record="skip"))
    assert event_lines(tmp_path / "run") == event_lines(tmp_path / "whole")

    speeds = numbers(tmp_path / "whole", "speed")
    for stage in ("read_thread_seconds", "decode_thread_seconds", "augment_seconds"):
        assert all(speed[stage] > 0 for speed in speeds)
    assert [speed["records_skipped"] for speed in speeds] == [
        int(np.searchsorted(bad_steps, step, side="right")) for step in range(6)
    ]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["run"]["records_skipped"] == 2
    assert " · 2 skipped" in shown
    assert "without 1 of 24 objects, which can't be read" in " ".join(shown.split())


def test_a_run_ends_beyond_the_limit(
    small_config: SmallConfig, damaged_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = small_config(sie, out=tmp_path / "run", data_dir=damaged_data, on_bad_record="skip", max_skipped=0)
    assert "1 bad records were skipped on rank 0, more than max_skipped = 0" in sentence_of(limited, capsys)
    negative = small_config(sie, out=tmp_path / "run", max_skipped=-1)
    assert sentence_of(negative, capsys) == "error: --max-skipped is -1: give a number from 0 to 1,000,000,000"


def test_what_a_run_is_judged_on_is_never_skipped(
    small_config: SmallConfig, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accuracy on fewer objects would be another number."""
    folder = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    flip(folder / "test-000000.tar", int(ShardDataset(folder, "test")._index.offsets[0, 0]) + 300)
    config = small_config(sie, out=tmp_path / "run", data_dir=folder, on_bad_record="skip", steps=1)
    assert f"{folder / 'test-000000.tar'} does not match its CRC-32C" in sentence_of(config, capsys)
