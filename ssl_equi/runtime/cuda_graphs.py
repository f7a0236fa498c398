"""Functions of tensors that a GPU runs as one CUDA graph: all that they launch, at a single launch.

A host takes 5 to 20 microseconds to launch a kernel, and the kernels of a small encoder take less: a GPU then waits for
the host all the time. A graph keeps what one call launched, with the addresses of its memory and the numbers in it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from ssl_equi.errors import RunError

Result = TypeVar("Result")
ORDINARY_CALLS = 3
"""Before the capture: in them libraries choose kernels, compilers compile, and optimisers make their moments."""


class CudaGraph:
    """What a call launches on a GPU. Calls before it run on the same stream, for which libraries set themselves up."""

    def __init__(self, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)

    def run(self, call: Callable[[], Result]) -> Result:
        """An ordinary call, of which nothing is kept."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        return result

    def capture(self, call: Callable[[], Result]) -> Result:
        """Keeps what a call launches and runs none of it: its result is memory that `replay` fills."""
        # thread_local: loaders may go on with their copies in threads of their own.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            return call()

    def replay(self) -> None:
        """Launches what was captured."""
        self._graph.replay()


@dataclass
class _Capture(Generic[Result]):
    """What is known of the calls with inputs of one layout."""

    graph: CudaGraph
    calls: int = 0
    inputs: tuple[Tensor | None, ...] = ()
    result: Result | None = None


class CapturedFunction(Generic[Result]):
    """A function of tensors on a GPU that runs as one CUDA graph, after a few ordinary calls.

    It may read and change other tensors, such as weights and moments, as long as they stay where they are in memory.
    What else it does in Python happens in ordinary calls and once more at the capture, but not in later ones. Random
    numbers follow the generator of the device, as they do in ordinary calls. Inputs of other shapes, such as those of
    an incomplete batch, have a graph of their own.

    Args:
        function: of tensors on the device, or None in their place.
        device: a GPU.
        optimizers: that take a step in the function; their learning rates may change from call to call.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        device: torch.device | str,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self._function, self._device = function, torch.device(device)
        self._rates = [RatesOnDevice(optimizer, self._device) for optimizer in optimizers]
        self._captures: dict[Any, _Capture[Result]] = {}

    def __call__(self, *inputs: Tensor | None) -> Result:
        """The result of the function; from the capture on it lies in memory that the next call writes over.

        Raises:
            RunError: something in the function can't be captured, such as waiting for a value of the device.
        """
        layout = tuple(None if given is None else (given.shape, given.stride(), given.dtype) for given in inputs)
        captured = self._captures.get(layout)
        if captured is None:
            captured = self._captures[layout] = _Capture(CudaGraph(self._device))
        captured.calls += 1
        if captured.calls <= ORDINARY_CALLS:
            return captured.graph.run(partial(self._function, *inputs))
        if captured.calls == ORDINARY_CALLS + 1:
            self._capture(captured, inputs)
        kept = [mine for mine in captured.inputs if mine is not None]
        if kept:
            torch._foreach_copy_(kept, [given for given in inputs if given is not None])
        for rates in self._rates:
            rates.follow()
        captured.graph.replay()
        return cast(Result, captured.result)

    def _capture(self, captured: _Capture[Result], inputs: tuple[Tensor | None, ...]) -> None:
        captured.inputs = tuple(None if given is None else given.clone() for given in inputs)
        try:
            with ExitStack() as stack:
                for rates in self._rates:
                    stack.enter_context(rates.used())
                captured.result = captured.graph.capture(partial(self._function, *captured.inputs))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise RunError(f"a step can't be run as one CUDA graph ({reason}): leave out --cuda-graph") from error


class RatesOnDevice:
    """The learning rates of an optimiser's parameter groups in memory of the device, from which a graph reads them."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer, self._pins = optimizer, device.type == "cuda"
        # CUDA's fused optimisers read float32, those of a CPU the float64 that Python's numbers are.
        dtype = torch.float32 if self._pins else torch.float64
        self._rates = torch.zeros(len(optimizer.param_groups), dtype=dtype, device=device)
        self._told: list[float] | None = None

    def follow(self) -> None:
        """Copies the rates as they are now to the device, which the host doesn't wait for."""
        rates = [group["lr"] for group in self._optimizer.param_groups]
        if rates != self._told:
            self._rates.copy_(torch.tensor(rates, dtype=self._rates.dtype, pin_memory=self._pins), non_blocking=True)
            self._told = rates

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the optimiser's step reads its rates from the device, and agrees to be captured."""
        groups = self._optimizer.param_groups
        ordinary = [dict(group) for group in groups]
        for group, rate in zip(groups, self._rates.unbind(), strict=True):
            group |= {"lr": rate, "capturable": True}
        try:
            yield
        finally:
            for group, options in zip(groups, ordinary, strict=True):
                group.clear()
                group.update(options)
