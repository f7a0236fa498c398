"""What a number may depend on besides its configuration: software, machine, commit, command."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ssl_equi.text import visible

RECORDED_PACKAGES = (
    "ssl-equi", "torch", "torchvision", "timm", "accelerate", "numpy", "simplejpeg", "safetensors",
)  # fmt: skip


def software_versions() -> dict[str, str]:
    """Versions of the packages that matter, the machine's kind, the commit, and the command."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    versions["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    versions["commit"] = _git_commit()
    versions["command"] = visible(" ".join(sys.argv))
    return versions


def _git_commit() -> str:
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return "not a git checkout"
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
