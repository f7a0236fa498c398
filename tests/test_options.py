"""Ranges, effects and derived sizes of options: what is checked, and that every number of every command has a range."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import tyro

from ssl_equi.cli import hints, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.options import (
    ActsWhen,
    Count,
    Derived,
    Positive,
    Range,
    _bounds,
    check_options,
    option_flags,
    used_options,
)

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for folder in ("recipes", "evaluation", "datasets") for path in (ROOT / folder).glob("*.py"))


@dataclasses.dataclass(frozen=True)
class Inner:
    widths: tuple[Count, ...] = (3, 4)
    mode: Literal["fast", "slow"] = "fast"
    speed: Annotated[Positive | None, ActsWhen(lambda options: options.mode == "slow", "choose the mode slow")] = None
    action_dim: Derived = 4


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Annotated[Inner, ActsWhen(lambda options: options.share > 0, "give a share above 0")] = Inner()
    unnamed: Annotated[Inner, tyro.conf.arg(name="")] = Inner()
    share: Annotated[float, Range(minimum=0, maximum=1)] = 0.5
    momentum: Annotated[float, Range(minimum=0, below=1)] = 0.9
    arguments: dict[str, int | float | bool | str] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"share": 1.5}, "--share is 1.5: give a number from 0 to 1"),
        ({"share": float("nan")}, "--share is nan: give a number from 0 to 1"),
        ({"momentum": 1.0}, "--momentum is 1.0: give a number of at least 0 and below 1"),
        ({"inner": Inner(widths=(3, 0))}, "--inner.widths is 0: give a number from 1 to 1,000,000,000"),
        ({"inner": Inner(mode="medium")}, "--inner.mode is 'medium': choose from fast, slow"),  # type: ignore[arg-type]
        ({"inner": Inner(mode="slow", speed=0.0)}, "--inner.speed is 0.0: give a number above 0"),
        ({"unnamed": Inner(widths=(-1,))}, "--widths is -1: give a number from 1 to 1,000,000,000"),
        ({"arguments": {"depth": float("inf")}}, "--arguments is inf: give a number that is finite"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_named_with_those_that_it_can(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_options(Outer(**changes))
    assert str(refused.value) == sentence


def test_an_option_without_effect_is_refused_where_it_was_changed() -> None:
    silent = Outer(inner=Inner(speed=2.0))
    with pytest.raises(UserError, match=r"--inner\.speed is 2\.0 and has no effect: choose the mode slow, or leave"):
        check_options(silent, Outer())
    with pytest.raises(UserError, match=r"--inner\.widths is 5 6 and has no effect: give a share above 0, or leave"):
        check_options(Outer(share=0.0, inner=Inner(widths=(5, 6))), Outer())
    check_options(silent, silent)
    check_options(Outer(inner=Inner(mode="slow", speed=2.0)), Outer())


def test_what_is_recorded_is_what_acts() -> None:
    assert used_options(Outer(unnamed=Inner(mode="slow"), share=0.0)) == {
        "unnamed": {"widths": [3, 4], "mode": "slow", "speed": None}, "share": 0.0, "momentum": 0.9, "arguments": {},
    }  # fmt: skip


def test_the_command_line_holds_options_to_their_ranges_and_has_no_derived_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, status, sentence in (
        (["--share", "2"], 1, "error: --share is 2.0: give a number from 0 to 1\n"),
        (["--inner.speed", "2"], 1, "error: --inner.speed is 2.0 and has no effect: choose the mode slow"),
        (["--inner.action-dim", "6"], 2, "action-dim"),
    ):
        with pytest.raises(SystemExit) as stop:
            parse_command_line(Outer, "A test.", arguments=words)
        assert stop.value.code == status
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--lr=3", "--learning-rate"),
        ("--temperature", "--objective.temperature"),
        ("--batchsize", "--batch-size"),
        ("--momentum", "--target-momentum or --sgd-momentum"),
    ],
)
def test_an_unknown_option_is_answered_with_what_may_be_meant(word: str, meant: str) -> None:
    known = ["--learning-rate", "--batch-size", "--objective.temperature", "--target-momentum", "--sgd-momentum"]
    assert hints([word, "3"], known) == [f"{word.partition('=')[0]} is no option: did you mean {meant}?"]
    assert hints(["--learning-rate", "--learning_rate", "--no-batch-size", "5", "-h"], known) == []


def test_options_are_named_as_on_the_command_line() -> None:
    group = ["widths", "mode", "speed"]
    shared = ["--share", "--momentum", "--arguments"]
    assert option_flags(Outer) == [f"--inner.{name}" for name in group] + [f"--{name}" for name in group] + shared


def is_number(hint: Any) -> bool:
    return hint in (int, float) or any(is_number(argument) for argument in get_args(hint))


def numbers_without_range(config_type: type, prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, hint in get_type_hints(config_type, include_extras=True).items():
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if dataclasses.is_dataclass(kind):
            names += numbers_without_range(kind, f"{prefix}{name}.")
        elif (
            is_number(hint)
            and _bounds(hint) is None
            and tyro.conf.Suppress not in notes
            and get_origin(kind) is not dict
        ):
            names.append(prefix + name)
    return names


def test_every_number_of_every_command_has_a_range() -> None:
    for script in SCRIPTS:
        specification = importlib.util.spec_from_file_location(f"script_{script.parent.name}_{script.stem}", script)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[specification.name] = module
        specification.loader.exec_module(module)
        types = [getattr(module, name, None) for name in ("Config", "BuildConfig", "EvaluationConfig")]
        found = [config_type for config_type in types if config_type is not None]
        assert found, script
        assert [name for config_type in found for name in numbers_without_range(config_type)] == [], script
