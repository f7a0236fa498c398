"""One flat mapping from names to tensors, of whatever a checkpoint file holds."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_equi.errors import CheckpointError, LayoutError

STATE_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "network")
"""Under which training scripts put the state of the model; names below them are given as they are."""
OPTIMISER_KEYS = re.compile(r"(.*_)?(optimizers?|optim|opt|lr_schedulers?|schedulers?|scheds?|scaler)(_.*)?$")
"""Under which they put the states of optimisers, schedules and gradient scalers; left out unseen."""
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Components of names that torch adds where it wraps a module."""
BATCH_COUNT = "num_batches_tracked"  # of a batch norm; nothing is computed from it in eval mode
LARGEST_EXPANDED_BYTES = 2**26
"""Larger tensors must be stored in full, not as one value that is shown many times."""
NAMES_SHOWN = 3


def named_tensors(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """All tensors of a file but those of optimisers, in its order, without torch's wrappers in their names.

    A CheckpointError, which calls the file `source`, refuses tensors deeper than in one mapping, two of one name, and
    values that are not dense and finite. A count of 0 batches is added behind every running variance that has none.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if OPTIMISER_KEYS.match(str(key)):
            continue
        named: dict[str, Tensor] = {}
        if isinstance(value, Tensor):
            named = {str(key): value}
        elif isinstance(value, Mapping) and not any(
            _holds_tensors(item) for item in value.values() if not isinstance(item, Tensor)
        ):
            beginning = "" if key in STATE_KEYS else f"{key}."
            named = {f"{beginning}{name}": item for name, item in value.items() if isinstance(item, Tensor)}
        elif _holds_tensors(value):
            raise CheckpointError(f"{source} holds tensors deep inside {key!r}: save the state of the model by itself")
        for wrapped_name, tensor in named.items():
            name = ".".join(component for component in wrapped_name.split(".") if component not in WRAPPERS)
            if name in tensors:
                raise CheckpointError(f"{source} holds two tensors named {name!r}: save the state of one model alone")
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"{source} holds no named tensors: give a checkpoint with the state of the model")
    filled: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _check_values(name, tensor)
        filled[name] = tensor
        # Checkpoints from before PyTorch 0.4.1, and of trainers that drop them, have none.
        count = name.removesuffix("running_var") + BATCH_COUNT
        if name.rpartition(".")[2] == "running_var" and count not in tensors:
            filled[count] = torch.zeros((), dtype=torch.long)
    return filled


def _holds_tensors(value: Any) -> bool:
    """Whether there is a tensor in nested mappings, lists, tuples and plain objects, however deep or circular."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            return True
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set):
            waiting.extend(item)
        else:
            waiting.extend(getattr(item, "__dict__", {}).values())
    return False


def _check_values(name: str, value: Tensor) -> None:
    """Raises CheckpointError unless the tensor holds a finite number for each of its places."""
    kind = None
    if value.is_meta:
        kind = "has a shape but no values (a meta tensor)"
    elif value.is_quantized:
        kind = "is quantised"
    elif value.layout != torch.strided or value.is_nested:
        kind = f"is not dense ({value.layout})"
    elif value.is_complex():
        kind = "holds complex numbers"
    if kind is not None:
        raise CheckpointError(f"{name!r} {kind}: save the model with dense floating-point weights")
    # A file of some bytes can show one value as terabytes, which the next line would take.
    size_bytes, held_bytes = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if size_bytes > max(held_bytes, LARGEST_EXPANDED_BYTES):
        raise CheckpointError(
            f"{name!r} has shape {tuple(value.shape)}, {size_bytes:,} bytes, of which the file holds {held_bytes:,}: "
            "save the state of the model again"
        )
    if value.is_floating_point() and not torch.isfinite(value.float()).all():
        raise CheckpointError(f"{name!r} holds values that are not finite: give a checkpoint of a run that went well")


def check_complete(
    own: Mapping[str, Tensor], found: Mapping[str, tuple[str, Tensor]], lacks: str, whose: str, cure: str
) -> None:
    """Raises LayoutError unless the file has all of a module's tensors, in their shapes.

    Args:
        own: the module's tensors.
        found: names of the module -> name in the file, and tensor.
        lacks: how the sentence about missing names goes on, with {} for them.
        whose: the module, as the sentence about a shape calls it.
    """
    missing = [name for name in own if name not in found]
    if missing:
        raise LayoutError(f"the checkpoint lacks {lacks.format(first_names(missing))}", cure)
    for name, value in own.items():
        file_name, tensor = found[name]
        if tensor.shape != value.shape:
            shapes = f"{tuple(tensor.shape)} and not {tuple(value.shape)}"
            raise LayoutError(f"{file_name!r} has shape {shapes} as in {whose}", cure)


def first_names(names: Iterable[str]) -> str:
    """The first names in quotes, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
