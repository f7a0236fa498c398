"""Modules as folders: safetensors + JSON, written as a whole, opened strictly, never through pickle.

`config.json` describes the module and holds the SHA-256 of the weights, so that damage is found; folders of earlier
versions and of timm don't.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ssl_equi.checkpoint import load_module_strictly, read_tensors, refuse_other_tensors, write_checkpoint_files
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.files import parse_json_object, read_json_object, sha256_of_file

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
WEIGHTS_HASH = "weights_sha256"
LARGEST_SIZE = 16384  # of a module that a file describes: a width, a depth, the side of an image


@dataclass(frozen=True)
class Export:
    """What a folder is to hold: a module's weights, and what describes it.

    Attributes:
        module: whose weights are written.
        config: `config.json` but for the checksum of the weights.
        build: makes the described module with random weights; None if only its user can.
    """

    module: nn.Module
    config: dict[str, Any]
    build: Callable[[], nn.Module] | None

    def write(self, folder: Path) -> None:
        """Writes the folder as a whole; CheckpointError if it can't be, or for what safetensors can't hold."""
        write_checkpoint_files(folder, self._files())

    def check(self) -> None:
        """Does what writing the folder and opening it again will do, but for the disk; UserError where that fails."""
        files = self._files()
        parse_json_object(files[CONFIG_FILE], CONFIG_FILE, CheckpointError, "choose other options")
        if self.build is not None:
            state = _state_without_memory(self.build)
            if state is None:
                # The run that checks its ending goes on afterwards, with the random numbers that it would have had.
                with torch.random.fork_rng(devices=[]):
                    state = self.build().state_dict()
            refuse_other_tensors(state, safetensors.torch.load(files[WEIGHTS_FILE]), Path(WEIGHTS_FILE))

    def _files(self) -> dict[str, bytes]:
        weights = safetensors.torch.save(module_tensors(self.module), metadata={"format": "pt"})
        described = self.config | {WEIGHTS_HASH: hashlib.sha256(weights).hexdigest()}
        return {WEIGHTS_FILE: weights, CONFIG_FILE: json.dumps(described, indent=1).encode()}


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, on the CPU; CheckpointError for a state that is no dense tensor."""
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
            what = "a tensor without values" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise CheckpointError(f"{name} of the {type(module).__name__} is {what}: export a module of dense tensors")
        tensor = value.detach().cpu().contiguous()
        # safetensors refuses shared memory. Each name gets its own, since timm and `load_state_dict` ask for all names;
        # a module that ties its layers ties them again.
        if tensor.untyped_storage().data_ptr() in memory:
            tensor = tensor.clone()
        memory.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


def read_config(folder: Path, what: str, cure: str) -> dict[str, Any]:
    """The `config.json` of a folder that should hold an exported `what`."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        why = f"{CONFIG_FILE} is missing" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"{folder} holds no exported {what} ({why}): {cure}")
    return read_json_object(file, CheckpointError, f"export the {what} again")


def check_sizes(described: Any, folder: Path) -> None:
    """Raises CheckpointError if a number in what a config says of a module is beyond all sizes of modules."""
    if isinstance(described, dict | list):
        for value in described.values() if isinstance(described, dict) else described:
            check_sizes(value, folder)
    elif isinstance(described, int) and abs(described) > LARGEST_SIZE:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes a module with a size of {described:,}, and {LARGEST_SIZE:,} is the "
            "most: export it again"
        )


def open_module(folder: Path, config: dict[str, Any], build: Callable[[], nn.Module], what: str) -> nn.Module:
    """The module that `build` makes from a folder's config, with the folder's weights, in eval mode on the CPU."""
    file = folder / WEIGHTS_FILE
    weights = read_tensors(file, "copy the folder or export again")
    if WEIGHTS_HASH in config and config[WEIGHTS_HASH] != sha256_of_file(file):
        raise CheckpointError(
            f"{file} is damaged (its SHA-256 is not the one in {CONFIG_FILE}): copy the folder or export again"
        )
    # What the config says decides about memory, so it is compared with the weights before any is taken.
    state = _state_without_memory(build)
    if state is not None:
        refuse_other_tensors(state, weights, file)
    try:
        module = build()
    except UserError:
        raise
    except Exception as error:  # whatever sizes that don't go together raise, in this project's modules or in timm's
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes no {what} ({type(error).__name__}: {error}): export it again"
        ) from error
    load_module_strictly(module, weights, file)
    return module.eval()


def _state_without_memory(build: Callable[[], nn.Module]) -> dict[str, Tensor] | None:
    """Names and shapes of a module's tensors; None if it can't be made without values."""
    try:
        with torch.device("meta"):
            return build().state_dict()
    except Exception:  # making it with values tells what is wrong, if anything is
        return None
