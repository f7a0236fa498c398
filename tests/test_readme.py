"""What the documents tell users to type and to open is there; what must not be published is not."""

import ast
import contextlib
import functools
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, documents, shell_blocks, text_of

SCRIPT_FOLDERS = ("recipes", "datasets", "tools", "evaluation")
SCRIPT = re.compile(rf"(?<![\w/])(?:{'|'.join(SCRIPT_FOLDERS)})/\w+\.py\b")
# The methods that CONTRIBUTING.md and a tutorial add; tests/recipes/test_contributing.py and tests/test_tutorials.py
# write and run them.
SHOWN_WHOLE = {
    f"{folder}/{name}.py"
    for folder in ("recipes", "ssl_equi/objectives", "tests/objectives/cases")
    for name in ("alignment", "halves")
}
SHELL_BREAKS = {"&&", "||", "|", ";", ">"}

# From pieces, so that this file names none of them.
PACKAGE_HOSTS = [
    ".".join(labels)
    for labels in (
        ("py" + "pi", "org"), ("files", "python" + "hosted", "org"), ("download", "pytorch", "org"),
        ("anaconda", "org"), ("conda", "anaconda", "org"), ("registry", "npm" + "js", "org"),
    )
]  # fmt: skip
MACHINE_PATHS = [f"/{folder}/" for folder in ("root", "work", "home")]


def scripts() -> list[Path]:
    """What is run, and not only imported by others."""
    files = sorted(path for folder in SCRIPT_FOLDERS for path in (ROOT / folder).glob("*.py"))
    return [path for path in files if '__name__ == "__main__"' in path.read_text()]


def module_docstring(source: str) -> str:
    found = re.match(r'\s*"""(.*?)"""', source, flags=re.DOTALL)
    return found.group(1) if found else ""


def documented_text(path: Path) -> str:
    return module_docstring(path.read_text()) if path.suffix == ".py" else text_of(path)


def documented_commands() -> list[tuple[str, str]]:
    """(file, command) of every line or `inline code` that runs a script, in documents and scripts' docstrings."""
    commands = []
    for path in [*documents(), *scripts()]:
        text = documented_text(path)
        candidates = re.findall(r"`([^`\n]+)`", text) + text.replace("\\\n", " ").splitlines()
        for candidate in candidates:
            if re.search(r"(?:^|\s)(?:python|launch)\s[^`]*?" + SCRIPT.pattern, candidate) and "`" not in candidate:
                # What follows some spaces explains the command.
                commands.append((str(path.relative_to(ROOT)), re.split(r"\s{3,}|\s#", candidate.strip())[0]))
    return commands


@functools.cache
def help_text(script: str) -> str:
    """What the parser of `script --help` says of its options; in this process, whose imports are done."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [script, "--help"])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not end.value.code
    # The description above the boxes is the docstring, which proves nothing.
    printed.seek(0)
    boxes = printed.read().partition("╭")[2]
    assert "--help" in boxes
    return boxes


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        print("not a git checkout: it has no list of published files")
        pytest.skip("not a git checkout: it has no list of published files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_two_commands_of_the_readme_stand_in_code_blocks() -> None:
    commands = "\n".join(shell_blocks((ROOT / "README.md").read_text()))
    assert re.search(r"\bssl-equi demo$", commands, flags=re.MULTILINE)
    assert re.search(r"^uv run pytest$", commands, flags=re.MULTILINE)


def test_every_named_script_exists() -> None:
    for path in (*documents(), *scripts()):
        named = set(SCRIPT.findall(documented_text(path))) - SHOWN_WHOLE
        missing = [name for name in named if not (ROOT / name).is_file()]
        assert not missing, f"{path.relative_to(ROOT)} names {missing}"


def test_every_script_tells_how_it_is_run() -> None:
    run = {SCRIPT.search(command).group() for _, command in documented_commands()}  # type: ignore[union-attr]
    assert {str(path.relative_to(ROOT)) for path in scripts()} <= run


def test_every_documented_option_is_one_of_its_script() -> None:
    """Options before the script belong to the launcher."""
    for source, command in documented_commands():
        found = SCRIPT.search(command)
        assert found is not None, command
        script = found.group()
        words = shlex.split(command[found.end() :].replace("[", " ").replace("]", " "))
        words = words[: next((index for index, word in enumerate(words) if word in SHELL_BREAKS), len(words))]
        for option in (word.split("=")[0] for word in words if word.startswith("--") and len(word) > 2):
            known = re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", help_text(script))
            assert known, f"{source} says `{command}`, but {script} has no {option}"


def test_options_named_in_the_pages_are_options_of_some_script() -> None:
    texts = [help_text(str(path.relative_to(ROOT))) for path in scripts()]
    pages = [ROOT / "docs" / f"{page}.md" for page in ("recipes", "data", "encoders", "evaluation", "troubleshooting")]
    for page in [*pages, *sorted(ROOT.glob("docs/methods/*.md"))]:
        named = set(re.findall(r"`(--[a-z][\w.-]*)", page.read_text())) - {"--help"}
        assert named
        for option in named:
            known = any(re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", text) for text in texts)
            assert known, f"{page.name} names {option}"


def test_the_table_of_methods_has_every_page() -> None:
    table = (ROOT / "docs" / "methods" / "README.md").read_text()
    assert all(f"]({page.name})" in table for page in ROOT.glob("docs/methods/*.md") if page.name != "README.md")


def test_messages_that_troubleshooting_quotes_are_those_of_the_package() -> None:
    """The first column of its tables; … stands for a value, there and here."""
    said = "\n".join(text for path in (ROOT / "ssl_equi").rglob("*.py") for text in texts_of(path.read_text()))
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(quoted) > 30
    assert [message for message in quoted if message not in said] == []


def texts_of(source: str) -> list[str]:
    """All strings of a module, with … for what formatted ones fill in."""
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            texts.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def test_files_and_anchors_that_the_pages_name_exist() -> None:
    for page in documents():
        text = text_of(page)
        if page.name == "results.md":  # it tells of what was run, at the commits that it names
            continue
        for name in set(re.findall(r"(?:`|^)((?:[\w-]+/)+[\w-]+\.py)\b", text, flags=re.MULTILINE)) - SHOWN_WHOLE:
            assert (ROOT / name).is_file() or (ROOT / "ssl_equi" / name).is_file(), f"{page.name} names {name}"
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {target}#{anchor}"


def test_files_that_the_continuous_integration_names_exist() -> None:
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / ".ci" / "run").read_text())
    assert named and [name for name in named if not (ROOT / name).is_file()] == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_published_file_names_a_package_host_or_a_folder_of_the_authors_machine() -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode(errors="replace")
        for word in PACKAGE_HOSTS:
            if word in text:
                found.append(f"{path.relative_to(ROOT)} names {word}")
        for word in MACHINE_PATHS:
            if re.search(rf"(?<![\w.:/-]){re.escape(word)}", text):
                found.append(f"{path.relative_to(ROOT)} names {word}")
    assert found == []


def test_no_lock_file_is_published() -> None:
    """It would pin the package host of whoever made it."""
    assert [path for path in tracked_files() if path.name == "uv.lock"] == []
