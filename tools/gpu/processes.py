"""Phase 4: what processes and big models cost, whether two that share a GPU agree with one, and what saving takes."""

import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from benchmarks import TrainingStep, peak_bytes, random_views, seconds_in_turns, seconds_of
from measurements import Phase, Value, process_environment, run_phase
from steps import AS_RUNS, SIE_256, freed_afterwards
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from vision_transformers import HYBRID

from ssl_equi.checkpoint import write_checkpoint
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.parts.batch import convert_sync_batchnorm
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.training.devices import prepare_for_device
from ssl_equi.training.optimisation import make_optimizer, parameter_groups
from ssl_equi.training.sharding import shard

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "objectives" / "two_process_cases.py"
QUICK_CASES = "vicreg"
BARE, DDP, SYNCHRONISED, SHARDED = "bare", "DDP", "DDP, synchronised batch norm", "FSDP2"
TINY = "hybrid_octic_vit_tiny_patch16_224"


def measure_data_parallel(phase: Phase) -> None:
    """Steps of SIE in a group of one process, in turns with the bare ones; a ratio is that of one round."""
    title = "{} over bare, SIE 256 px, one process"
    if all(phase.value_of(title.format(name)) is not None for name in (DDP, SYNCHRONISED)):
        return
    with tempfile.TemporaryDirectory() as folder:
        backend = "gloo" if phase.quick else "nccl"
        dist.init_process_group(backend, init_method=f"file://{folder}/init", rank=0, world_size=1)
        try:
            steps = {name: data_parallel_step(name, phase) for name in (BARE, DDP, SYNCHRONISED)}
            seconds = seconds_in_turns(steps, 1 if phase.quick else 5, 1 if phase.quick else 5)
            for name, target in ((DDP, "<= 1.03"), (SYNCHRONISED, None)):
                ratios = [own / bare for own, bare in zip(seconds[name], seconds[BARE], strict=True)]
                details = {"ms a step, bare": round(1e3 * statistics.median(seconds[BARE]), 2)}
                phase.measure(title.format(name), "times", partial(Value, statistics.median(ratios), details), target)
        finally:
            dist.destroy_process_group()


def data_parallel_step(name: str, phase: Phase) -> TrainingStep:
    """SIE's step, bare or in one of the two wrappings; all have the same weights and inputs."""
    step = SIE_256.step(AS_RUNS, phase)
    if name == BARE:
        return step
    objective = convert_sync_batchnorm(step.objective) if name == SYNCHRONISED else step.objective
    wrapped = DistributedDataParallel(objective, device_ids=None if phase.quick else [0])
    return TrainingStep(
        wrapped, step.inputs, lambda parameters: step.optimizer, device=phase.device, bf16=step.bf16
    )  # fmt: skip


def large_step(phase: Phase, sharded: bool = False) -> TrainingStep:
    """VICReg's step with 64 images and a hybrid octic ViT-L as it runs, shared out in a group of one process or not."""
    torch.manual_seed(0)
    name, side, objects = (TINY, 32, 4) if phase.quick else (HYBRID, 224, 32)
    objective = VICReg(create_encoder(name, side), VICRegConfig(projector=(512, 512))).to(phase.device)
    prepare_for_device(objective, torch.device(phase.device))
    if sharded:
        shard(objective, torch.device(phase.device))
    optimizer = make_optimizer("adam", parameter_groups(objective.parameters(), 0.0), 1e-4)
    views = random_views(objects, 2, side, phase.device)
    return TrainingStep(objective, (views,), lambda parameters: optimizer, device=phase.device, bf16=True)


