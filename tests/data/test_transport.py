from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ssl_equi.data.remote import transport as remote_files
from ssl_equi.data.remote.transport import HttpFolder, LocalFolder, Patience, open_folder
from ssl_equi.errors import DataError
from tests.data.faulty_server import FaultyServer, impatient

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "file").write_bytes(CONTENT)
    server = FaultyServer(tmp_path)
    yield server
    server.close()


def _read(server: FaultyServer, start: int = 100, end: int = 200_100, size: int = len(CONTENT)) -> bytes:
    return open_folder(server.url, impatient(retries=2)).read("file", start, end, size)


def test_ranges_are_those_of_the_file(server, tmp_path):
    for folder in (open_folder(server.url), open_folder(str(tmp_path)), open_folder(tmp_path)):
        assert folder.size("file") == len(CONTENT)
        for start, end in ((0, 1), (100, 200_100), (len(CONTENT) - 1, len(CONTENT)), (0, len(CONTENT))):
            assert folder.read("file", start, end, len(CONTENT)) == CONTENT[start:end]


@pytest.mark.parametrize("fault", ["drop", "stall", 500, 502, 503, 504, 429, 408])
def test_faults_that_pass_are_tried_again(server, fault):
    server.fail("file", fault, times=2)
    assert _read(server) == CONTENT[100:200_100]
    assert server.requests["file"] == 3


def test_a_transfer_goes_on_where_it_broke_off(server):
    server.fail("file", "drop", times=2)
    assert _read(server) == CONTENT[100:200_100]
    assert server.bytes_asked["file"] == 200_000 + 100_000 + 50_000


@pytest.mark.parametrize(
    ("fault", "message", "attempts"),
    [
        ("drop", r"the connection ended \d+ bytes early; 3 attempts", 3),
        ("stall", "the server stalls; 3 attempts", 3),
        (500, "the server answers 500 Internal Server Error; 3 attempts", 3),
        (404, "the server answers 404 Not Found", 1),
        (403, "the server answers 403 Forbidden", 1),
        ("elsewhere", "another byte range than was asked for", 1),
        ("redirect file:///etc/hostname", "302", 1),
        ("redirect ftp://127.0.0.1/file", "", 3),
        ("redirect http://[::1/file", "an address that is none", 1),
        ("continue", "the server stalls; 3 attempts", 3),
    ],
)
def test_faults_that_stay_name_the_file_and_the_fault(server, fault, message, attempts):
    server.fail("file", fault)
    with pytest.raises(DataError, match=rf"{server.url}/file cannot be read \(.*{message}"):
        _read(server)
    assert server.requests["file"] == attempts


def test_a_plain_server_is_good_enough_for_whole_files(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "_PIECE_BYTES", 70_000)
    server.fail("file", "whole", times=1)
    for requests in (1, 1 + 5):  # all at once; in pieces, of which the second breaks off
        with open(tmp_path / "copy", "wb") as out:
            open_folder(server.url, impatient(retries=2)).copy("file", out, len(CONTENT))
        assert (tmp_path / "copy").read_bytes() == CONTENT and server.requests["file"] == requests
        server.fail("file", "drop", times=1)
    server.fail("file", "whole")
    with pytest.raises(DataError, match=r"ignores byte ranges \(status 200\): copy the folder here and give its path"):
        _read(server)
    with open(tmp_path / "copy", "wb") as out, pytest.raises(DataError, match=r"has 256000 bytes where .* says 256001"):
        open_folder(server.url, impatient(retries=2)).copy("file", out, len(CONTENT) + 1)


def test_a_server_that_drips_is_given_up(server):
    server.fail("file", "drip")
    with pytest.raises(DataError, match="the server stalls; 3 attempts"):
        _read(server)


def test_a_redirect_to_another_web_address_is_followed(server):
    server.fail("elsewhere", f"redirect {server.url}/file", times=1)
    (server.folder / "elsewhere").write_bytes(b"")
    assert open_folder(server.url).read("elsewhere", 0, 10, len(CONTENT)) == CONTENT[:10]


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:1/file cannot be read \(.*refused; 3 attempts\)"):
        open_folder("http://127.0.0.1:1", impatient(retries=2)).read("file", 0, 1, 1)


