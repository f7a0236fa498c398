"""Runs every case of test_distributed.py in one process of a gloo group, or without a group.

    python two_process_cases.py RANK WORLD_SIZE INIT_FILE OUTPUT_FILE

Each case is a pure function of (rank, world_size): it takes its rank's share of a fixed global batch and returns
tensors. The test runs two processes of this script and the same functions once without a group.
"""

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_equi.objectives.distributed import convert_sync_batchnorm, gather_batch, world_size
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig

Tensors = dict[str, Tensor]
GLOBAL_BATCH = 12


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


def share(global_batch: Tensor) -> Tensor:
    """This rank's contiguous part of the global batch."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return global_batch.chunk(world_size())[rank]


def train_step(make_objective: Callable[[], nn.Module], dtype: torch.dtype, action_dim: int = 4) -> Tensors:
    """Gradients, buffers, loss and terms of one step, under DistributedDataParallel when there is a group."""
    torch.manual_seed(0)
    objective = convert_sync_batchnorm(make_objective().to(dtype))
    views = torch.randn(GLOBAL_BATCH, 2, 3, 8, 8, dtype=dtype)
    actions = nn.functional.normalize(torch.randn(GLOBAL_BATCH, action_dim, dtype=dtype), dim=1)
    model = DistributedDataParallel(objective) if world_size() > 1 else objective
    output = model(share(views), share(actions))
    output.loss.backward()
    result = {f"gradient {name}": p.grad for name, p in objective.named_parameters()}
    result |= {f"buffer {name}": buffer for name, buffer in objective.named_buffers()}
    return result | {f"term {name}": term for name, term in output.terms.items()} | {"loss": output.loss.detach()}


def sie_step(dtype: torch.dtype, **changes: object) -> Tensors:
    config = SIEConfig(projector=(24, 24, 24), **changes)

    def make() -> SIE:
        objective = SIE(BatchNormEncoder(), config)
        if objective.predictor is not None:
            with torch.no_grad():  # so that the hinge on the prediction's variance is active
                for parameter in objective.predictor.parameters():
                    parameter.mul_(0.2)
        return objective

    return train_step(make, dtype, config.action_dim)


def vicreg_step(dtype: torch.dtype) -> Tensors:
    return train_step(lambda: VICReg(BatchNormEncoder(), VICRegConfig(projector=(24, 24, 24))), dtype)


def batch_norm_steps(layer: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> Tensors:
    """Two training steps, one in eval mode: outputs and input gradients of this rank, buffers, weight gradients."""
    generator = torch.Generator().manual_seed(1)
    layer = convert_sync_batchnorm(layer.to(dtype))
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
    rank = dist.get_rank() if world_size() > 1 else 0
    ranks = [rank] if world_size() > 1 else [0, 1]
    x = share(torch.arange(GLOBAL_BATCH * 3, dtype=dtype).reshape(GLOBAL_BATCH, 3)).clone().requires_grad_()
    gathered = gather_batch(x)
    sum((r + 1) * gathered.square().sum() for r in ranks).backward()
    return {"gathered": gathered.detach(), "local input gradient": x.grad}


def with_activation_and_drop() -> nn.Module:
    return nn.Sequential(BatchNormAct2d(5, act_layer=nn.SiLU), BatchNormAct2d(5, apply_act=False))


CASES: dict[str, Callable[[torch.dtype], Tensors]] = {
    "sie_split": lambda dtype: sie_step(dtype),
    "sie_split_separate_batch_norm": lambda dtype: sie_step(dtype, separate_batch_norm=True),
    "sie_inv_only": lambda dtype: sie_step(dtype, parts="inv_only"),
    "sie_equi_only": lambda dtype: sie_step(dtype, parts="equi_only", action_dim=6),
    "sie_deep": lambda dtype: sie_step(
        dtype, predictor="hypernetwork_deep", hypernetwork_bias=True, predicted_bias=True
    ),
    "sie_mlp": lambda dtype: sie_step(dtype, predictor="mlp", variance_on_prediction=False),
    "vicreg": vicreg_step,
    "batch_norm_1d": lambda dtype: batch_norm_steps(nn.BatchNorm1d(5), (5,), dtype),
    "batch_norm_1d_sequence": lambda dtype: batch_norm_steps(nn.BatchNorm1d(5, momentum=None), (5, 7), dtype),
    "batch_norm_2d": lambda dtype: batch_norm_steps(nn.BatchNorm2d(5, momentum=0.3), (5, 4, 3), dtype),
    "batch_norm_not_affine": lambda dtype: batch_norm_steps(nn.BatchNorm2d(5, affine=False), (5, 4, 3), dtype),
    "batch_norm_no_tracking": lambda dtype: batch_norm_steps(nn.BatchNorm1d(5, track_running_stats=False), (5,), dtype),
    "batch_norm_act": lambda dtype: batch_norm_steps(with_activation_and_drop(), (5, 4, 3), dtype),
    "gather": gather_step,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def run_all() -> dict[str, Tensors]:
    return {f"{case} {name}": step(dtype) for case, step in CASES.items() for name, dtype in DTYPES.items()}


def main(rank: int, processes: int, init_file: str, output_file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=processes)
    try:
        torch.save(run_all(), output_file)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
