"""Copies to a device that the host doesn't wait for, constants made there once, and numbers read back together.

The host queues operations ahead of a GPU. A blocking copy makes it wait until all of them are done, and the GPU then
has nothing to do until the host has queued more.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_ALIGNMENT = 64  # bytes; kernels read several values at once from addresses that are multiples of 16


def copy_together(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """The tensors on a device; those on the CPU go there in one copy, which is queued and not waited for.

    The results are slices of one block of memory, and equal to the tensors as they are now. Tensors that lie on the
    device already stay as they are.
    """
    device = torch.device(device)
    leaving = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if device.type == "cpu" or not leaving:
        return [tensor.to(device) for tensor in tensors]
    starts = [0, *itertools.accumulate(-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in leaving)]
    # Only from pinned memory is a copy made while the host goes on.
    block = torch.empty(starts[-1], dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    for start, tensor in zip(starts, leaving):
        _part(block, start, tensor).copy_(tensor)
    block = block.to(device, non_blocking=True)
    arrived = iter([_part(block, start, tensor) for start, tensor in zip(starts, leaving)])
    return [next(arrived) if tensor.device.type == "cpu" else tensor.to(device) for tensor in tensors]


def _part(block: Tensor, start: int, tensor: Tensor) -> Tensor:
    """The bytes of a block, from `start` on, as a tensor of the same shape and type as another."""
    return block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def constant(numbers: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of these numbers (tuples in tuples for several dimensions) on a device, made at the first call.

    Nobody may write into it.
    """
    if torch.compiler.is_compiling():  # compiled code keeps its constants itself
        return torch.tensor(numbers, dtype=dtype, device=device)
    return made_constant(numbers, device, dtype)


@functools.lru_cache(maxsize=256)
def made_constant(numbers: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """What `constant` hands out."""
    with torch.inference_mode(False):  # or it could not serve where gradients are computed
        return copy_together([torch.tensor(numbers, dtype=dtype, device="cpu")], device)[0]


@dataclass(frozen=True)
class Unread(Generic[Result]):
    """Numbers that are still on a device, and what is made of them once the host has them."""

    tensors: Sequence[Tensor]
    """all on one device"""
    interpret: Callable[[list[Any]], Result]
    """from what `tolist` would say of each tensor"""

    def read(self) -> Result:
        """Waits for the device, once."""
        if not self.tensors:
            return self.interpret([])
        # float64 holds every float32, and every whole number up to 2^53.
        values = torch.cat([tensor.detach().reshape(-1).double() for tensor in self.tensors]).cpu()
        parts = values.split([tensor.numel() for tensor in self.tensors])
        return self.interpret([part.view(tensor.shape).tolist() for part, tensor in zip(parts, self.tensors)])


def together(unread: Sequence[Unread[Any]]) -> Unread[list[Any]]:
    """Several in one, so that the device is waited for once."""

    def interpret(values: list[Any]) -> list[Any]:
        remaining = iter(values)
        return [numbers.interpret([*itertools.islice(remaining, len(numbers.tensors))]) for numbers in unread]

    return Unread([tensor for numbers in unread for tensor in numbers.tensors], interpret)


def merged(unread: Sequence[Unread[dict[str, float]]]) -> Unread[dict[str, float]]:
    """Several in one, with all their entries."""
    several = together(unread)
    return Unread(
        several.tensors,
        lambda values: {name: value for entries in several.interpret(values) for name, value in entries.items()},
    )
