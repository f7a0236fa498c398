"""Bounds how long idle compute threads spin, and lets large tensors lie in huge pages, if it is imported before torch.

Between two parallel regions, OpenMP's threads by default spin for milliseconds before they sleep. On a machine that has
other work, they take the cores from it and from the threads they wait for: training beside two busy programs then runs
at less than half of the speed that is left. A short spin costs nothing that can be measured where the machine is idle.

Memory in pages of 2 MiB rather than 4 KiB makes a training step on a CPU some percent faster. Linux gives them to those
who ask, and torch asks for tensors of at least that size.

Torch and the runtimes read these variables when they are loaded, so scripts import this module first. What the user has
set stays.
"""

import os
from collections.abc import MutableMapping

SPINNING = {
    "GOMP_SPINCOUNT": "5000",  # GCC's runtime, which torch has on Linux; rounds of a loop
    "KMP_BLOCKTIME": "1",  # LLVM's and Intel's; milliseconds
}
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
_CHOSEN_BY_THE_USER = ("OMP_WAIT_POLICY", *SPINNING)


def choose_for_torch(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variables, but for those that the environment has; and none on waiting if it says how threads wait."""
    if not any(variable in environment for variable in _CHOSEN_BY_THE_USER):
        environment.update(SPINNING)
    environment.setdefault(HUGE_PAGES, "1")


choose_for_torch()
