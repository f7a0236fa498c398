"""Moving a model and its batches to the device, and what can be done there."""

import ctypes
import sys
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ssl_equi.data.batch import ViewBatch
from ssl_equi.errors import RunError
from ssl_equi.training.config import RunConfig

# Of malloc.h: from which size on memory comes from the system and goes back there at once, and how much free memory at
# the end of the heap goes back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_REUSED = 2**30
LARGEST_REUSED_BY_OLD_GLIBC = 2**25


def prepare_for_device(objective: nn.Module, device: torch.device) -> None:
    """Sets up what makes training fast on the device and changes nothing but the rounding of what it computes.

    Channels-last convolutions run at twice the speed of PyTorch's default layout on a GPU, and about as fast on a CPU,
    where stored views come in this layout. Shapes don't change within a run, so timing cuDNN's kernels once pays, and
    memory that a step has freed on a CPU is what the next one needs. Products of float32 matrices stay exact (no TF32):
    under bf16 they are those of losses, a small part of a step.
    """
    use_channels_last(objective)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()


def check_cuda_graph(config: RunConfig, device: torch.device, world_size: int) -> None:
    """Raises RunError if a run can't have its steps as CUDA graphs and asks for them."""
    if not config.cuda_graph:
        return
    optimizer = getattr(config, "optimizer", None)
    reasons = {
        "needs an NVIDIA GPU, and PyTorch sees none: leave it out": device.type != "cuda",
        f"keeps what one process launches, and this run has {world_size}: start one, or leave it out": world_size > 1,
        "can't gather weights as --sharding full does: leave one of them out": config.sharding == "full",
        "can't restore random states as --checkpoint-activations does: leave one out": config.checkpoint_activations,
        "can't follow the learning rate of --optimizer lars: choose another one, or leave it out": optimizer == "lars",
    }
    for reason, holds in reasons.items():
        if holds:
            raise RunError(f"--cuda-graph {reason}")


def use_channels_last(objective: nn.Module) -> None:
    """Gives convolutions' weights, and the images that they are given, the layout [N, H, W, C] in memory.

    Shapes and values stay, and so do checkpoints, which are written in the default layout. Stored views come in this
    layout already, on a GPU augmented ones, too; others do not.
    """
    for module in objective.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
            module.register_forward_pre_hook(
                lambda _, inputs: tuple(images.contiguous(memory_format=torch.channels_last) for images in inputs)
            )


def keep_freed_memory() -> None:
    """Lets this process reuse the memory of large tensors that were freed, where the C library is glibc.

    Otherwise most of it goes back to the system after every step, which hands it out again page by page, each filled
    with zeros: that is a tenth of the time of a small step.
    """
    allocator_setting = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if allocator_setting is not None:
        # The first is refused by some versions; setting only the second would then keep the threshold small for good.
        if not allocator_setting(M_MMAP_THRESHOLD, LARGEST_REUSED):
            allocator_setting(M_MMAP_THRESHOLD, LARGEST_REUSED_BY_OLD_GLIBC)
        allocator_setting(M_TRIM_THRESHOLD, 2**31 - 1)


STEPS_AHEAD = 2
"""That the host may queue before the first of them is done. More would hold as many batches on the device."""


def on_device(batches: Iterator[ViewBatch], device: torch.device) -> Iterator[ViewBatch]:
    """The batches on a device, for the stream that is current at the first call.

    On a GPU all that a batch takes there runs on a stream of its own, beside the step that is under way: the copy of
    stored views, and the rendering or decoding of others, which happens when a loader is asked for its next batch. So a
    buffer of the loader is free again as soon as its copy is done, and not only after the step.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    training, loading = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    loading.wait_stream(training)  # for what a loader has put on the device, such as meshes
    steps_queued: deque[torch.cuda.Event] = deque()
    while True:
        if len(steps_queued) == STEPS_AHEAD:
            # A whole step is queued behind the one that is waited for here, so the device does not run dry.
            steps_queued.popleft().synchronize()
        with torch.cuda.stream(loading):
            loaded = next(batches, None)
            if loaded is None:
                return
            batch = loaded.to(device)
        training.wait_stream(loading)
        for value in vars(batch).values():
            if isinstance(value, Tensor) and value.device.type == "cuda":
                value.record_stream(training)  # or the next batch would get its memory before the step is done with it
        yield batch
        steps_queued.append(torch.cuda.Event(blocking=True))
        steps_queued[-1].record(training)
