"""A CUDA graph that is simulated on the CPU: it keeps the operators of one call, and repeats them in the same memory.

Like a real one it knows nothing of Python: numbers are those of the capture, and so are addresses. What would wait for
the device is refused, and the call that is captured changes nothing.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_equi.runtime import cuda_graphs
from tests.simulated_device import READS_VALUES

Result = TypeVar("Result")
aten = torch.ops.aten
SPOILT = 1e9


class RecordedGraph(TorchDispatchMode):
    """In place of `cuda_graphs.CudaGraph`."""

    replays = 0
    """of all graphs"""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # what is changed in place, and its values before

    def run(self, call: Callable[[], Result]) -> Result:
        return call()

    def capture(self, call: Callable[[], Result]) -> Result:
        with torch.random.fork_rng(devices=[]), self:
            result = call()
        with torch.no_grad():
            for _, args, _, made in self._calls:
                for tensor in _tensors(made):
                    if tensor.is_floating_point() and _address(tensor) not in map(_address, _tensors(args)):
                        tensor.fill_(SPOILT)  # nothing was computed yet
            for tensor, values in self._before.values():
                tensor.copy_(values)
        return result

    def replay(self) -> None:
        RecordedGraph.replays += 1
        with torch.no_grad():
            for operation, args, kwargs, recorded in self._calls:
                made = operation(*args, **kwargs)
                for kept, fresh in zip(_tensors(recorded), _tensors(made), strict=True):
                    if _address(kept) != _address(fresh):  # the same: a view, or what was changed in place
                        kept.copy_(fresh)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Checks of inputs read truth values on a CPU, and are left out on a GPU (see recipes/test_host_waits.py).
        if operation.overloadpacket in READS_VALUES and args[0].dtype != torch.bool:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        for given, argument in zip(args, operation._schema.arguments):
            if argument.is_write or operation.overloadpacket is aten.native_batch_norm:  # whose schema hides that
                for tensor in _tensors(given):
                    self._before.setdefault(tensor.data_ptr(), (tensor, tensor.detach().clone()))
        made = operation(*args, **kwargs)
        self._calls.append((operation, args, kwargs, made))
        return made


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def simulate_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets captured functions run on the CPU."""
    monkeypatch.setattr(cuda_graphs, "CudaGraph", RecordedGraph)
    monkeypatch.setattr(RecordedGraph, "replays", 0)
