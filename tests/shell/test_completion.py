"""Completion of `ssl-equi` in bash, zsh and fish: each shell is asked what it offers behind some words."""

import io
import shlex
import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from ssl_equi.__main__ import COMMANDS, print_completion
from ssl_equi.shell.completion import SHELLS
from tests.fakes import load_recipe

ROOT = Path(__file__).parents[2]
# Called as the shell would; what is offered is printed, a word a line.
ASKED = {
    "bash": """
        source "$1"; shift; COMP_WORDS=(ssl-equi "$@"); COMP_CWORD=$#; _ssl_equi; printf '%s\\n' "${COMPREPLY[@]}" """,
    "zsh": """
        compdef() { : }; compadd() { shift; print -l -- ${(M)@:#${words[CURRENT]}*}; }; _files() { print -l -- *(N) }
        source "$1"; shift; words=(ssl-equi "$@"); CURRENT=$#words; _ssl_equi""",
    "fish": """
        source $argv[1]; complete -C "ssl-equi $(string join ' ' -- $argv[2..])" | string split -f 1 \\t; true""",
}
RUN = {"bash": ("bash", "--norc", "-c"), "zsh": ("zsh", "-f", "-c"), "fish": ("fish", "--no-config", "-c")}


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed, so nobody can ask it")
    return str(request.param)


@pytest.fixture(scope="module")
def script(shell: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with redirect_stdout(io.StringIO()) as printed:
        print_completion([shell])
    path = tmp_path_factory.mktemp("completion") / shell
    path.write_text(printed.getvalue())
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tr", {"train"}),
        ("train si", {"sie", "simclr", "simsiam"}),
        ("train sie ''", set(load_recipe("sie").CONFIGS)),
        ("demo ''", set()),
        ("demo --se", {"--seed"}),
        ("train sie paper --opt", {"--optimizer"}),
        ("train sie --no-ev", {"--no-evaluate"}),
        ("train sie --objective.no-h", {"--objective.no-hypernetwork-bias"}),
        ("train sie --optimizer ''", {"adam", "adamw", "lars", "sgd"}),
        ("train sie --seed ''", set()),
        ("train sie --imag", {"--image-size", "--images"}),
        ("evaluate --encoder-", {"--encoder-arguments"}),
        ("evaluate sequences --pro", {"--protocol"}),
        ("report --encoder a --ma", {"--map"}),
        ("data cifar_stl ''", {"cifar10", "cifar100", "stl10"}),
        ("where train sim", {"simclr", "simsiam"}),
        ("completion ''", set(SHELLS)),
        ("nothing x ''", set()),
    ],
)
def test_a_shell_offers_what_can_stand_there(shell: str, script: Path, words: str, offered: set[str]) -> None:
    assert asked(shell, script, *shlex.split(words)) == offered


@pytest.mark.parametrize(
    "words", ["train sie --data-dir", "train sie --init", "evaluate --encoder", "report", "export"]
)
def test_files_are_offered_where_one_is_named(shell: str, script: Path, words: str, tmp_path: Path) -> None:
    (tmp_path / "my shards").mkdir()
    offered = asked(shell, script, *words.split(), "m" if shell == "bash" else "", folder=tmp_path)
    assert {name.rstrip("/").replace("\\", "") for name in offered} == {"my shards"}


def test_every_command_is_offered(shell: str, script: Path) -> None:
    assert asked(shell, script, "") == {*COMMANDS, "where", "completion"}


def test_the_script_asks_no_python(script: Path) -> None:
    text = script.read_text()
    assert "python" not in text and str(ROOT) not in text


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        print_completion(["tcsh"])
    assert "shell 'tcsh' does not exist: choose from bash, zsh, fish" in capsys.readouterr().err


def asked(shell: str, script: Path, *words: str, folder: Path | None = None) -> set[str]:
    """What a shell offers for the last word."""
    call = [*RUN[shell], ASKED[shell], *(["asked"] if shell != "fish" else []), str(script), *words]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return set(done.stdout.split("\n")) - {""}
