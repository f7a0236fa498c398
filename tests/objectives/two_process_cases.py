"""Runs every case of test_distributed.py in one process of a gloo group, or without a group.

    python two_process_cases.py RANK WORLD_SIZE INIT_FILE OUTPUT_FILE [DEVICE [CASE [sharded]]]

Each case is a pure function of (rank, world_size): it takes its rank's share of a fixed global batch and returns
tensors. The test runs several processes of this script and the same functions once without a group. The cases of the
objectives are in cases/, one file a method. Where DEVICE is cuda, all processes share one GPU; with CASE, only cases
run whose names begin so. With `sharded` every objective runs on a vision transformer whose weights are shared out.
"""

import importlib.util
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

Tensors = dict[str, Tensor]
GLOBAL_BATCH = 12
DEVICE = torch.device("cpu")  # of all cases; random numbers are drawn on the CPU, so that they are the same
SHARDED = False  # whether the encoder is a transformer whose weights are shared out
ALSO_SHARDED = ("byol", "moco", "sie_split")
CONVOLUTIONAL = ("equicaps", "capsie")


class BatchNormEncoder(nn.Module):
    """Convolutions with both kinds of batch norm, and one without affine parameters at the end."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, bias=False),
            BatchNormAct2d(12, act_layer=nn.GELU),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 16),
            nn.BatchNorm1d(16, affine=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def make_encoder() -> nn.Module:
    """For images of 8 x 8 pixels, 16 features."""
    if not SHARDED:
        return BatchNormEncoder()
    sizes = {"patch_size": 2, "embed_dim": 16, "num_heads": 2, "depth": 2}
    return create_encoder("hybrid_octic_vit_tiny_patch16_224", 8, **sizes)


def distributed(objective: nn.Module) -> nn.Module:
    """What is called in the objective's place by the processes of a group; without a group the objective itself."""
    if world_size() == 1:
        return objective
    if not SHARDED:
        return DistributedDataParallel(objective)
    shard(objective, DEVICE)
    assert all(isinstance(weight, DTensor) for weight in objective.parameters()), "some weights are not shared out"
    return objective


def share(global_batch: Tensor) -> Tensor:
    """This rank's contiguous part of the global batch, on the device."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return global_batch.chunk(world_size())[rank].to(DEVICE)


def random_pairs(dtype: torch.dtype, action_dim: int = 4) -> tuple[Tensor, ...]:
    """Two views of each object of the global batch, and actions of length 1."""
    views = torch.randn(GLOBAL_BATCH, 2, 3, 8, 8, dtype=dtype)
    return views, nn.functional.normalize(torch.randn(GLOBAL_BATCH, action_dim, dtype=dtype), dim=1)


def train_steps(
    make_objective: Callable[[], nn.Module],
    dtype: torch.dtype,
    make_inputs: Callable[[torch.dtype], tuple[Tensor, ...]] = random_pairs,
    *,
    steps: int = 1,
    after_step: Callable[[nn.Module], None] | None = None,
) -> Tensors:
    """Gradients, buffers, loss and terms of the last of some SGD steps, each on a new global batch.

    Under DistributedDataParallel, or sharded, when there is a group. `make_inputs` returns global tensors
    [GLOBAL_BATCH, ...]; the objective is called with this rank's share of them. `after_step` gets the bare objective
    (momentum targets).
    """
    torch.manual_seed(0)
    objective = convert_sync_batchnorm(make_objective().to(DEVICE, dtype))
    model = distributed(objective)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        inputs = make_inputs(dtype)
        optimizer.zero_grad()
        output = model(*(share(tensor) for tensor in inputs))
        output.loss.backward()
        if step + 1 < steps:
            optimizer.step()
            if after_step is not None:
                after_step(objective)
    result = {f"gradient {name}": p.grad for name, p in objective.named_parameters() if p.requires_grad}
    result |= {f"buffer {name}": buffer for name, buffer in objective.named_buffers()}
    result |= {f"term {name}": term for name, term in output.terms.items()} | {"loss": output.loss.detach()}
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
        x = 3 * torch.randn(GLOBAL_BATCH, *input_shape, generator=generator, dtype=dtype) + 5
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
    x = share(torch.arange(GLOBAL_BATCH * 3, dtype=dtype).reshape(GLOBAL_BATCH, 3)).clone().requires_grad_()
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


def objective_cases() -> dict[str, Callable[[torch.dtype], Tensors]]:
    """The cases of every file in cases/: a dictionary CASES of functions from a dtype to tensors."""
    cases: dict[str, Callable[[torch.dtype], Tensors]] = {}
    for path in sorted((Path(__file__).parent / "cases").glob("*_cases.py")):
        specification = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        assert not cases.keys() & module.CASES.keys(), f"{path} names a case that exists already"
        cases |= module.CASES
    return cases


DTYPES = {"float32": torch.float32, "float64": torch.float64}


def run_all(beginning: str = "", only_sharded: bool = False) -> dict[str, Tensors]:
    """Results on the CPU of the cases whose names begin so.

    Args:
        only_sharded: every objective on the transformer, which otherwise a few are tried with besides.
    """
    global SHARDED
    results: dict[str, Tensors] = {}
    objectives = objective_cases()
    for case, step in (CASES | objectives).items():
        if not case.startswith(beginning):
            continue
        if not only_sharded:
            results |= {f"{case} {name}": step(dtype) for name, dtype in DTYPES.items()}
        if case in ALSO_SHARDED or (only_sharded and case in objectives and not case.startswith(CONVOLUTIONAL)):
            SHARDED = True
            results[f"{case} sharded float64"] = step(torch.float64)
            SHARDED = False
    return {name: {key: value.cpu() for key, value in result.items()} for name, result in results.items()}


def main(
    rank: int, processes: int, init_file: str, output_file: str, device: str = "cpu", beginning: str = "",
    mode: str = "",
) -> None:  # fmt: skip
    global DEVICE
    DEVICE = torch.device(device)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=processes)
    try:
        torch.save(run_all(beginning, mode == "sharded"), output_file)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.modules["two_process_cases"] = sys.modules["__main__"]  # what the files in cases/ import
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
