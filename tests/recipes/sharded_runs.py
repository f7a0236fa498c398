"""One of two processes that share out the weights of a run: begins one, then ends another that one process began.

    python sharded_runs.py RANK PORT DATA BEGUN ENDED

PORT and the next one must be free.
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from recipes import byol
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS
from ssl_equi.training.pretraining import Pretraining
from tests.fakes import end_without_probes, forget_processes
from tests.recipes.conftest import QUICK, small_configuration

TRANSFORMER = "hybrid_octic_vit_tiny_patch16_224"


def configuration(data: Path, **changes: Any) -> Any:
    """BYOL with a small transformer: six steps, clipped gradients, moments and decay of the optimiser, a target."""
    sizes = {
        "resume": True, "encoder": TRANSFORMER,
        "encoder_arguments": {"patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 2},
        "optimizer": "adamw", "weight_decay": 0.01, "clip_norm": 0.1, "warmup_steps": 0, "compare_with_random": False,
    }  # fmt: skip
    return small_configuration(data, byol, **(sizes | changes))


def main(rank: int, port: int, data: Path, begun: Path, ended: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    PROBE_PROTOCOLS["embedded"] = lambda: QUICK
    os.environ["MASTER_PORT"] = str(port)
    with mock.patch.object(Pretraining, "finish", end_without_probes):
        byol.main(configuration(data, sharding="full", out=begun, steps=3))
    forget_processes()
    os.environ["MASTER_PORT"] = str(port + 1)
    byol.main(configuration(data, sharding="full", out=ended))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
