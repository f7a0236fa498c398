"""Each command in a code block of the documents is one that its script takes: scripts run until options are read."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tyro
from notebooks import written_files

import ssl_equi.cli
from ssl_equi.training import own_images
from tests.documents import PROGRAMS, ROOT, documented, script_and_options, tutorials


class ParsedError(Exception):
    """Ends a script that has read its options."""


def read_options(script: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script as far as its options are read and checked."""
    within: list[bool] = []

    def parse_and_stop(*given: Any, **named: Any) -> Any:
        within.append(True)
        parse(*given, **named)
        raise ParsedError

    def read_and_stop(*given: Any, **named: Any) -> Any:
        config = read(*given, **named)
        if within:
            return config
        raise ParsedError

    parse, read = ssl_equi.cli.parse_command_line, tyro.cli
    monkeypatch.setattr(ssl_equi.cli, "parse_command_line", parse_and_stop)
    monkeypatch.setattr(tyro, "cli", read_and_stop)
    # --images reads a folder to count its images.
    photographs = SimpleNamespace(labels=range(300), splits_itself=True)
    monkeypatch.setattr(own_images, "ImageFolder", lambda folder, split: photographs)
    monkeypatch.setattr(sys, "argv", [script.name, *options])
    with pytest.raises(ParsedError):
        runpy.run_path(str(script), run_name="__main__")


def test_commands_of_every_kind_are_found() -> None:
    found = {(words[0], name) for files, words in documented() for name in files.split(", ")}
    assert {("ssl-equi", "datasets/images.md"), ("python", "docs/your_own_posed_images.md")} <= found
    assert {("ssl-equi", str(path.relative_to(ROOT))) for path in tutorials()} <= found


def test_every_command_of_the_documents_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, text in (file for notebook in tutorials() for file in written_files(notebook).items()):
        (tmp_path / name).write_text(text)
    refused = []
    for files, words in documented():
        if words[0] in PROGRAMS:
            assert re.search(rf'"{words[0]}>=', (ROOT / "pyproject.toml").read_text()), words[0]
            continue
        with monkeypatch.context() as patch:
            try:
                script, options = script_and_options(words)
                found = [folder / script for folder in (ROOT, tmp_path) if (folder / script).is_file()]
                if found:
                    read_options(found[0], options, patch)
                else:
                    refused.append(f"{files}: {script} does not exist")
            except SystemExit:
                refused.append(f"{files}: {' '.join(words)}\n{capsys.readouterr().err.strip()}")
    assert not refused, "\n".join(refused)