def memory_of_activations(phase: Phase) -> Value:
    """Peak memory of a step beside weights and moments, with activations computed again over kept."""
    with freed_afterwards(phase):
        step = large_step(phase)
        peaks, seconds = [], []
        for again in (False, True):
            step.objective.encoder.set_grad_checkpointing(again)
            step.run()
            peaks.append(peak_bytes(step.run, phase.device) / 2**30)
            seconds.append(step.seconds(1 if phase.quick else 3))
    details = {"GiB": round(peaks[0], 3), "GiB, computed again": round(peaks[1], 3)}
    return Value(peaks[1] / peaks[0], details | {"times longer": round(seconds[1] / seconds[0], 2)})


def sharding_cost(phase: Phase) -> Value:
    """Seconds of a sharded step over a bare one's."""
    with freed_afterwards(phase):
        try:
            steps = {name: large_step(phase, name == SHARDED) for name in (BARE, SHARDED)}
            seconds = seconds_in_turns(steps, 1 if phase.quick else 3, 1 if phase.quick else 2)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    ratios = [own / bare for own, bare in zip(seconds[SHARDED], seconds[BARE], strict=True)]
    return Value(statistics.median(ratios), {"ms a step, bare": round(1e3 * statistics.median(seconds[BARE]), 2)})


def two_processes(phase: Phase) -> Value:
    """The largest difference of any gradient, buffer or term in float64 from those of one process, relative to 1 or to
    the largest value if that is above 1.
    """
    cases = [QUICK_CASES] if phase.quick else []
    environment = process_environment(phase.quick) | {"NVIDIA_TF32_OVERRIDE": "0"}

    def started(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir()
        command = [sys.executable, str(CASES), folder.name, str(folder), phase.device, *cases]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    with tempfile.TemporaryDirectory() as temporary:
        folders = {count: Path(temporary) / str(count) for count in (1, 2)}
        processes = [started(folder) for folder in folders.values()]
        codes = [process.wait() for process in processes]
        assert codes == [0, 0], f"the groups of one and two ended with {codes}"
        one, first, second = (
            torch.load(folders[count] / f"rank{rank}.pt", weights_only=True) for count, rank in ((1, 0), (2, 0), (2, 1))
        )
    differences = {
        f"{case}: {name}": difference(name, value, first[case][name], second[case][name])
        for case, values in one.items()
        if case.endswith("float64")
        for name, value in values.items()
        if not name.startswith(("local", "summed", "gathered"))
    }
    worst = max(differences, key=differences.__getitem__)
    return Value(differences[worst], {"worst": worst, "compared": len(differences)})


def difference(name: str, expected: Tensor, first: Tensor, second: Tensor) -> float:
    """Terms may be those of a process's own share, whose mean is right; gradients and buffers are the same in both."""
    found = first if name.startswith(("gradient", "buffer")) else (first + second) / 2
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def saving(phase: Phase) -> Value:
    """Seconds to write a checkpoint of SIE with Adam's moments."""
    step = SIE_256.step(AS_RUNS, phase)
    step.run()
    states = {"objective": dict(step.objective.state_dict()), "optimizer": step.optimizer.state_dict()}
    with tempfile.TemporaryDirectory(dir=phase.work) as folder:
        seconds = seconds_of(lambda: write_checkpoint(Path(folder) / "step", states), phase.device)
        size = sum(file.stat().st_size for file in (Path(folder) / "step").iterdir())
    return Value(seconds, {"MiB": round(size / 2**20, 1)})


def run(phase: Phase) -> None:
    phase.measure("saving SIE with Adam's moments", "s", lambda: saving(phase), "<= 2")
    measure_data_parallel(phase)
    again = "hybrid octic ViT-L: memory of a step, activations computed again over kept"
    phase.measure(again, "times", lambda: memory_of_activations(phase), "<= 0.5", 7)
    phase.measure(
        "FSDP2 over bare, hybrid octic ViT-L, one process", "times", lambda: sharding_cost(phase), "<= 1.2", 7
    )
    phase.measure("two gloo processes against one, float64", "", lambda: two_processes(phase), "<= 1e-9", 15)


if __name__ == "__main__":
    run_phase(run)
