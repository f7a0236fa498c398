"""From a dataclass to a command line, and from an error to one sentence."""

import dataclasses
import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from ssl_equi.cli import explain_errors, parse_command_line, run_recipe
from ssl_equi.data.order import BatchOrder
from ssl_equi.errors import UserError
from ssl_equi.options import EncoderArguments
from tests.launched import seconds_now

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    encoder_arguments: EncoderArguments = dataclasses.field(default_factory=dict)
    """Pairs."""


@pytest.mark.parametrize("default", [{}, {"zero_init_last": False, "stem_init": "pytorch"}])
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("depth 6 rate .5 keep True name True_ pool 1e3", [6, 0.5, True, "True_", 1000.0]),
        ("zero_init_last True", [True]),
        ("", []),
        (None, None),
    ],
)
def test_arguments_of_an_encoder_are_pairs_whatever_the_default(
    default: dict, texts: str | None, expected: list | None
) -> None:
    given = [] if texts is None else ["--encoder-arguments", *texts.split()]
    parsed = parse_command_line(EncoderConfig, "", EncoderConfig(default), given).encoder_arguments
    if expected is None:
        assert parsed == default
    else:
        assert [(type(value), value) for value in parsed.values()] == [(type(value), value) for value in expected]


def test_a_pair_without_a_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(EncoderConfig, "", arguments=["--encoder-arguments", "depth"])
    assert "depth has no value" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a test."""

    width: int = 4
    """How wide."""


def raising(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


BROKEN_LINES = "an encoder can't be made (line one\n  line two): choose another"


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (raising(UserError("the thing is 3: give 4")), "the thing is 3: give 4\n"),
        (raising(UserError(BROKEN_LINES)), "an encoder can't be made (line one line two): choose another\n"),
        (  # a ValueError that this package raised
            lambda: print(BatchOrder(10, 4, global_batch_size=11, views=2, seed=0)),
            "global batch size 11 does not fit a split of 10 objects: choose",
        ),
    ],
)
def test_an_error_for_the_user_is_one_sentence_and_status_one(
    action: Callable[[], None], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        explain_errors(action)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1


@pytest.mark.parametrize("action", [raising(ValueError("foreign")), lambda: json.loads("{"), lambda: print(1 / 0)])
def test_a_defect_keeps_its_traceback(action: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Also a ValueError, if another package or a script raised it."""
    with pytest.raises((ValueError, ZeroDivisionError)) as defect:
        explain_errors(action)
    assert len(defect.traceback) > 2
    assert capsys.readouterr().err == ""


def test_success_goes_through(capsys: pytest.CaptureFixture[str]) -> None:
    explain_errors(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize(
    ("words", "width"),
    [([], 4), (["--width", "5"], 5), (["narrow"], 1), (["wide"], 64), (["wide", "--width", "65"], 65)],
)
def test_the_first_word_chooses_the_configuration(
    words: list[str], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []
    configs = {"usual": Config, "narrow": lambda: Config(width=1), "wide": lambda: Config(width=64)}
    monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
    run_recipe(received.append, configs, "A recipe.")
    assert received == [Config(width=width)]


@pytest.mark.parametrize("words", [["--widht", "5"], ["broad"], ["--width", "wide"]])
def test_an_unknown_word_ends_with_status_two_and_is_named(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_command_line(Config, "A recipe.", arguments=words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert words[0] in captured.out + captured.err


def options_without_description(help_text: str) -> list[str]:
    """Options that only state their type and default, in a help text of one column.

    An option begins a line of its own; its description stands beside or below it, up to the next option.
    """
    rows = [line.strip("│| ") for line in help_text.splitlines()]
    starts = [index for index, row in enumerate(rows) if row.startswith("--")]
    undescribed = []
    for start, end in zip(starts, [*starts[1:], len(rows)]):
        text = " ".join(rows[start:end])
        for not_a_description in (r"\(default:.*", r"--[\w.-]+", r"\{.*?\}", r"[A-Z]{2,}"):
            text = re.sub(not_a_description, " ", text)
        if len(re.findall(r"[A-Za-z0-9]{2,}", text)) < 1:
            undescribed.append(rows[start].split()[0].rstrip(","))
    return undescribed


@dataclasses.dataclass(frozen=True)
class Mute:
    """One option says what it is for."""

    width: int = 4
    height: int = 3
    """How high the thing is."""
    mode: Literal["fast", "slow"] = "fast"
    resume: bool = False
    out: Path | None = None


def test_an_option_without_description_is_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next test would be worth nothing otherwise."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse_command_line(Mute, "A recipe.", arguments=["--help"])
    assert options_without_description(capsys.readouterr().out) == ["--width", "--mode", "--resume", "--out"]


def test_help_of_a_recipe_names_both_configurations_and_describes_every_option() -> None:
    """The target is 6 seconds; they are CPU seconds, of which a busy machine takes hardly more."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "recipes/sie.py", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "embedded, demo, paper" in done.stdout and "accelerate launch recipes/sie.py" in done.stdout
    for option in ("--out", "--resume", "--seed", "--batch-size", "--objective.equi-weight", "--actions"):
        assert option in done.stdout
    assert len(re.findall(r"^│ --[a-z]", done.stdout, flags=re.MULTILINE)) > 30
    assert options_without_description(done.stdout) == []
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds_now(15)


def test_characters_that_an_output_cannot_hold_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert parse_command_line(Config, "A recipe.", arguments=[]) == Config()
    for stream, text in ((sys.stdout, "━━ café"), (sys.stderr, "caf\udce9")):
        print(text, file=stream, flush=True)
        assert isinstance(stream, io.TextIOWrapper)
    assert sys.stdout.buffer.getvalue() == b"?? caf?\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "hint"),
    [("wdie", "did you mean wide (of usual, wide)"), ("broad", "choose from usual, wide")],
)
def test_a_configuration_that_does_not_exist_is_answered_with_those_that_do(
    word: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", word, "--width", "2"])
    with pytest.raises(SystemExit) as stop:
        run_recipe(print, {"usual": Config, "wide": lambda: Config(width=64)}, "A recipe.")
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: there is no configuration {word!r}: {hint}\n"
