"""Ranges and effects of options, stated in their types and checked in one place.

`check_options` holds a configuration to what its options state:

    temperature: Positive = 0.5
    hidden_widths: Annotated[tuple[Count, ...], ActsWhen(lambda options: options.weight > 0, "give a weight")] = (512,)
    action_dim: Derived = 4

An option that acts always, of a type that bounds it, states nothing. Numbers are finite in any case.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from ssl_equi.errors import UserError, visible_values

ArgumentValue = int | float | bool | str


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that an option can be; `above` and `below` are excluded themselves."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Whether the number lies within."""
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum:,} to {self.maximum:,}"
        bounds = (("of at least", self.minimum), ("above", self.above), ("of at most", self.maximum))
        words = [f"{word} {bound:,}" for word, bound in (*bounds, ("below", self.below)) if bound is not None]
        return " and ".join(words)


@dataclasses.dataclass(frozen=True)
class ActsWhen:
    """An option, or a group of options, that has no effect unless a condition holds.

    Attributes:
        condition: of the dataclass that the option stands in.
        cure: what to do for the option to act.
        only: names of the options of the group that this is true of; all when empty.
    """

    condition: Callable[[Any], bool]
    cure: str
    only: tuple[str, ...] = ()


Count = Annotated[int, Range(minimum=1, maximum=1_000_000_000)]
CountOrZero = Annotated[int, Range(minimum=0, maximum=1_000_000_000)]
Width = Annotated[int, Range(minimum=1, maximum=1_000_000)]
"""Of a layer, or the number of layers, heads, elements: what weights are allocated for."""
Threads = Annotated[int, Range(minimum=1, maximum=1024)]
ImageSide = Annotated[int, Range(minimum=1, maximum=16_384)]
Seed = Annotated[int, Range(minimum=0, maximum=2**31 - 1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(minimum=0)]
Share = Annotated[float, Range(minimum=0, maximum=1)]
Momentum = Share
Derived = tyro.conf.Suppress[int]
"""A size that follows from other options or from the data: no option of the command line, and not recorded."""
GivenName = tyro.conf.Suppress[str]
"""What others call a configuration: no option of the command line, and not recorded."""


def _pairs(texts: list[str]) -> dict[str, ArgumentValue]:
    """Names and values in turn, each value of the first type that its text is of."""
    if len(texts) % 2:
        raise ValueError(f"{texts[-1]} has no value: give names and values in pairs")
    return dict(zip(texts[::2], map(_value, texts[1::2]), strict=True))


def _value(text: str) -> ArgumentValue:
    if text in ("True", "False"):
        return text == "True"
    for number_type in (int, float):
        try:
            return number_type(text)
        except ValueError:
            continue
    return text


# tyro would make an option of each entry of a default, so that no other could be given, nor the default be dropped.
EncoderArguments = Annotated[
    dict[str, ArgumentValue],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(text) for pair in value.items() for text in pair],
    ),
]
"""Arguments of timm.create_model besides the name; on the command line names and values in turn, or nothing."""


def check_options(config: Any, default: Any = None) -> None:
    """Holds a configuration to what its options state; UserError names the first that breaks it.

    Numbers must be in range and finite, choices must exist, and an option that was changed must have an effect.

    Args:
        config: a dataclass; options in dataclasses within it are named as on the command line.
        default: what the options were before the user changed some; without it, effects are not checked.
    """
    for option in _options(config):
        bounds, choices = _bounds(option.hint), _choices(option.hint)
        values = option.value.values() if isinstance(option.value, dict) else option.value
        for value in values if isinstance(option.value, (dict, tuple, list)) else [values]:
            # True and False are numbers to Python.
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not math.isfinite(value) or (bounds is not None and not bounds.holds(value)):
                    raise UserError(f"{option.flag} is {value}: give a number {bounds or 'that is finite'}")
            elif choices and value is not None and value not in choices:
                raise UserError(f"{option.flag} is {value!r}: choose from {', '.join(map(str, choices))}")
    if default is not None:
        before = {option.name: option.value for option in _options(default)}
        for option in _options(config):
            if option.inactive is not None and option.value != before.get(option.name, option.value):
                raise UserError(f"{_as_given(option)} and has no effect: {option.inactive}, or leave it out")


