"""Worker processes of the loader: the same batches as threads give, and what happens when something ends."""

import errno
import gc
import itertools
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection, arbitrary_address, wait
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ssl_equi.data.derived import TurnedViews
from ssl_equi.data.images import Canvas
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.processes import make_room_for_sockets
from ssl_equi.data.loading.ring import BufferShape
from ssl_equi.data.loading.shared_ring import SharedRing
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError, UserError
from tests.data.numbered_objects import NumberedObjects
from tests.launched import is_running, wait_until_gone


def _pids(loader: Loader) -> list[int]:
    return [worker.process.pid for worker in loader.fetcher.decoder._workers]


def _take(dataset, count: int, **options) -> tuple[list[dict[str, torch.Tensor]], int]:
    """Copies of the tensors of `count` batches, and how many records were skipped."""
    with stored_loader(dataset, **({"global_batch_size": 7, "views": 1, "seed": 1} | options)) as loader:
        batches = [
            {name: value.clone() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
            for batch in itertools.islice(loader.batches(), count)
        ]
        return batches, loader.skipped


def _image_folder(folder: Path, image_bytes) -> ImageFolder:
    for number in range(8):
        path = folder / "train" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, size=(20 + number, 30)))
    return ImageFolder(folder, "train")


@pytest.mark.parametrize("kind", ["rendered", "turned", "image shards", "image folder"])
def test_processes_give_the_batches_of_threads(kind, shared_split, picture_shards, tmp_path, image_bytes) -> None:
    dataset = {
        "rendered": lambda: ShardDataset(shared_split, "train"),
        "turned": lambda: TurnedViews(NumberedObjects(20)),
        "image shards": lambda: SingleViews(ImageShards(picture_shards, "train"), Canvas(40)),
        "image folder": lambda: SingleViews(_image_folder(tmp_path / "images", image_bytes), Canvas(40)),
    }[kind]()
    expected, _ = _take(dataset, 5)
    for workers in (1, 2, 9):  # the last more than a batch has objects
        found, _ = _take(dataset, 5, workers=workers, prefetch=1)
        for found_batch, expected_batch in zip(found, expected, strict=True):
            assert found_batch.keys() == expected_batch.keys()
            for name, tensor in expected_batch.items():
                assert torch.equal(found_batch[name], tensor), name
    assert ("content_sizes" in expected[0]) == kind.startswith("image")


def test_data_set_that_a_worker_cannot_open_or_finds_changed_is_an_error(own_split, shared_split) -> None:
    dataset = ShardDataset(own_split, "train")
    (own_split / "train.manifest.json").unlink()
    with pytest.raises(DataError, match=r"there is no manifest .*train\.manifest\.json"):
        _take(dataset, 1, workers=1)
    dataset = ShardDataset(shared_split, "train")
    dataset.fingerprint = "another"
    with pytest.raises(DataError, match="where this run has another: the files were changed"):
        _take(dataset, 1, workers=1)


def test_long_temporary_folder_leaves_room_for_the_addresses_of_sockets(tmp_path, monkeypatch) -> None:
    long = tmp_path / ("a_folder_of_a_cluster_job_" * 4)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    make_room_for_sockets()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(arbitrary_address("AF_UNIX"))
    assert tempfile.gettempdir() == str(long), "others keep the user's folder"


def test_data_set_that_cannot_be_pickled_is_refused_at_once() -> None:
    dataset = NumberedObjects(20)
    dataset.lock = threading.Lock()
    with pytest.raises(UserError, match="NumberedObjects cannot be sent to worker processes"):
        stored_loader(dataset, global_batch_size=4, seed=0, workers=2)


@pytest.mark.parametrize("when", ["before the first batch", "between batches"])
def test_killed_worker_ends_the_run_with_the_next_batch(when) -> None:
    with stored_loader(NumberedObjects(40), global_batch_size=4, seed=0, workers=2, prefetch=3) as loader:
        batches = loader.batches()
        if when == "between batches":
            next(batches)
        os.kill(_pids(loader)[1], signal.SIGKILL)
        wait([loader.fetcher.decoder._workers[1].process.sentinel])
        with pytest.raises(
            UserError,
            match=rf"worker process 1 of the loader \(pid {_pids(loader)[1]}\) was ended by SIGKILL: a lack",
        ):
            next(batches)
        pids = _pids(loader)
    wait_until_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_that_ask_a_run_to_stop_leave_it_its_workers(number: signal.Signals) -> None:
    """A terminal, and a scheduler, send them to all processes of a job; the run still has steps to do."""
    expected, _ = _take(NumberedObjects(40), 6)
    with stored_loader(NumberedObjects(40), global_batch_size=7, views=1, seed=1, workers=2, prefetch=0) as loader:
        batches = loader.batches()
        assert torch.equal(next(batches).images, expected[0]["images"])
        for pid in (*_pids(loader), forkserver._forkserver._forkserver_pid):  # type: ignore[attr-defined]
            os.kill(pid, number)
        for batch in expected[1:]:
            assert torch.equal(next(batches).images, batch["images"])
    found, _ = _take(NumberedObjects(40), 1, workers=2)
    assert torch.equal(found[0]["images"], expected[0]["images"])


