"""Phase 0: which card this is, and the most that it does: a matrix product, copies, launches of kernels."""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from benchmarks import machine_of, seconds_of, wait_for
from measurements import Phase, Value, run_phase

from ssl_equi.runtime.system import usable_cores

PRODUCT = "bf16 product"
ROUNDS = 10
LAUNCHES = 2000


def card(phase: Phase) -> Value:
    """Memory of the card, and what the figures depend on besides."""
    commit = Path(__file__).parents[2] / ".gpu" / "commit"
    details = machine_of(phase.device) | {
        "cores": usable_cores(),
        "commit": " ".join(commit.read_text().split()) if commit.exists() else "unknown",
        "node": platform.processor() or platform.machine(),
    }
    if phase.quick:
        return Value(0.0, details)
    properties = torch.cuda.get_device_properties(0)
    details |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return Value(properties.total_memory / 2**30, details)


def seconds(work: Callable[[], object], phase: Phase) -> float:
    """Median of some calls after two that are not counted."""
    return statistics.median([seconds_of(work, phase.device) for _ in range(ROUNDS + 2)][2:])


def product(phase: Phase) -> Value:
    side = 64 if phase.quick else 8192
    left, right = (torch.randn(side, side, device=phase.device, dtype=torch.bfloat16) for _ in range(2))
    return Value(2 * side**3 / seconds(lambda: left @ right, phase) / 1e12, {"side": side})


def device_copy(phase: Phase) -> float:
    count = 2**16 if phase.quick else 2**31
    source = torch.zeros(count, dtype=torch.uint8, device=phase.device)
    target = torch.empty_like(source)
    return 2 * count / seconds(lambda: target.copy_(source), phase) / 1e12


def copy_up(phase: Phase) -> float:
    count = 2**16 if phase.quick else 2**28
    source = torch.zeros(count, dtype=torch.uint8, pin_memory=not phase.quick)
    target = torch.empty(count, dtype=torch.uint8, device=phase.device)
    return count / seconds(lambda: target.copy_(source, non_blocking=True), phase) / 1e9


def launch(phase: Phase) -> float:
    """Microseconds of the host to queue a kernel that does next to nothing."""
    number = torch.zeros(1, device=phase.device)
    wait_for(phase.device)
    started = time.perf_counter()
    for _ in range(LAUNCHES):
        number.add_(1)
    queued = time.perf_counter() - started
    wait_for(phase.device)
    return 1e6 * queued / LAUNCHES


def run(phase: Phase) -> None:
    phase.measure("card", "GiB", lambda: card(phase))
    phase.measure(PRODUCT, "TFLOP/s", lambda: product(phase))
    phase.measure("copy on the device, read and written", "TB/s", lambda: device_copy(phase))
    phase.measure("copy up from pinned memory", "GB/s", lambda: copy_up(phase))
    phase.measure("launch of a kernel", "us", lambda: launch(phase))


if __name__ == "__main__":
    run_phase(run)
