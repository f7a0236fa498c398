"""Checkpoints without pickle: a folder of safetensors (the tensors) and JSON (everything else), written atomically.

A folder is written under a temporary name, flushed to the disk file by file, and renamed, so a checkpoint that has its
final name is whole. A process that is killed while it writes leaves a temporary folder and the earlier checkpoints.
`checksums.json` holds the SHA-256 of every other file: damage, and files of two checkpoints in one folder, are found
when it is read. Checkpoints of earlier versions don't have it.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ssl_equi.errors import CheckpointError
from ssl_equi.files import read_json_object, sha256_of_file, sync_folder, write_durably

CHECKSUMS_FILE = "checksums.json"
_OTHER_CHECKPOINT = "delete this folder and resume from the one before"
_TENSOR_MARK = "__tensor__"
_INT_KEYS_MARK = "__int_keys__"


def write_checkpoint(folder: Path, states: dict[str, Any]) -> None:
    """Writes each named state (nested dicts and lists of tensors and JSON values) as NAME.safetensors + NAME.json."""
    files: dict[str, bytes] = {}
    for name, state in states.items():
        tensors: dict[str, Tensor] = {}
        skeleton = _detach_tensors(state, "", tensors)
        files[f"{name}.safetensors"] = safetensors.torch.save(tensors)
        files[f"{name}.json"] = json.dumps(skeleton, indent=1).encode()
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[CHECKSUMS_FILE] = json.dumps({"sha256": checksums}, indent=1).encode()
    write_checkpoint_files(folder, files)


def write_checkpoint_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes a folder of files as a whole: temporary folder, every file flushed to the disk, renamed.

    Raises:
        CheckpointError: the disk is full or the folder can't be written; nothing that stood there before is lost.
    """
    temporary = folder.with_name(f".writing-{folder.name}-{os.getpid()}")
    replaced = folder.with_name(f".writing-replaced-{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_durably(temporary / name, content)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(describe_os_error(error, folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def describe_os_error(error: OSError, path: Path) -> str:
    """One sentence for writing that failed, with the cure."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full while writing {path}: free some space and start again; what was saved before is intact"
        )
    return f"{path} can't be written ({error.strerror or error}): check the folder and start again"


def has_checksums(folder: Path) -> bool:
    """Whether damage of a checkpoint can be found; those of earlier versions have no checksums."""
    return (folder / CHECKSUMS_FILE).exists()


def read_state(folder: Path, name: str) -> Any:
    """Reads back one state that `write_checkpoint` wrote, on the CPU; compares both files with their checksums.

    Raises:
        CheckpointError: a file is missing, damaged or of another checkpoint.
    """
    json_file, tensor_file = folder / f"{name}.json", folder / f"{name}.safetensors"
    for file in (json_file, tensor_file):
        if not file.is_file():
            raise CheckpointError(f"checkpoint {folder} has no {file.name}: {_OTHER_CHECKPOINT}")
    if has_checksums(folder):
        checksums = read_json_object(folder / CHECKSUMS_FILE, CheckpointError, _OTHER_CHECKPOINT).get("sha256")
        for file in (json_file, tensor_file):
            if not isinstance(checksums, dict) or checksums.get(file.name) != sha256_of_file(file):
                raise CheckpointError(
                    f"checkpoint {folder} is damaged ({file.name} is not the file that was saved): {_OTHER_CHECKPOINT}"
                )
    skeleton = read_json_object(json_file, CheckpointError, _OTHER_CHECKPOINT)
    try:
        return _attach_tensors(skeleton, read_tensors(tensor_file, _OTHER_CHECKPOINT))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged ({json_file.name} and {tensor_file.name} don't belong together: {error}): "
            f"{_OTHER_CHECKPOINT}"
        ) from error


def read_tensors(file: Path, cure: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file that may hold anything, on the CPU; CheckpointError if it is missing or damaged."""
    try:
        return safetensors.torch.load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: {cure}") from error
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error.strerror or error}): {cure}") from error
    except (safetensors.SafetensorError, MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): {cure}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints `step-XXXXXXXX` in a folder, the earliest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_module_strictly(module: torch.nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Fills a module with a state that must have exactly its names and shapes; floats of any precision are taken.

    Raises:
        CheckpointError: names the file and the first few tensors that differ; the module is left as it was.
    """
    refuse_other_tensors(module.state_dict(), state, source)
    module.load_state_dict(state)


def refuse_other_tensors(own: dict[str, Tensor], state: dict[str, Tensor], source: Path) -> None:
    """Raises CheckpointError unless a state that was read has the names and shapes of a module's own."""
    shapes, types = [], []
    for name, value in state.items():
        if name not in own:
            continue
        there, here = value.dtype, own[name].dtype
        if value.shape != own[name].shape:
            shapes.append(f"{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here")
        elif there != here and not (there.is_floating_point and here.is_floating_point):
            types.append(f"{name} is {there} there and {here} here")
    missing = [f"{name} is not in the file" for name in own if name not in state]
    unknown = [f"{name} is only in the file" for name in state if name not in own]
    # The most telling ones first: another shape says more than a name that one of the two doesn't have.
    differences = shapes + types + missing + unknown
    if differences:
        raise CheckpointError(
            f"{source} holds another architecture ({len(differences)} tensors differ, such as: "
            f"{'; '.join(differences[:3])}): use the options that it was trained with, or another --out folder"
        )


def require_writable(folder: Path) -> None:
    """Raises CheckpointError unless files can be written into a folder, or it can be made; nothing is left behind."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written ({error.strerror}): give another --out") from error


def _detach_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The same nesting with every tensor replaced by its name in `tensors`."""
    if isinstance(value, Tensor):
        # safetensors refuses tensors that share memory, so each one is a copy of its own
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR_MARK: path}
    if isinstance(value, dict):
        children = {str(key): _detach_tensors(item, f"{path}/{key}", tensors) for key, item in value.items()}
        if value and all(isinstance(key, int) for key in value):
            return {_INT_KEYS_MARK: children}
        return children
    if isinstance(value, list | tuple):
        return [_detach_tensors(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    what = str(value) if isinstance(value, float) else f"of type {type(value).__name__}"
    raise CheckpointError(f"a checkpoint can't hold {path} {what}: keep tensors, finite numbers, text, lists and dicts")


def _attach_tensors(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(skeleton, dict):
        if set(skeleton) == {_TENSOR_MARK}:
            return tensors[skeleton[_TENSOR_MARK]]
        if set(skeleton) == {_INT_KEYS_MARK}:
            return {int(key): _attach_tensors(item, tensors) for key, item in skeleton[_INT_KEYS_MARK].items()}
        return {key: _attach_tensors(item, tensors) for key, item in skeleton.items()}
    if isinstance(skeleton, list):
        return [_attach_tensors(item, tensors) for item in skeleton]
    return skeleton
