"""A CUDA device that is simulated on the CPU, and notes every operation for which the host would wait for it.

Tensors "on the device" say that they lie on `cuda:0` and hold a tensor of the CPU, which computes their values. So code
takes the ways that it takes on a GPU, with values that make sense. What the simulation can't do is the backward pass:
autograd has no queue for a device that isn't there.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from benchmarks import launches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from ssl_equi.runtime.device_copies import made_constant

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
# The host must know values of the device to return them, or to know the sizes of the results.
READS_VALUES = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.bincount, aten.histc, aten.equal, aten.is_nonzero, aten._linalg_check_errors,
}  # fmt: skip
INDEXES = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}


@dataclass(frozen=True)
class Wait:
    """One operation for which the host waits."""

    operation: str
    place: str
    """FILE:LINE of the innermost line of this project"""


class DeviceTensor(Tensor):
    """A tensor that says it lies on the device, with its values in a tensor of the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "DeviceTensor":
        made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            layout=values.layout, device=DEVICE,
        )  # fmt: skip
        made.values = values
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.values})"

    def tolist(self) -> Any:
        """PyTorch refuses it to subclasses; for a tensor of a GPU it copies all values at once."""
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{operation} met a tensor of the simulated device outside of the simulation")


class SimulatedDevice(TorchDispatchMode):
    """While it is entered, device "cuda" is there."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        """grows by each operation for which the host waits"""
        self.copies = 0
        """from the CPU to the device, waited for or not"""
        self.launches = 0
        """operations that start at least one kernel or copy: all but views and allocations"""
        self._pinned: dict[int, Tensor] = {}  # by address; kept, so that no other memory gets the same

    def __enter__(self) -> Self:
        self._before = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its tensor on the CPU, then copies it
        torch._C._ensureCUDADeviceGuardSet()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a weight's class changes with its device
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._before[0])
        torch.__future__.set_overwrite_module_params_on_conversion(self._before[1])

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind = dict(kwargs or {}), operation.overloadpacket
        if kind is aten.is_pinned:
            return self._is_pinned(args[0])
        if kind is aten._pin_memory:
            return self._pin(args[0].clone())
        is_pinned = kwargs.pop("pin_memory", False)
        target = kwargs.get("device")
        goes_to_device = target is not None and torch.device(target).type == DEVICE.type
        meets_device = any(isinstance(value, DeviceTensor) for value in tree_leaves((args, kwargs)))
        if not meets_device and not goes_to_device:
            result = operation(*args, **kwargs)
            return self._pin(result) if is_pinned else result

        self.launches += launches(operation)
        self._note(operation, args, kwargs)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        result = operation(*tree_map_only(DeviceTensor, lambda tensor: tensor.values, args), **_values_of(kwargs))
        if kind is aten.copy_ and not isinstance(args[0], DeviceTensor):
            return args[0]
        if kind is aten._local_scalar_dense or (target is not None and not goes_to_device):
            return result
        there = tree_map_only(Tensor, DeviceTensor, result)
        return return_and_correct_aliasing(operation, args, kwargs, there) if meets_device else there

    @contextmanager
    def noted(self) -> Iterator[list[Wait]]:
        """The waits of what happens inside, once it is over."""
        before = len(self.waits)
        inside: list[Wait] = []
        yield inside
        inside += self.waits[before:]

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, DeviceTensor) and tensor.untyped_storage().data_ptr() in self._pinned

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _note(self, operation: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Takes note of the operation if the host waits for it, or if it is a copy to the device."""
        kind, waits = operation.overloadpacket, None
        if kind is aten.copy_:
            waits = self._copy(args[1], not isinstance(args[0], DeviceTensor), (*args, False)[2], args[0])
        elif kind is aten._to_copy and kwargs.get("device") is not None:
            goes_back = torch.device(kwargs["device"]).type != DEVICE.type
            waits = self._copy(args[0], goes_back, kwargs.get("non_blocking", False), None)
        elif kind in READS_VALUES or (operation is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
            waits = kind.__name__
        elif kind in INDEXES and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            waits = "boolean index"
        if waits is not None:
            self.waits.append(Wait(waits, _line_of_this_project()))

    def _copy(self, source: Tensor, goes_back: bool, non_blocking: bool, target: Tensor | None) -> str | None:
        """What the host waits for in a copy, if it does: only copies from or to pinned memory go on by themselves."""
        if isinstance(source, DeviceTensor) != goes_back:
            return None  # from the device to the device
        self.copies += not goes_back
        on_the_cpu = target if goes_back else source
        if non_blocking and on_the_cpu is not None and self._is_pinned(on_the_cpu):
            return None
        return f"{'pageable' if non_blocking else 'blocking'} copy {'from' if goes_back else 'to'} the device"


def _values_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = tree_map_only(DeviceTensor, lambda tensor: tensor.values, kwargs)
    return values


def _line_of_this_project() -> str:
    frame = sys._getframe()
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        # Libraries may be installed in a folder of the checkout.
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of this project"


class _Event:
    """A `torch.cuda.Event` of a device on which nothing is ever under way."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...


class _Stream:
    """A `torch.cuda.Stream` of it."""

    def __init__(self, *_: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...


@contextmanager
def simulated_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    """The device, in place of functions of PyTorch that would look for a real one.

    `backward` gives every weight that a loss depends on a gradient of zeros.
    """
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a simulated device")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**30, 2**30))
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    monkeypatch.setattr(Tensor, "backward", lambda loss, *_, **__: _zero_gradients(loss))
    made_constant.cache_clear()
    try:
        with SimulatedDevice() as device:
            yield device
    finally:
        made_constant.cache_clear()  # of what lies on this device


def _zero_gradients(loss: Tensor) -> None:
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weight = getattr(node, "variable", None)
        if weight is not None and weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        waiting += [following for following, _ in node.next_functions]