OWN_SET = """
from pathlib import Path
from tests.data.numbered_objects import NumberedObjects
from tests.launched import is_running, wait_until_gone
Path(__file__).with_suffix(".ran").touch()
class Own(NumberedObjects): ...
"""


@pytest.mark.parametrize("own", [False, True])
def test_workers_run_the_script_only_if_the_data_set_is_of_a_class_of_it(own: bool, tmp_path, monkeypatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(OWN_SET)
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = str(script), None
    exec(compile(OWN_SET, script, "exec"), vars(main))
    script.with_suffix(".ran").unlink()
    monkeypatch.setitem(sys.modules, "__main__", main)
    dataset = main.Own(20) if own else NumberedObjects(20)
    expected, _ = _take(dataset, 2)
    found, _ = _take(dataset, 2, workers=1)
    assert all(torch.equal(mine["images"], theirs["images"]) for mine, theirs in zip(found, expected, strict=True))
    assert script.with_suffix(".ran").exists() == own
    assert sys.modules["__main__"] is main


def test_worker_that_exits_or_fails_within_a_batch_is_an_error() -> None:
    with pytest.raises(UserError, match=r"worker process \d of the loader \(pid \d+\) ended with exit status 3"):
        _take(NumberedObjects(14, 5, "exit"), 3, workers=2)
    with pytest.raises(RuntimeError, match=r"worker process \d of the loader \(pid \d+\) failed:[^$]*no such number"):
        _take(NumberedObjects(14, 5, "no such number"), 3, workers=2)


def test_close_and_garbage_collection_end_the_workers_and_free_the_memory() -> None:
    loader = stored_loader(NumberedObjects(20), global_batch_size=4, seed=0, workers=2)
    batch, pids = next(loader.batches()), _pids(loader)
    loader.close()
    loader.close()
    wait_until_gone(pids)
    assert (batch.images[..., 0] == batch.images[:, :1, :1, :1, 0]).all()  # memory that is still seen stays there
    with pytest.raises(ValueError, match="was closed"):
        loader.batches()

    loader = stored_loader(NumberedObjects(20), global_batch_size=4, seed=0, workers=2)
    batches = loader.batches()
    next(batches)
    pids = _pids(loader)
    del loader, batches, batch
    gc.collect()
    wait_until_gone(pids)
    gc.collect()
    open_files = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert open_files and not any("ssl_equi_batches" in name for name in open_files)


def test_workers_of_a_loader_that_is_left_open_end_with_the_process() -> None:
    """With what Python calls before it ends child processes and waits for them."""
    loader = stored_loader(NumberedObjects(20), global_batch_size=4, seed=0, workers=2)
    next(loader.batches())
    pids = _pids(loader)
    multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]
    wait_until_gone(pids)
    assert pids and not any(map(is_running, pids))
    loader.close()


def _train_until_killed(to_test: Connection) -> None:
    """Tells the test the workers' process ids, and that of another child, which holds their pipes open too."""
    loader = stored_loader(NumberedObjects(40), global_batch_size=4, seed=0, workers=2)
    next(loader.batches())
    other = os.fork()
    if other != 0:
        to_test.send([*_pids(loader), other])
    time.sleep(60)


def test_workers_notice_that_their_parent_was_killed() -> None:
    context = multiprocessing.get_context("forkserver")
    from_parent, to_test = context.Pipe(duplex=False)
    parent = context.Process(target=_train_until_killed, args=(to_test,))
    parent.start()
    *workers, other = from_parent.recv()
    try:
        assert len(workers) == 2 and all(map(is_running, workers))
        parent.kill()
        wait_until_gone(workers)
    finally:
        os.kill(other, signal.SIGKILL)
    parent.join()


SHAPE = BufferShape(batch_size=4, views=2, image_size=(8, 8), fills_image=False)


def test_ring_is_pinned_buffer_by_buffer_and_refusal_is_an_error(monkeypatch) -> None:
    pinned: list[int] = []

    def register(address: int, size: int, flags: int) -> int:
        assert size == 4 * 2 * 8 * 8 * 3 and address % os.sysconf("SC_PAGE_SIZE") == 0 and flags == 0
        pinned.append(address)
        return 2 if len(pinned) == refused_at else 0

    cuda = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=lambda address: pinned.remove(address))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    ring, refused_at = SharedRing(SHAPE, 3), 0
    ring.pin()
    assert pinned == [buffer.images.data_ptr() for buffer in ring.buffers]
    ring.unpin()
    assert pinned == []
    refused_at = 3
    with pytest.raises(
        UserError, match=r"CUDA cannot pin the shared buffers of the loader \(cudaHostRegister: error 2"
    ):
        ring.pin()
    assert len(pinned) == 1  # the refused one
    ring.close()


def test_too_little_shared_memory_is_an_error(monkeypatch) -> None:
    def no_space(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match="3 batches of 16,384 bytes do not fit into shared memory"):
        SharedRing(SHAPE, 3)


def test_buffers_of_the_ring_do_not_overlap() -> None:
    ring = SharedRing(SHAPE, 2)
    arrays = [
        array
        for buffer in ring.buffers
        for array in (buffer.object_indices, buffer.view_indices, buffer.images.numpy(), buffer.content_sizes)
    ]
    for number, array in enumerate(arrays):
        array[...] = number
    assert all((array == number).all() for number, array in enumerate(arrays))
    ring.close()