def used_options(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values, nested as the dataclasses are, without options that have no effect."""
    nested: dict[str, Any] = {}
    for option in _options(config):
        if option.inactive is None:
            *groups, name = option.name.split(".")
            place = nested
            for group in groups:
                place = place.setdefault(group, {})
            place[name] = json.loads(json.dumps(option.value, default=str))
    return visible_values(nested)


@dataclasses.dataclass(frozen=True)
class CommandLineOption:
    """An option as it is typed.

    Attributes:
        flag: such as --objective.inv-weight; empty where only the value is typed.
        hint: type of its value, with annotations.
    """

    flag: str
    hint: Any

    @property
    def is_switch(self) -> bool:
        """Whether no value is typed behind it; `--no-...` turns it off."""
        return self._types == {bool}

    @property
    def takes_several(self) -> bool:
        """Whether any number of values can be typed behind it."""
        return bool({get_origin(hint) for hint in _within(self.hint)} & {tuple, list, dict})

    @property
    def choices(self) -> tuple[str, ...]:
        """All that its value can be; empty if that is open."""
        return tuple(str(choice) for choice in _choices(self.hint))

    @property
    def takes_text(self) -> bool:
        """Whether its value can be any text, such as the name of a file."""
        return not self.choices and bool(self._types - {int, float, bool, type(None)})

    @property
    def _types(self) -> set[Any]:
        return {hint for hint in _within(self.hint) if isinstance(hint, type) and get_origin(hint) is None}


def command_line_options(config: Any) -> list[CommandLineOption]:
    """The options of a dataclass, or of an instance of it, as they are typed."""
    hints = get_type_hints(config if isinstance(config, type) else type(config), include_extras=True)
    options: list[CommandLineOption] = []
    for entry in dataclasses.fields(config):
        hint = hints[entry.name]
        annotations = hint.__metadata__ if get_origin(hint) is Annotated else ()
        kind = hint.__origin__ if annotations else hint
        flag = f"--{entry.name.replace('_', '-')}"
        if tyro.conf.Suppress in annotations:
            continue
        if not dataclasses.is_dataclass(kind):
            options.append(CommandLineOption("" if tyro.conf.Positional in annotations else flag, hint))
            continue
        group = "--" if _is_unnamed(annotations) else f"{flag}."
        for option in command_line_options(kind):
            options.append(dataclasses.replace(option, flag=group + option.flag.removeprefix("--")))
    return options


def option_flags(config: Any) -> list[str]:
    """The options of a dataclass, or of an instance of it, as on the command line."""
    return [option.flag for option in command_line_options(config) if option.flag]


def _within(hint: Any) -> Iterator[Any]:
    """A type and all that it is made of, but for annotations."""
    yield hint
    inner = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    for argument in inner if get_origin(hint) is not Literal else ():
        yield from _within(argument)


def _as_given(option: "_Option") -> str:
    """An option with its value, as its user may have typed it."""
    if isinstance(option.value, bool):
        before, dot, last = option.flag.removeprefix("--").rpartition(".")
        return f"--{before}{dot}{'' if option.value else 'no-'}{last} is given"
    several = isinstance(option.value, (tuple, list))
    return f"{option.flag} is {' '.join(map(str, option.value)) if several else option.value}"


@dataclasses.dataclass(frozen=True)
class _Option:
    """One option: dotted name, its name on the command line, type with annotations, value, and how to make it act."""

    name: str
    flag: str
    hint: Any
    value: Any
    inactive: str | None


def _options(config: Any, names: str = "", flags: str = "--", inactive: str | None = None) -> Iterator[_Option]:
    hints = get_type_hints(type(config), include_extras=True)
    for entry in dataclasses.fields(config):
        value, hint = getattr(config, entry.name), hints[entry.name]
        annotations = hint.__metadata__ if get_origin(hint) is Annotated else ()
        if tyro.conf.Suppress in annotations:
            continue
        silent = [note for note in annotations if isinstance(note, ActsWhen) and not note.condition(config)]
        why = inactive or next((note.cure for note in silent if not note.only), None)
        if dataclasses.is_dataclass(value):
            group = flags if _is_unnamed(annotations) else f"{flags}{entry.name.replace('_', '-')}."
            silent_within = {f"{names}{entry.name}.{name}": note.cure for note in silent for name in note.only}
            for option in _options(value, f"{names}{entry.name}.", group, why):
                yield dataclasses.replace(option, inactive=option.inactive or silent_within.get(option.name))
        else:
            yield _Option(names + entry.name, flags + entry.name.replace("_", "-"), hint, value, why)


def _is_unnamed(annotations: tuple[Any, ...]) -> bool:
    """Whether tyro leaves the name of a group out, because it is called ""."""
    return any(getattr(note, "name", None) == "" for note in annotations)


def _bounds(hint: Any) -> Range | None:
    """The range that a type states, also within `... | None` and `tuple[..., ...]`."""
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Range):
            return note
    found = (_bounds(argument) for argument in get_args(hint))
    return next((bounds for bounds in found if bounds is not None), None)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, also within Annotated, `... | None` and `tuple[..., ...]`; () for open types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    arguments = [argument for argument in get_args(hint) if argument is not type(None) and argument is not ...]
    inner = [_choices(argument) for argument in arguments if get_origin(argument) is not None]
    open_types = [argument for argument in arguments if isinstance(argument, type)]
    return () if open_types else tuple(choice for choices in inner for choice in choices)


def taken_out(option: str, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of an option among the words of a command line, None if it isn't there; and the other words.

    For options that no dataclass has. Raises UserError for one without a value.
    """
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != option:
            continue
        before, behind = list(words[:place]), list(words[place + 1 :])
        if equals:
            return value, before + behind
        if not behind or behind[0].startswith("-"):
            raise UserError(f"{option} has no value: give one, or leave it out")
        return behind[0], before + behind[1:]
    return None, list(words)
