"""A server that answers what the Hugging Face hub's client asks when a model repository is made and written."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

TOKEN, TOKEN_OF_A_READER = "hf_writes", "hf_reads"


@dataclass
class FakeHub:
    """What was pushed: repositories that were made, whether each is private, and their files by name."""

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def write_to(self, folder: Path, repository: str) -> Path:
        """The repository as a local folder."""
        folder.mkdir()
        for name, content in self.files[repository].items():
            (folder / name).write_bytes(content)
        return folder


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serves until the block ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # whether a file is there
            self.answer(404, {})

        do_GET = do_HEAD  # noqa: N815  (the name is http.server's)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in (TOKEN, TOKEN_OF_A_READER):
                return self.answer(401, {"error": "Invalid credentials"})
            if self.path == "/api/validate-yaml":
                refused = "license: nonsense" in json.loads(body)["content"]
                errors = [{"message": '"license" must be one of those that are known'}] if refused else []
                return self.answer(400 if refused else 200, {"errors": errors, "warnings": []})
            if token == TOKEN_OF_A_READER:
                return self.answer(403, {"error": "Forbidden"})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                repository = f"{asked['organization']}/{asked['name']}"
                hub.private[repository] = bool(asked.get("private") or asked.get("visibility") == "private")
                return self.answer(200, {"url": f"{hub.address}/{repository}"})
            repository, action = self.path.removeprefix("/api/models/").rsplit("/", 2)[:2]
            if action == "preupload":
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                paths = [each["path"] for each in json.loads(body)["files"]]
                return self.answer(200, {"files": [{"path": path, **modes} for path in paths]})
            assert action == "commit", self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    hub.messages.append(line["value"]["summary"])
                else:
                    content = base64.b64decode(line["value"]["content"])
                    hub.files.setdefault(repository, {})[line["value"]["path"]] = content
            return self.answer(200, {"commitUrl": f"{hub.address}/{repository}/commit/0", "commitOid": "0" * 40})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(encoded)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
