"""The benchmark of loading: what it compares gives the same pairs, and its report has what it promises."""

import importlib.util
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from loader_scaling import counts_up_to

from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import UserError
from ssl_equi.geometry.rotations import relative_quat

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_data.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_bench_data", TOOL)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tool: ModuleType) -> Callable[..., Any]:
    def configure(**changes: Any) -> Any:
        sizes = {"objects": 8, "views": 3, "batch_size": 4, "images": 4, "rounds": 1, "epochs": 1, "threads": 1}
        return tool.Config(**(sizes | changes))

    return configure


def test_all_ways_of_loading_give_the_same_images_and_rotations(
    tool: ModuleType, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    tool.make_objects(tiny(), tmp_path)
    dataset = ShardDataset(tmp_path / "shards", "train")
    stored = np.empty((8, 3, 256, 256, 3), dtype=np.uint8)
    dataset.read_views(np.arange(8), np.tile(np.arange(3), (8, 1)), stored)
    quats_xyzw = torch.from_numpy(np.array(dataset.quats_xyzw))

    files = tool.FilePairs(tmp_path / "files", 3)
    assert len(files) == 8 and len(list(tool.stream([str(p) for p in (tmp_path / "shards").glob("*.tar")]))) == 8
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tool.MEAN_RGB, tool.STD_RGB))
    np.random.seed(0)
    for index in range(8):
        row = dataset.keys.tolist().index(f"object_{index:05d}".encode())
        *images, rotation = files[index]
        pixels = [((image * std + mean) * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
        views = [next(v for v in range(3) if (stored[row, v] == image).all()) for image in pixels]
        expected = relative_quat(quats_xyzw[row, views[0]], quats_xyzw[row, views[1]])
        torch.testing.assert_close(rotation, expected, atol=1e-6, rtol=0)
    for images, latents in tool.stream([str(p) for p in (tmp_path / "shards").glob("*.tar")]):
        assert images.shape == (2, 256, 256, 3)
        found = np.argwhere((dataset.latents[:, :, None] == latents[None, None].astype(np.float32)).all(-1))
        for view in range(2):
            row, column = next((row, column) for row, column, of in found if of == view)
            assert (stored[row, column] == images[view]).all()


def test_every_contestant_does_the_share_that_it_reports(
    tool: ModuleType, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny()
    pictures = tool.make_objects(config, tmp_path)
    dataset = ShardDataset(tmp_path / "shards", "train")
    assert tool.reading(dataset, 12, 4)() == 12
    assert tool.worker_batches(tool.FilePairs(tmp_path / "files", 3), config)() == 8
    assert tool.worker_batches(tool.stream([str(p) for p in (tmp_path / "shards").glob("*.tar")]), config)() == 8
    with ThreadPoolExecutor(1) as pool:
        assert tool.decoding(pictures, 12, 4, 1, pool)() == 12
    with stored_loader(dataset, global_batch_size=4, seed=0, threads=1, prefetch=1, pin_memory=False) as loader:
        run = tool.loading(loader, 12)
        for _ in range(2):
            assert min(run()) > 0


def test_the_report_has_ratios_ranges_and_targets(tool: ModuleType, tiny: Callable[..., Any], tmp_path: Path) -> None:
    tool.main(tiny(json=tmp_path / "report.json", folder=tmp_path / "data"))
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
    targets = {name: row["target"] for name, row in rows.items() if row["target"] is not None}
    assert targets == {
        "CPU time, our reader / decoding, one thread": 1.15,
        "CPU time, our loader / decoding": 1.15,
        "wall clock, our loader / decoding": 1.3,
        "CPU time, our loader, processes / decoding": 1.15,
        "wall clock, our loader, processes / decoding": 1.3,
        "CPU time, files, PIL / our loader": 8,
        "CPU time, WebDataset / our loader": 5,
        "images: CPU time, our reader / decoding": 1.1,
    }


def test_sizes_that_give_no_batch_are_refused_before_data_are_made(tool: ModuleType, tiny: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="3 objects, 4 images, 1 threads, 1 rounds: give at least a batch of 4 of each"):
        tool.main(tiny(objects=3))


def test_the_loader_is_timed_with_every_number_of_threads_and_processes(
    tool: ModuleType, tiny: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling = tool.ScalingConfig(most=2, image_size=16, batches=2, rounds=1)
    report = tmp_path / "scaling.json"
    tool.main(tiny(measure="scaling", scaling=scaling, folder=tmp_path / "set", json=report))
    rows = {row["name"]: row["ratio"] for row in json.loads(report.read_text())["rows"]}
    numbers = ("1 thread", "2 threads", "1 process", "2 processes")
    assert list(rows) == [
        *(f"images per second, {number}" for number in numbers), "2 threads / 1 thread", "2 processes / 1 process",
    ]  # fmt: skip
    speeds = [rows[f"images per second, {number}"] for number in numbers]
    assert rows["2 threads / 1 thread"] == pytest.approx(speeds[1] / speeds[0])
    assert min(speeds) > 0 and "our loader, views of 16 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_numbers_double_up_to_the_largest(most: int, counts: list[int]) -> None:
    assert counts_up_to(most) == counts
