"""A web server on this machine that answers byte ranges and can be told to fail."""

import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ssl_equi.data.remote.transport import Patience
from tests.launched import seconds_now

PATIENT = Patience(timeout_seconds=60, retries=3, first_pause_seconds=0.01)  # with a server that answers


def impatient(retries: int = 1) -> Patience:
    """With a server that stalls: a second, and more on a busy machine, on which it also answers later."""
    return Patience(timeout_seconds=seconds_now(1), retries=retries, first_pause_seconds=0.01)


class FaultyServer:
    """Serves `folder`; `fail(name, fault, times)` lets the next requests for a file's bytes go wrong.

    Faults: a status such as 404; "stall" (half the body, then silence); "drip" (a byte now and then); "drop" (half the
    body, then the connection ends); "whole" (ignores the range); "elsewhere" (another range);
    "continue" (answers 100 without an end); a path of this machine or an address to redirect to as "redirect ADDRESS".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()  # GETs of each file
        self.bytes_asked: Counter[str] = Counter()
        self.faults: dict[str, list[str | int]] = {}
        self.release = threading.Event()  # ends stalls
        self.on_request: Callable[[str], None] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments) -> None:
                pass

            def do_HEAD(self) -> None:
                path = server.folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(path.stat().st_size))
                self.end_headers()

            def do_GET(self) -> None:
                server._answer(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def fail(self, name: str, fault: str | int, times: int = 1000) -> None:
        """Let the next `times` requests for a file go wrong."""
        self.faults.setdefault(name, []).extend([fault] * times)

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.lstrip("/")
        self.requests[name] += 1
        if self.on_request is not None:
            self.on_request(name)
        path = self.folder / name
        faults = self.faults.get(name)
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int) or not path.is_file():
            handler.send_error(fault if isinstance(fault, int) else 404)
            return
        if isinstance(fault, str) and fault.startswith("redirect "):
            handler.send_response(302)
            handler.send_header("Location", fault.removeprefix("redirect "))
            handler.end_headers()
            return
        if fault == "continue":
            while not self.release.wait(0.01):
                try:
                    handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                except OSError:
                    return
            return
        self._send(handler, path.read_bytes(), fault)

    def _send(self, handler: BaseHTTPRequestHandler, content: bytes, fault: str | None) -> None:
        start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"]).groups())
        self.bytes_asked[handler.path.lstrip("/")] += end + 1 - start
        if start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.end_headers()
            return
        if fault == "elsewhere":
            start -= 1
        body = content if fault == "whole" else content[start : end + 1]
        handler.send_response(200 if fault == "whole" else 206)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
        handler.end_headers()
        if fault == "drip":
            for byte in body:
                if self.release.wait(0.05):
                    return
                try:
                    handler.wfile.write(bytes([byte]))
                except OSError:
                    return
        elif fault in ("stall", "drop"):
            handler.wfile.write(body[: len(body) // 2])
            if fault == "stall":
                self.release.wait(60)
        else:
            handler.wfile.write(body)