def test_a_file_of_another_size_is_an_error(server, tmp_path):
    for folder in (open_folder(server.url), open_folder(tmp_path)):
        with pytest.raises(DataError, match=r"file has 256000 bytes where the manifest says 256001: it is cut"):
            folder.read("file", 0, 1, len(CONTENT) + 1)
    with pytest.raises(DataError, match="it is cut, with 256000 bytes"):
        open_folder(server.url).read("file", 300_000, 300_001, 400_000)


def test_a_missing_file_is_an_error_at_once(server, tmp_path):
    with pytest.raises(DataError, match=r"/none cannot be read \(the server answers 404"):
        open_folder(server.url).size("none")
    for ask in (lambda folder: folder.size("none"), lambda folder: folder.read("none", 0, 1, 1)):
        with pytest.raises(DataError, match=r"/none cannot be read \(No such file"):
            ask(open_folder(tmp_path))


def test_closing_ends_the_pauses(server):
    folder = open_folder(server.url, Patience(timeout_seconds=1, retries=5, first_pause_seconds=60))
    server.fail("file", 503)
    server.on_request = lambda name: folder.close()
    with pytest.raises(DataError, match="reading was stopped"):
        folder.read("file", 0, 10, len(CONTENT))


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat /etc/hostname",
        "pipe:touch executed",
        "file:///tmp/x; touch executed",
        "file:///tmp/data",
        "ftp://host/data",
        "gs://bucket/data",
        "data:text/plain,x",
        "HTTP+pipe://host/x",
        "http://host/$(touch executed)",
        "http://host/a|b",
        "http://host/`id`",
        "https://name:password@host/data",
        "https://host/data?signature=1",
        "http://host/a b",
        "http:///data",
        "s3://bucket/data;rm",
        "http://[::1/data",
        "http://host:port/data",
        "http://host:99999/data",
        "http://a..b/data",
        f"http://{'a' * 70}.org/data",
        "http://:80/data",
    ],
)
def test_other_locations_are_refused_and_nothing_is_executed(location, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"is refused: give the path of a local folder, or a plain http://"):
        open_folder(location)
    assert not list(tmp_path.iterdir())


def test_plain_locations_are_taken():
    assert isinstance(open_folder("data/3diebench"), LocalFolder)
    assert isinstance(open_folder("a folder; with $odd | name"), LocalFolder)  # a name, and never a command
    for url in ("https://example.org/data/", "http://[::1]:8000/data", "http://host", "https://host/a_b/%20x~y/"):
        assert isinstance(open_folder(url), HttpFolder)


class _FakeS3(MemoryFileSystem):
    """S3 in memory, behind the interface through which s3fs is used."""

    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    options: ClassVar[dict] = {}

    def __init__(self, **options) -> None:
        super().__init__()
        _FakeS3.options = options


def test_s3_is_read_through_fsspec(monkeypatch):
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **options: {"s3": _FakeS3}[protocol](**options))
    _FakeS3().pipe_file("s3://bucket/data/file", CONTENT)
    folder = open_folder("s3://bucket/data/", Patience(timeout_seconds=3))
    assert folder.size("file") == len(CONTENT)
    assert folder.read("file", 100, 200, len(CONTENT)) == CONTENT[100:200]
    assert _FakeS3.options["config_kwargs"]["read_timeout"] == 3
    with pytest.raises(DataError, match=r"s3://bucket/data/none cannot be read \(there is no such file or bucket"):
        folder.read("none", 0, 1, 1)
    with pytest.raises(DataError, match=r"s3://bucket/data/file has 256000 bytes where the manifest says 5"):
        folder.read("file", 0, 1, 5)
    monkeypatch.setattr(_FakeS3, "cat_file", lambda *arguments, **options: 1 / 0)
    with pytest.raises(DataError, match=r"s3://bucket/data/file cannot be read \(division by zero\)"):
        folder.read("file", 0, 1, len(CONTENT))


def test_s3_without_its_library_says_how_to_install_it(monkeypatch):
    def not_installed(*arguments, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", not_installed)
    with pytest.raises(DataError, match=r"needs s3fs .*: install it with `pip install 'ssl-equi\[streaming\]'`"):
        open_folder("s3://bucket/data")


def test_wrong_patience_is_refused():
    with pytest.raises(ValueError, match="give a positive timeout_seconds"):
        Patience(timeout_seconds=0)
