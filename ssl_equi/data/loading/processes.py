"""Worker processes that decode batches into a shared ring: the side of the process that trains."""

import json
import multiprocessing
import multiprocessing.util
import os
import queue
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.loading.ring import BatchBuffer, BufferShape, DecodedRows
from ssl_equi.data.loading.shared_ring import SharedRing
from ssl_equi.data.loading.worker import SIGNALS_OF_THE_PARENT, checked_reply, command_bytes, rows_of_reply, serve
from ssl_equi.errors import DataError, UserError

_SECONDS_TO_END = 5.0
_LONGEST_TEMPORARY_FOLDER = 60
_DATA_SETS = "ssl_equi.data.sources"  # imports all kinds of them, so that no worker has to


class ProcessDecoder:
    """A `ssl_equi.data.loading.ring.Decoder` of `lanes` processes that share a ring of `buffer_count` buffers.

    The workers are forked from a clean server process and not from this one, so CUDA and threads here don't matter.
    Each opens the data set anew from its pickled form, and runs the script of this process again only if the data set
    is of a class that is defined there. They end with `close`, with the garbage collection of this object, and when
    this process ends in whatever way; signals that ask for an end don't end them. `pin_memory` pins the ring for copies
    to a GPU; `report_bad_records` returns the errors of bad records instead of raising them.

    Raises UserError if the data set can't be pickled, shared memory is short or can't be pinned; from `decode` and
    `check`, when a worker has ended.
    """

    def __init__(
        self,
        dataset: ViewCollection,
        shape: BufferShape,
        *,
        lanes: int,
        buffer_count: int,
        pin_memory: bool,
        report_bad_records: bool,
    ) -> None:
        self.lanes = lanes
        self._fingerprint = dataset.fingerprint
        self._ring = SharedRing(shape, buffer_count)
        self._workers: list[_Worker] = []
        # Python ends child processes by a signal, which ours ignore, after it has called finalizers of such a priority.
        self._end = multiprocessing.util.Finalize(self, _end, (self._workers, self._ring), exitpriority=0)
        try:
            pickled = _pickled(dataset)
            if pin_memory:
                self._ring.pin()
            self._is_pinned = pin_memory
            start_server()
            with nullcontext() if b"__main__" in pickled else _script_left_out():
                for number in range(lanes):
                    self._workers.append(_Worker(number, (self._ring, report_bad_records, os.getpid())))
            for worker in self._workers:
                worker.send_dataset(pickled)
        except BaseException:
            self._end()
            raise
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def buffers(self) -> Sequence[BatchBuffer]:
        """The shared buffers."""
        return self._ring.buffers

    def decode(self, buffer_number: int, rows: range) -> DecodedRows:
        """See `ssl_equi.data.loading.ring.Decoder`."""
        worker = self._idle.get()
        try:
            worker.check_dataset(self._fingerprint)
            return rows_of_reply(worker.ask(command_bytes(buffer_number, rows)), str(worker))
        finally:
            self._idle.put(worker)

    def check(self) -> None:
        """Raise UserError if a worker has ended."""
        ended = wait([worker.process.sentinel for worker in self._workers], timeout=0)
        for worker in self._workers:
            if worker.is_dead or worker.process.sentinel in ended:
                raise worker.death()

    def close(self) -> None:
        """End the workers and give the memory back; a second call does nothing."""
        if self._end.still_active() and self._is_pinned:
            self._ring.unpin()
        self._end()


def start_server() -> None:
    """Starts the process that workers are forked from, which imports what they need meanwhile; once is enough.

    Signals that ask this process to stop, and that a terminal or a scheduler sends to all processes of a job, stay
    blocked there: a run that they stop still needs its workers for the last step.
    """
    make_room_for_sockets()
    forkserver.set_forkserver_preload([serve.__module__, _DATA_SETS])
    for ensure_running in (resource_tracker.ensure_running, forkserver.ensure_running):
        # One by one, for the first unblocks them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_OF_THE_PARENT)
        try:
            with _script_left_out():
                ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _script_left_out() -> Iterator[None]:
    """Processes that are started within the block don't run the script of this one again, which may import much."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _pickled(dataset: ViewCollection) -> bytes:
    try:
        return bytes(ForkingPickler.dumps(dataset))
    except Exception as error:  # objects that can't be pickled raise errors of many types
        raise UserError(
            f"{type(dataset).__name__} cannot be sent to worker processes ({error}): decode in threads, with 0 workers"
        ) from error


def make_room_for_sockets() -> None:
    """Lets multiprocessing put its sockets in /tmp where TMPDIR is too long for their addresses.

    The address of a Unix socket has 108 bytes on Linux and 104 on macOS, of which multiprocessing's own names take 33.

    Raises UserError if there is no /tmp to go to.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_TEMPORARY_FOLDER:
        return
    usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # made once a process, and kept
    except OSError as error:
        raise UserError(
            f"the temporary folder {usual} has a name of over {_LONGEST_TEMPORARY_FOLDER} bytes, and /tmp can't be "
            f"used ({error.strerror}): set TMPDIR to a shorter folder, or decode in threads, with 0 workers"
        ) from error
    finally:
        tempfile.tempdir = usual


class _Worker:
    """One worker process and this side's end of its pipe."""

    def __init__(self, number: int, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("forkserver")
        self.number = number
        self.is_dead = False  # once its exit status was read, which the sentinel tells of
        self._opening: dict[str, Any] | None = None  # the first reply
        self._exit_code_lock = threading.Lock()
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=serve, args=(theirs, *arguments), name=f"decode-{number}", daemon=True
        )
        try:
            self.process.start()
        finally:
            theirs.close()

    def __str__(self) -> str:
        return f"worker process {self.number} of the loader (pid {self.process.pid})"

    def send_dataset(self, pickled: bytes) -> None:
        """Let the worker open the data set."""
        try:
            self._connection.send_bytes(pickled)
        except ConnectionError:
            raise self.death() from None

    def check_dataset(self, fingerprint: str) -> None:
        """Wait until the worker has opened the data set; DataError if that is another one by now."""
        if self._opening is None:
            self._opening = self._reply()
        found = checked_reply(self._opening, str(self))["fingerprint"]
        if found != fingerprint:
            raise DataError(
                f"{self} opened a data set with fingerprint {found} where this run has {fingerprint}: the files were "
                f"changed, start again"
            )

    def ask(self, command: bytes) -> dict[str, Any]:
        """Send a command and wait for the reply to it."""
        try:
            self._connection.send_bytes(command)
        except ConnectionError:
            raise self.death() from None
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        if self._connection not in wait([self._connection, self.process.sentinel]):
            raise self.death()
        try:
            return json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise self.death() from None

    def death(self) -> UserError:
        """How the worker ended, as an error."""
        with self._exit_code_lock:
            self.is_dead = True
            self.process.join(_SECONDS_TO_END)
            code = self.process.exitcode
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            cure = "a lack of memory does so: give fewer workers" if -code == signal.SIGKILL else "resume the run"
        else:
            how, cure = f"ended with exit status {code}", "see what it printed, then resume the run"
        return UserError(f"{self} {how}: {cure}")

    def hang_up(self) -> None:
        """Let the worker end once it has done what it is at."""
        self._connection.close()

    def end(self) -> None:
        """Wait for the worker to end, and make it."""
        self.process.join(_SECONDS_TO_END)
        if self.process.exitcode is None:
            self.process.kill()
        self.process.join()
        self.process.close()


def _end(workers: list[_Worker], ring: SharedRing) -> None:
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.end()
    workers.clear()
    ring.close()
