"""What a checkpoint of a run holds, and how it is saved and restored."""

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ssl_equi.checkpoint import list_checkpoints, load_module_strictly, read_state, write_checkpoint
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.training.optimisation import load_optimizer_state
from ssl_equi.training.sharding import gathered, shared_out

KEPT_CHECKPOINTS = 2


class Stateful(Protocol):
    """Anything that is saved with a checkpoint besides the objective and the optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class RunState:
    """The objective, its optimiser, what else is registered, and how far the run has come.

    Args:
        sharded: the weights are shared out among the processes. Checkpoints hold them whole all the same, so that a
            run may go on with another number of processes, or unsharded.
    """

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer, sharded: bool) -> None:
        self.objective, self.optimizer, self.sharded = objective, optimizer, sharded
        self.others: dict[str, Stateful] = {}
        self.steps_done = 0
        self.records_skipped = 0
        """How often a bad record was replaced, in all processes, up to the last checkpoint or line of speed."""

    def trained(self, keep: bool) -> dict[str, Any]:
        """Weights and moments, whole; every process must take part, and `keep` says whether this one gets them."""
        trained = {"objective": dict(self.objective.state_dict()), "optimizer": self.optimizer.state_dict()}
        return gathered(trained, keep) if self.sharded else trained

    def write(self, folder: Path, trained: dict[str, Any], world_size: int) -> None:
        """Writes the checkpoint of the steps done so far, atomically, and deletes all but the newest few."""
        states = {name: state.state_dict() for name, state in self.others.items()} | trained
        states["run"] = {
            "step": self.steps_done, "world_size": world_size, "records_skipped": self.records_skipped,
        }  # fmt: skip
        write_checkpoint(folder / f"step-{self.steps_done:08d}", states)
        for old in list_checkpoints(folder)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, checkpoint: Path) -> None:
        """Puts everything that `write` wrote back; raises CheckpointError if anything of it is missing or spoilt."""
        others = "delete this folder and resume from the one before"
        saved = {name: read_state(checkpoint, name) for name in ("run", "objective", "optimizer", *self.others)}
        try:
            if self.sharded:
                self._share_out(saved)
            load_module_strictly(self.objective, saved["objective"], checkpoint / "objective.safetensors")
            self.steps_done = int(saved["run"]["step"])
            self.records_skipped = int(saved["run"].get("records_skipped", 0))
            load_optimizer_state(self.optimizer, saved["optimizer"])
            for name, state in self.others.items():
                state.load_state_dict(saved[name])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise CheckpointError(
                f"checkpoint {checkpoint} doesn't hold what this run saves ({type(error).__name__}: {error}): {others}"
            ) from error
        if checkpoint.name != f"step-{self.steps_done:08d}":
            raise CheckpointError(f"checkpoint {checkpoint} was saved after step {self.steps_done}: {others}")
        spoilt = self.first_weight_not_finite()
        if spoilt is not None:
            raise CheckpointError(f"the weight {spoilt!r} in checkpoint {checkpoint} is not finite: {others}")

    def _share_out(self, saved: dict[str, Any]) -> None:
        """Leaves this process's share of weights and moments in states that were saved whole."""
        weights = self.objective.state_dict()
        saved["objective"] = {name: shared_out(value, weights.get(name)) for name, value in saved["objective"].items()}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, moments in saved["optimizer"]["state"].items():
            moments |= {name: shared_out(value, parameters[number]) for name, value in moments.items()}

    def first_weight_not_finite(self) -> str | None:
        """Name of a parameter; None if all are finite. The device is waited for once."""
        finite = torch.stack([weight.isfinite().all() for weight in self.objective.parameters()])
        if finite.all():
            return None
        names = [name for name, _ in self.objective.named_parameters()]
        return names[int(finite.int().argmin())]
