"""Options that say how a run gets at its views: what they give, and what doesn't go together."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from ssl_equi.data import cache
from ssl_equi.data.loading import choice
from ssl_equi.data.loading.gpu import GpuFetcher
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.rendered import RenderedFetcher
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.errors import RunError, UserError
from ssl_equi.options import check_options
from ssl_equi.training import config as run_config
from ssl_equi.training import pretraining
from ssl_equi.training.config import (
    FREE_OPTIONS,
    MOST_THREADS,
    MOST_WORKERS,
    LoaderSize,
    PretrainingConfig,
    check_run,
    loader_size,
)
from ssl_equi.training.pretraining import image_source, open_loader
from tests.fakes import Processes

TWO_THREADS = LoaderSize(threads=2, workers=0)


def config_of(data_dir: Path, **options: Any) -> PretrainingConfig:
    return PretrainingConfig(data_dir=data_dir, image_size=32, batch_size=8, **options)


def data_of(config: PretrainingConfig) -> DataSource:
    return open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size)


def loader_of(config: PretrainingConfig, data: DataSource, size: LoaderSize = TWO_THREADS) -> Loader:
    """Pairs of views for the second of two processes."""
    return open_loader(config, data, Processes(rank=1, world_size=2), size, stored_views=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"render_views": True, "dataset": "folder"}, "--render-views is given and --dataset folder consists of files"),
        ({"render_views": True, "dataset": "3diebench"}, "choose 3diebench-p or 3diebench-pt, or leave it out"),
        ({"fresh_views": True}, "--fresh-views is given and stored views are always the same: add --render-views"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_data_are_opened(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RunError, match=problem):
        check_run(PretrainingConfig(**options))


def test_where_decoded_views_are_kept_is_asked_of_cached_ones_only() -> None:
    with pytest.raises(UserError, match="--cache-in is memory and has no effect: add --cache-decoded, or leave it out"):
        check_options(PretrainingConfig(cache_in="memory"), PretrainingConfig())
    check_options(PretrainingConfig(cache_in="memory", cache_decoded=True), PretrainingConfig())


SOURCES: dict[str, dict[str, Any]] = {
    "--render-views": {"render_views": True},
    "--cache-decoded": {"cache_decoded": True},
    "--decode-on cuda": {"decode_on": "cuda"},
    "--reading streamed": {"reading": "streamed"},
    "--loader-workers": {"loader_workers": 2},
}


@pytest.mark.parametrize(("first", "second"), itertools.combinations(SOURCES, 2))
def test_two_sources_of_images_at_once_are_refused(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = PretrainingConfig(**SOURCES[first], **SOURCES[second])
    if (first, second) == ("--cache-decoded", "--loader-workers"):
        check_run(config)
        return
    with pytest.raises(RunError, match=f"{first} and {second} are given, .* give at most one of them"):
        check_run(config)


def test_what_lies_on_the_device_is_read_by_no_processes() -> None:
    with pytest.raises(RunError, match="--cache-decoded and --loader-workers are given"):
        check_run(PretrainingConfig(cache_decoded=True, cache_in="device", loader_workers=2))


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "--decode-on cuda"])
def test_bad_records_may_be_skipped_with_every_source(source: str) -> None:
    check_run(PretrainingConfig(**SOURCES[source], on_bad_record="skip"))


def test_decoding_on_a_gpu_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="--decode-on cuda needs an NVIDIA GPU and PyTorch sees none: leave it out"):
        check_run(PretrainingConfig(decode_on="cuda"))


@pytest.mark.parametrize(
    "way",
    [
        {}, {"render_views": True}, {"decode_on": "cuda"}, {"reading": "streamed"},
        {"cache_decoded": True, "cache_in": "device"},
    ],
    ids=str,
)  # fmt: skip
def test_each_way_to_the_views_keeps_incomplete_batches(
    way: dict[str, Any], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = functools.partial(decode_jpeg, mode=ImageReadMode.RGB)
    monkeypatch.setattr(choice, "nvjpeg_decoder", lambda device: decode)
    whole_only = dataclasses.replace(config_of(tiny_data, **way), batch_size=10)
    keeping = dataclasses.replace(whole_only, keep_incomplete_batch=True)
    data = open_data(keeping.dataset, tiny_data, keeping.evaluation_split, keeping.image_size, keeping.reading)
    for config, sizes in ((whole_only, [5, 5, 5, 5]), (keeping, [5, 5, 2, 5])):
        with loader_of(config, data) as loader:
            assert [len(batch.images) for batch in itertools.islice(loader.batches(), 4)] == sizes
            assert loader.steps_per_epoch == len(set(sizes)) + 1


@pytest.mark.parametrize(
    "way",
    [
        {"decode_on": "cuda"}, {"cache_decoded": True}, {"cache_decoded": True, "cache_in": "memory"},
        {"cache_decoded": True, "cache_in": "device"},
    ],
    ids=str,
)  # fmt: skip
def test_decoding_on_a_device_and_the_cache_give_the_batches_that_are_stored(
    way: dict[str, Any], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which way it is may be chosen anew on resume only for the cache."""
    decode = functools.partial(decode_jpeg, mode=ImageReadMode.RGB)
    monkeypatch.setattr(choice, "nvjpeg_decoder", lambda device: decode)
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / name)
    config = config_of(tiny_data)
    data, other = data_of(config), dataclasses.replace(config, **way)
    with loader_of(config, data) as stored, loader_of(other, data) as loader:
        assert isinstance(loader.fetcher, GpuFetcher) == ("decode_on" in way)
        assert loader.steps_per_epoch == stored.steps_per_epoch
        for mine, theirs in zip(itertools.islice(loader.batches(4), 3), stored.batches(4)):
            assert torch.equal(mine.images, theirs.images) and torch.equal(mine.latents, theirs.latents)
    caches = list((tmp_path / "ssl_equi" / "decoded-views").glob("train-*/pixels.bin"))
    assert len(caches) == (way == {"cache_decoded": True})
    assert ("cache_decoded" in way) == all(option in FREE_OPTIONS for option in way)


