"""Runs every case of test_distributed.py in the processes of a gloo group, or without a group.

    python two_process_cases.py WORLD_SIZE FOLDER [DEVICE [CASE [sharded]]]

Each case is a pure function of (rank, world_size): it takes its rank's share of a fixed global batch and returns
tensors. The test runs this script, which leaves what each process finds in FOLDER/rankRANK.pt, and the same functions
once without a group. The cases of the objectives are in cases/, one file per method. Where DEVICE is cuda, all
processes share one GPU; with CASE, only cases run whose names begin so. With `sharded` every objective runs on a vision
transformer whose weights are shared out.
"""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.parts.batch import convert_sync_batchnorm, gather_batch, world_size
from ssl_equi.training.sharding import gathered, shard
from tests.fakes import ConvolutionEncoder
from tests.objectives.case import SIDE, SIZE, Case, all_cases

Tensors = dict[str, Tensor]
DEVICE = torch.device("cpu")  # of all cases; random numbers are drawn on the CPU, so that they are the same
ALSO_SHARDED = ("byol", "moco", "sie_split")


def make_transformer() -> nn.Module:
    """16 features; its weights can be shared out."""
    sizes = {"patch_size": 2, "embed_dim": 16, "num_heads": 2, "depth": 2}
    return create_encoder("hybrid_octic_vit_tiny_patch16_224", SIDE, **sizes)


def sharded(objective: nn.Module) -> nn.Module:
    """The objective, of whose weights each process of a group has its share."""
    shard(objective, DEVICE)
    assert all(isinstance(weight, DTensor) for weight in objective.parameters()), "some weights are not shared out"
    return objective


