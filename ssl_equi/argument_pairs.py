"""Options that hold names and values in turn, such as what timm is given besides the name of an encoder."""

from typing import Annotated

import tyro

ArgumentValue = int | float | bool | str


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
"""What timm.create_model is given besides the name; on the command line names and values in turn, or nothing."""
