"""Fetches the wheels of requirements.txt for another machine: Linux on x86-64, with a given Python.

    python tools/gpu/fetch_wheels.py --python 3.12 --out .gpu/wheels

The Python that runs this needs pip and nothing else; pip's own configuration says where the wheels come from.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
LARGEST_BYTES = 20_000_000  # of all wheels together, so that they travel in seconds
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def requirements(file: Path = REQUIREMENTS) -> list[str]:
    """The lines that name something, such as timm==1.0.31."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    return [line for line in lines if line]


def normalised(name: str) -> str:
    """A distribution's name as it is compared: docstring-parser for docstring_parser."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download_command(python: str, folder: Path, wanted: Sequence[str]) -> list[str]:
    """pip's command line."""
    platforms = [text for platform in PLATFORMS for text in ("--platform", f"{platform}_x86_64")]
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, *platforms, "--dest", str(folder), *wanted,
    ]  # fmt: skip


def check_wheels(folder: Path, wanted: Sequence[str]) -> int:
    """Bytes of the wheels in a folder.

    Raises:
        SystemExit: they are not one for each requirement in its version, or more than a machine should be sent.
    """
    wheels = sorted(folder.glob("*.whl"))
    found = sorted((normalised(wheel.name.split("-")[0]), wheel.name.split("-")[1]) for wheel in wheels)
    asked = sorted((normalised(line.split("==")[0]), line.split("==")[1]) for line in wanted)
    if found != asked:
        missing = ", ".join("==".join(pair) for pair in asked if pair not in found) or "nothing"
        others = ", ".join("==".join(pair) for pair in found if found.count(pair) > asked.count(pair)) or "nothing"
        raise SystemExit(f"{folder} lacks {missing} and has {others} too much: delete it and fetch again")
    size = sum(wheel.stat().st_size for wheel in wheels)
    if size > LARGEST_BYTES:
        raise SystemExit(
            f"the wheels in {folder} have {size / 1e6:.1f} MB and at most {LARGEST_BYTES / 1e6:.0f} should travel: "
            "take out of requirements.txt what the other machine has"
        )
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python")
    parser.add_argument("--out", type=Path, required=True, help="folder that the wheels are put in")
    options = parser.parse_args(arguments)
    wanted = requirements()
    options.out.mkdir(parents=True, exist_ok=True)
    if subprocess.run(download_command(options.python, options.out, wanted)).returncode != 0:
        raise SystemExit("pip could not fetch the wheels: see its message above, or try another Python that has pip")
    size = check_wheels(options.out, wanted)
    print(f"{len(wanted)} wheels, {size / 1e6:.1f} MB, in {options.out}")


if __name__ == "__main__":
    main()