def share(global_batch: Tensor) -> Tensor:
    """This rank's contiguous part of the global batch, on the device."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return global_batch.chunk(world_size())[rank].to(DEVICE)


def train_steps(case: Case, dtype: torch.dtype, on_transformer: bool = False) -> Tensors:
    """Gradients, buffers, loss and terms of the last of the case's SGD steps.

    Under DistributedDataParallel when there is a group or, with a transformer as encoder, with weights shared out.
    """
    torch.manual_seed(0)
    objective = case.make(make_transformer if on_transformer else ConvolutionEncoder).to(DEVICE, dtype)
    objective.measures_action_gain = True
    objective = model = convert_sync_batchnorm(objective)
    if world_size() > 1:
        model = sharded(objective) if on_transformer else DistributedDataParallel(objective)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    for step in range(case.steps):
        inputs = case.inputs(0 if case.same_batch else step, dtype)
        optimizer.zero_grad()
        output = model(**{name: share(tensor) for name, tensor in inputs.items()})
        output.loss.backward()
        if step + 1 < case.steps:
            optimizer.step()
            if case.momentum is not None:
                objective.update_target(case.momentum)
    result = {f"gradient {name}": p.grad for name, p in objective.named_parameters() if p.requires_grad}
    result |= {f"buffer {name}": buffer for name, buffer in objective.named_buffers()}
    result |= {f"term {name}": term for name, term in output.terms.items()} | {"loss": output.loss.detach()}
    if output.action_gain is not None:  # of errors, whose rounding is relative to them
        result["error with other actions as a share"] = 1 + output.action_gain
    return gathered(result, keep=True)


def batch_norm_steps(layer: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> Tensors:
    """Two training steps, one in eval mode: outputs and input gradients of this rank, buffers, weight gradients."""
    generator = torch.Generator().manual_seed(1)
    layer = convert_sync_batchnorm(layer.to(DEVICE, dtype))
    result: Tensors = {}
    has_statistics = any(True for _ in layer.buffers())
    # Without running statistics eval mode uses the batch of its own process, as torch's SyncBatchNorm does.
    for step, training in enumerate([True, True, False] if has_statistics else [True, True]):
        layer.train(training)
        x = 3 * torch.randn(SIZE, *input_shape, generator=generator, dtype=dtype) + 5
        weights = torch.randn(x.shape, generator=generator, dtype=dtype)
        x = share(x).clone().requires_grad_()
        y = layer(x)
        (y * share(weights)).sum().backward()
        result |= {f"local output {step}": y.detach(), f"local input gradient {step}": x.grad}
    result |= {f"buffer {name}": buffer for name, buffer in layer.named_buffers()}
    return result | {f"summed gradient {name}": p.grad for name, p in layer.named_parameters()}


def gather_step(dtype: torch.dtype) -> Tensors:
    """A function of the gathered batch that every process weights differently."""
    # The weights of all processes add up to 1, which is one process's.
    weight = 2 * (dist.get_rank() + 1) / (world_size() * (world_size() + 1)) if world_size() > 1 else 1
    x = share(torch.arange(SIZE * 3, dtype=dtype).reshape(SIZE, 3)).clone().requires_grad_()
    gathered = gather_batch(x)
    (weight * gathered.square().sum()).backward()
    return {"gathered": gathered.detach(), "local input gradient": x.grad}


def with_activation_and_drop() -> nn.Module:
    return nn.Sequential(BatchNormAct2d(5, act_layer=nn.SiLU), BatchNormAct2d(5, apply_act=False))


CASES: dict[str, Callable[[torch.dtype], Tensors]] = {
    "batch_norm_1d": lambda dtype: batch_norm_steps(nn.BatchNorm1d(5), (5,), dtype),
    "batch_norm_1d_sequence": lambda dtype: batch_norm_steps(nn.BatchNorm1d(5, momentum=None), (5, 7), dtype),
    "batch_norm_2d": lambda dtype: batch_norm_steps(nn.BatchNorm2d(5, momentum=0.3), (5, 4, 3), dtype),
    "batch_norm_not_affine": lambda dtype: batch_norm_steps(nn.BatchNorm2d(5, affine=False), (5, 4, 3), dtype),
    "batch_norm_no_tracking": lambda dtype: batch_norm_steps(nn.BatchNorm1d(5, track_running_stats=False), (5,), dtype),
    "batch_norm_act": lambda dtype: batch_norm_steps(with_activation_and_drop(), (5, 4, 3), dtype),
    "gather": gather_step,
}


DTYPES = {"float32": torch.float32, "float64": torch.float64}


def run_all(beginning: str = "", only_sharded: bool = False) -> dict[str, Tensors]:
    """Results on the CPU of the cases whose names begin so.

    Args:
        only_sharded: every objective on the transformer, which otherwise a few are tried with besides.
    """
    results: dict[str, Tensors] = {}
    cases = {} if only_sharded else CASES
    for name, step in cases.items():
        if name.startswith(beginning):
            results |= {f"{name} {dtype_name}": step(dtype) for dtype_name, dtype in DTYPES.items()}
    for name, case in all_cases().items():
        if not name.startswith(beginning):
            continue
        if not only_sharded:
            results |= {f"{name} {dtype_name}": train_steps(case, dtype) for dtype_name, dtype in DTYPES.items()}
        if name in ALSO_SHARDED or (only_sharded and case.takes_any_encoder):
            results[f"{name} sharded float64"] = train_steps(case, torch.float64, on_transformer=True)
    return {name: {key: value.cpu() for key, value in result.items()} for name, result in results.items()}


def run_process(rank: int, processes: int, folder: Path, device: str, beginning: str, mode: str) -> None:
    """Runs the cases in one process of a group, and keeps what it finds."""
    global DEVICE
    DEVICE = torch.device(device)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'init'}", rank=rank, world_size=processes)
    try:
        torch.save(run_all(beginning, mode == "sharded"), folder / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def main(processes: int, folder: Path, device: str = "cpu", beginning: str = "", mode: str = "") -> None:
    # Forked, so that torch is imported once; nothing has used a GPU or a thread yet.
    context = multiprocessing.get_context("fork")
    options = (processes, folder, device, beginning, mode)
    started = [context.Process(target=run_process, args=(rank, *options), daemon=True) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in started))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
