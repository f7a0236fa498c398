"""From what a checkpoint file holds to one flat mapping from names to tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_equi.checkpoint import CheckpointError

STATE_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "network")
"""Under which training scripts put the state of the model; names below them are given as they are."""
OPTIMISER_KEYS = re.compile(r"(.*_)?(optimizers?|optim|opt|lr_schedulers?|schedulers?|scheds?|scaler)(_.*)?$")
"""Under which they put the states of optimisers, schedules and gradient scalers; left out unseen."""
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Components of names that torch adds where it wraps a module."""
NAMES_SHOWN = 3


class LayoutError(CheckpointError):
    """The tensors are not those of the layout: what is wrong, and what to do."""

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(f"{problem}: {cure}")
        self.problem = problem


def named_tensors(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """All tensors but those of optimisers, in the order of the file, without torch's wrappers in their names.

    Args:
        content: of the file.
        source: what errors call the file.

    Raises:
        CheckpointError: tensors lie deeper than in one mapping, two get one name, one has values that are not finite,
            or there are none.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if OPTIMISER_KEYS.match(str(key)):
            continue
        if isinstance(value, Tensor):
            named = {str(key): value}
        elif isinstance(value, Mapping) and all(isinstance(item, Tensor) for item in value.values()):
            beginning = "" if key in STATE_KEYS else f"{key}."
            named = {f"{beginning}{name}": item for name, item in value.items()}
        elif holds_tensors(value):
            raise CheckpointError(f"{source} holds tensors deep inside {key!r}: save the state of the model by itself")
        else:
            continue
        for name, tensor in named.items():
            name = without_wrappers(name)
            if name in tensors:
                raise CheckpointError(f"{source} holds two tensors named {name!r}: save the state of one model alone")
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"{source} holds no named tensors: give a checkpoint with the state of the model")
    check_finite(tensors)
    return tensors


def holds_tensors(value: Any) -> bool:
    """Whether there is a tensor in nested mappings, lists, tuples and plain objects."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(holds_tensors(item) for item in value.values())
    if isinstance(value, list | tuple | set):
        return any(holds_tensors(item) for item in value)
    return hasattr(value, "__dict__") and any(holds_tensors(item) for item in vars(value).values())


def without_wrappers(name: str) -> str:
    return ".".join(component for component in name.split(".") if component not in WRAPPERS)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if a value is infinite or no number."""
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{name!r} holds values that are not finite: give a checkpoint of a run that went well"
            )


def first_names(names: Iterable[str]) -> str:
    """The first names in quotes, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
