"""Layer groups of an encoder, first to last: what is frozen, or learns at a rate of its own, as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_equi.errors import EncoderError

_BEHIND = "\n"  # no name that a module can have, so that no group of any encoder takes it


@dataclass(frozen=True)
class LayerGroups:
    """The groups that timm makes of an encoder by its `group_matcher`: stem, blocks, and so on.

    Attributes:
        numbers: group, from 0, of each name of `names_of_state`; `count` for what belongs to none and moves with the
            heads, such as a norm behind the pooling.
        count: of the groups.
    """

    numbers: dict[str, int]
    count: int


def layer_groups(encoder: nn.Module) -> LayerGroups:
    """Groups an encoder's layers as `timm.optim` does for its layer decay.

    Raises:
        EncoderError: the encoder doesn't say which layers it has.
    """
    from timm.models import group_parameters  # timm takes seconds to import

    matcher: Any = getattr(encoder, "group_matcher", None)
    if matcher is None:
        raise EncoderError(
            f"the encoder {type(encoder).__name__} has no group_matcher, so its layers can't be told apart: leave out "
            "--layer-decay and --frozen-layers, or choose another encoder, such as a vision transformer or a ResNet"
        )
    names: Any = _Names(encoder)
    numbers: dict[str, int] = group_parameters(names, matcher(coarse=False), reverse=True)
    return LayerGroups(numbers, count=numbers.pop(_BEHIND))


def names_of_state(encoder: nn.Module) -> Iterator[str]:
    """Names of what training changes: parameters, and the statistics of batch norms."""
    yield from (name for name, _ in encoder.named_parameters())
    for layer_name, layer in encoder.named_modules():
        if isinstance(layer, _BatchNorm):
            yield from (f"{layer_name}.{name}" for name, _ in layer.named_buffers())


class _Names:
    """What timm asks for the names to be grouped: one of them is behind all groups."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder

    def named_parameters(self) -> Iterator[tuple[str, None]]:
        yield from ((name, None) for name in (*names_of_state(self.encoder), _BEHIND))