@pytest.mark.parametrize("dataset", ["3diebench-p", "3diebench-pt"])
def test_rendered_batches_of_a_rank_are_the_stored_ones(dataset: Any, tiny_data: Path, tiny_moving_data: Path) -> None:
    config = config_of(tiny_data if dataset == "3diebench-p" else tiny_moving_data, dataset=dataset)
    data, rendering = data_of(config), dataclasses.replace(config, render_views=True)
    with loader_of(config, data) as stored, loader_of(rendering, data) as rendered:
        assert isinstance(rendered.fetcher, RenderedFetcher) and rendered.steps_per_epoch == stored.steps_per_epoch == 3
        mine, theirs = next(rendered.batches(4)), next(stored.batches(4))
    assert mine.images.shape == theirs.images.shape == (4, 2, 32, 32, 3)
    for name in ("latents", "quat_xyzw", "labels", "object_indices", "view_indices"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("options", "cores", "expected"),
    [
        ({}, 16, LoaderSize(MOST_THREADS, 14)),
        ({}, 64, LoaderSize(MOST_THREADS, MOST_WORKERS)),
        ({}, 4, LoaderSize(2, 2)),
        ({}, 3, LoaderSize(2, 0)),  # one process decodes less than two threads
        ({}, 1, LoaderSize(2, 0)),
        ({"loader_workers": 40}, 16, LoaderSize(MOST_THREADS, 40)),
        ({"loader_workers": 0}, 16, LoaderSize(MOST_THREADS, 0)),
        ({"loader_threads": 3}, 16, LoaderSize(3, 0)),
        ({"cache_decoded": True}, 16, LoaderSize(MOST_THREADS, 0)),
        ({"dataset": "cifar10"}, 16, LoaderSize(MOST_THREADS, 0)),
        ({"render_views": True}, 16, LoaderSize(MOST_THREADS, 0)),
        ({"decode_on": "cuda"}, 8, LoaderSize(6, 0)),
        ({"reading": "streamed"}, 16, LoaderSize(MOST_THREADS, 0)),
    ],
)
def test_a_run_on_a_gpu_has_as_many_loader_processes_as_cores_are_left(
    options: dict[str, Any], cores: int, expected: LoaderSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_config, "share_of_cores", lambda: cores)
    assert loader_size(PretrainingConfig(**options), CUDA) == expected


def test_a_run_on_the_cpu_has_two_loader_threads_and_processes_only_if_asked_for() -> None:
    cpu = torch.device("cpu")
    assert loader_size(PretrainingConfig(), cpu) == LoaderSize(2, 0)
    assert loader_size(PretrainingConfig(loader_threads=5), cpu) == LoaderSize(5, 0)
    assert loader_size(PretrainingConfig(loader_workers=3), cpu) == LoaderSize(2, 3)


@pytest.mark.parametrize(
    ("options", "device", "free", "expected"),
    [
        ({}, CUDA, 2**30, "device"),
        ({}, CUDA, 2**20, None),  # a quarter of what is free is less than the set
        ({}, torch.device("cpu"), 2**30, None),
        ({"loader_workers": 2}, CUDA, 2**30, None),
        ({"loader_threads": 2}, CUDA, 2**30, None),
        ({"cache_decoded": True}, CUDA, 2**30, "disk"),
        ({"render_views": True}, CUDA, 2**30, None),
    ],
)
def test_a_small_set_lies_on_the_gpu_where_nothing_else_is_asked_for(
    options: dict[str, Any], device: torch.device, free: int, expected: str | None, tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2**30))
    config = dataclasses.replace(config_of(tiny_data), **options)
    source = image_source(config, data_of(config).train, LoaderSize(2, 2), device)
    assert source.cache_decoded == expected and (source.workers == 0) == (expected == "device")
    monkeypatch.setattr(pretraining, "LARGEST_KEPT", 1)
    assert image_source(config, data_of(config).train, LoaderSize(2, 2), device).cache_decoded != "device"


def test_processes_that_decode_are_said(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(choice, "stored_loader", lambda dataset, **options: opened.append(options))
    config = config_of(tiny_data)
    data = data_of(config)
    loader_of(config, data)
    loader_of(config, data, LoaderSize(8, 3))
    assert [(options["threads"], options["workers"]) for options in opened] == [(2, 0), (8, 3)]
    assert capsys.readouterr().out == "3 processes decode the images\n"
