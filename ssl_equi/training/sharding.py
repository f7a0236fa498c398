"""Weights, gradients and the optimiser's state shared out among the processes of a run (PyTorch's FSDP2).

Whatever leaves a run, a checkpoint or an export, is whole again and as if nothing had been shared out. So a run may go
on with another number of processes, and with or without `--sharding full`.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_equi.encoders.compiling import transformer_blocks
from ssl_equi.errors import EncoderError


def shard(objective: nn.Module, device: torch.device) -> None:
    """Leaves each process its share of every parameter, in place; call the objective as a whole from then on.

    A block of the encoder or of its momentum target is gathered when it is its turn, everything else once a step. All
    is gathered and added up in the precision of the weights; as without sharding, autocast chooses that of operations.

    Only vision transformers have blocks to share out; an EncoderError names any other encoder.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = transformer_blocks(objective)
    if not blocks:
        raise EncoderError(
            f"--sharding full is given and the encoder {type(objective.encoder).__name__} has no transformer blocks to "
            "share out: leave it out, since convolutional encoders fit on every GPU, or choose a vision transformer"
        )
    if not dist.is_initialized():  # a run of one process
        backend, store = "nccl" if device.type == "cuda" else "gloo", dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    for parameter in objective.parameters():  # channels-last weights can't be shared out
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Features and embeddings are views; recipes change neither in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def gathered(state: Any, keep: bool) -> Any:
    """The same nesting with every share replaced by the whole tensor, on the CPU; every process must take part.

    Args:
        keep: False on processes that only take part: None stands in the place of their tensors.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(state, DTensor):
        whole = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [gathered(value, keep) for value in state]
    return state


def shared_out(value: Any, like: Any) -> Any:
    """This process's share of a whole tensor, where `like` is shared out and of the same shape; else `value` itself."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value
