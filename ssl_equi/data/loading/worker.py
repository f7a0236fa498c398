"""A worker process of the loader: decodes rows of batches into a shared ring until its parent is done or gone.

What goes through the pipe: to the worker, once the data set and then the number of a buffer and a range of its rows;
back, JSON that says which records are bad and how long it took, or what went wrong.
"""

import gc
import json
import os
import signal
import struct
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.loading.ring import DecodedRows, decode_rows
from ssl_equi.data.loading.shared_ring import SharedRing
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError, LostShardError

SIGNALS_OF_THE_PARENT = (
    signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []),
)  # fmt: skip
"""What asks a run to stop; its workers end when it does."""
_COMMAND = struct.Struct("<qqq")  # buffer, first row, end of the rows
_ERROR_KINDS: dict[str, type[DataError]] = {"data": DataError, "lost shard": LostShardError}


def command_bytes(buffer_number: int, rows: range) -> bytes:
    """The command to decode these rows."""
    return _COMMAND.pack(buffer_number, rows.start, rows.stop)


def checked_reply(reply: dict[str, Any], worker: str) -> dict[str, Any]:
    """The reply; raises the error that it carries instead, RuntimeError for an unexpected one."""
    if "error" not in reply:
        return reply
    kind, message = reply["error"]
    if kind in _ERROR_KINDS:
        raise _ERROR_KINDS[kind](message)
    raise RuntimeError(f"{worker} failed:\n{message}")


def rows_of_reply(reply: dict[str, Any], worker: str) -> DecodedRows:
    """What the reply to a command says of the rows; raises the error that it carries instead."""
    checked = checked_reply(reply, worker)
    problems = {row: DataError(message) for row, message in checked["problems"]}
    return DecodedRows(problems, StageSeconds(*checked["seconds"]))


def serve(connection: Connection, ring: SharedRing, report_bad_records: bool, parent_pid: int) -> None:
    """Answer commands; the first message is the fingerprint of the data set, or the error that it does not open."""
    for number in SIGNALS_OF_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # collecting garbage would copy the memory that workers share with the process they are forked from
    try:
        parent = os.pidfd_open(parent_pid)  # readable once the parent is gone, whoever else holds an end of the pipe
    except ProcessLookupError:
        return
    dataset: ViewCollection | None = None
    try:
        dataset = connection.recv()
        reply: dict[str, Any] = {"fingerprint": dataset.fingerprint}
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        reply = _error_reply(error)
    while True:
        try:
            connection.send_bytes(json.dumps(reply).encode())
            if connection not in wait([connection, parent]):
                return
            command = connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        assert dataset is not None, "a data set that did not open was asked for rows"
        reply = _reply_to(command, dataset, ring, report_bad_records)


def _reply_to(command: bytes, dataset: ViewCollection, ring: SharedRing, report_bad_records: bool) -> dict[str, Any]:
    buffer_number, first, end = _COMMAND.unpack(command)
    try:
        decoded = decode_rows(dataset, ring.buffers[buffer_number], range(first, end), report_bad_records)
    except Exception as error:
        return _error_reply(error)
    problems = [[row, str(error)] for row, error in decoded.problems.items()]
    return {"problems": problems, "seconds": [decoded.seconds.reading, decoded.seconds.decoding]}


def _error_reply(error: Exception) -> dict[str, Any]:
    if isinstance(error, DataError):
        return {"error": ["lost shard" if isinstance(error, LostShardError) else "data", str(error)]}
    return {"error": ["unexpected", "".join(traceback.format_exception(error))]}
