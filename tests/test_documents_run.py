"""Slow: each command of the documents runs, on small stand-ins of what it names, with fewer steps and smaller heads.

A command runs as it stands, in a folder of its own, in a process that is forked from this one, whose imports are done.
Behind its options stand those that make it small. What is left out is in `LEFT_OUT`; `accelerate launch` is left out of
the commands behind it, whose scripts run in one process.

    uv run pytest -n 0 -m slow tests/test_documents_run.py                 all of them; minutes on one core
    uv run pytest -n 0 -m slow tests/test_documents_run.py -k "equicaps"   those that name it
"""

import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tyro
from notebooks import written_files

from ssl_equi import __main__ as ssl_equi_command
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS
from ssl_equi.options import taken_out, used_options
from tests.datasets.test_meshes import write_models
from tests.datasets.test_threediebench import write_archive
from tests.documents import ROOT, documented, script_and_options, tutorials
from tests.fakes import RECIPES, load_recipe
from tests.recipes.conftest import NANO, QUICK, SMALL_SIZES
from tests.small_archives import small_archives
from tests.stand_ins import (
    TABLES,
    write_imagenet,
    write_photographs,
    write_posed_photographs,
    write_weights,
)

# Why a command, of which the beginning is given, can't run here.
LEFT_OUT = {
    "ruff ": "a step of .ci/run",
    "mypy": "a step of .ci/run",
    "pytest": "a step of .ci/run",
    "ssl-equi export runs/sie --to hub": "needs an account on the hub; tests/export/test_hub.py has a stand-in of it",
    "python recipes/sie.py --init timm:resnet18 ": "downloads weights",
    "python tools/campaign.py ": "trains for days; tests/tools/test_campaign.py runs a small campaign",
}
EMBEDDED = "3diebench-p"
DATA_FOLDERS = {  # of commands that name no data set beside them
    "data/imagenet": "imagenet", "data/shards": "imagenet", "data/mine": "meshes", "data/mugs": "posed",
    "data/eth80": "posed", "data/many": "many", "SHARDS32": "many", "SMALL32": EMBEDDED,
}  # fmt: skip
GLOBBED = {
    "runs/*-seed?": ("runs/sie-seed0", "runs/vicreg-seed0", "runs/seq_jepa-seed0", "runs/equicaps-seed0"),
    "runs/*-seed?/encoder": ("runs/sie-seed0/encoder",),
    "runs/eth80-*-seed?": ("runs/eth80-sie-seed0", "runs/eth80-vicreg-seed0"),
}
RUN = re.compile(r"runs/(?P<data>eth80-|coil20-|pt-|)(?P<name>\w+?)(-\w+)?(-seed\d)?(/\w+)?")
DATA_OF_RUN = {"": EMBEDDED, "eth80-": "posed", "coil20-": "posed", "pt-": "3diebench-pt"}


def kept() -> list[list[str]]:
    """The words of all commands that are run."""
    return [words for _, words in documented() if not any(is_left_out(words, start) for start in LEFT_OUT)]


def is_left_out(words: list[str], start: str) -> bool:
    return f"{shlex.join(words)} ".startswith(start)


def test_what_is_left_out_is_documented() -> None:
    everything = [words for _, words in documented()]
    assert all(any(is_left_out(words, start) for words in everything) for start in LEFT_OUT)
    assert len(kept()) > 0.9 * len(everything)


# ---------------------------------------------------------------- processes


def run_script(words: list[str], folder: Path) -> str:
    """What a command prints that runs in a folder, without the launcher before it. Fails unless its status is 0."""
    output = folder / "printed.txt"
    process = multiprocessing.get_context("fork").Process(target=_run_in_child, args=(words, folder, output))
    process.start()
    process.join()
    printed = output.read_text()
    assert process.exitcode == 0, f"{shlex.join(words)}\nended with {process.exitcode}:\n{printed[-3000:]}"
    return printed


def _run_in_child(words: list[str], folder: Path, output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    for name in PROBE_PROTOCOLS:
        PROBE_PROTOCOLS[name] = lambda: QUICK
    status: Any = 0
    try:
        if words[0] == "ssl-equi":
            sys.argv = words
            ssl_equi_command.main()
        else:
            script, options = script_and_options(words)
            path = next(place / script for place in (ROOT, folder) if (place / script).is_file())
            sys.argv = [script, *options]
            sys.path.insert(0, str(path.parent))
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 1)


# ---------------------------------------------------------------- what makes commands small


def value_of(words: Sequence[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def configuration_of(script: str, options: list[str]) -> Any:
    """The configuration of a recipe that a command names and changes."""
    configs = load_recipe(Path(script).stem).CONFIGS
    is_named = bool(options) and options[0] in configs
    default = configs[options[0] if is_named else next(iter(configs))]()
    _, changes = taken_out("--images", options[is_named:])
    return tyro.cli(type(default), args=changes, default=default)


def small_heads(options: dict[str, Any], prefix: str = "--") -> Iterator[tuple[str, list[str]]]:
    """Option and words of each size among options that act, which may be in groups."""
    for key, value in options.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, dict):
            yield from small_heads(value, f"{name}.")
        elif key in SMALL_SIZES:
            size = SMALL_SIZES[key]
            yield name, [str(part) for part in (size if isinstance(size, tuple) else (size,))]


def reductions(script: str, options: list[str]) -> list[str]:
    """Options that make a command small and aren't among those that it has."""
    small: dict[str, list[str]] = {}
    if script.startswith("recipes/") or script == "halves.py":
        small |= {"--steps": ["2"], "--log-every": ["1"], "--batch-size": ["4"], "--loader-threads": ["1"]}
        small |= {"--threads": ["1"]} | ({} if "--no-evaluate" in options else {"--no-compare-with-random": []})
    if script.startswith("recipes/"):
        config = configuration_of(script, options)
        small |= dict(small_heads(used_options(config)))
        encoder = value_of(options, "--encoder")
        if encoder is not None and "vit" in encoder and "--encoder-arguments" not in options:
            small["--encoder-arguments"] = ["depth", "2", "embed_dim", "64", "num_heads", "2"]
        elif encoder is None and "--init" not in options:
            pooled = Path(script).stem in ("capsie", "equicaps")
            small |= {"--encoder": [NANO["strided_cnn_pooled" if pooled else "strided_cnn_tiny"]]}
            small |= {"--encoder-arguments": []} if config.encoder_arguments else {}
    elif script == "evaluation/suite.py":
        small = {"--seeds": ["1"], "--no-compare-with-random": []}
    elif script == "evaluation/probe.py":
        small = {"--no-compare-with-random": []}
    elif script == "evaluation/sequences.py":
        small = {"--sequences-per-object": ["1"]}
    elif script == "datasets/meshes.py":
        small = {"--views": ["4"], "--image-size": ["64"], "--workers": ["1"]}
    elif script in ("datasets/imagenet.py", "datasets/threediebench.py"):
        small = {"--source-name": ["stand-ins"], "--license": ["CC0-1.0"]}  # which are fewer than the real ones
    elif script == "datasets/procedural.py":
        sizes = {"image-size": "64", "train-objects": "3", "val-objects": "1", "test-objects": "1", "views": "4"}
        small = {f"--set.{name}": [size] for name, size in sizes.items()} | {"--workers": ["1"]}
    elif script == "tools/seq_jepa_variants.py":
        small = {"--images": ["1536"], "--only": ["base", "gated_predictor"]}
    last_counts = ("--steps", "--batch-size", "--images", "--seeds", "--set.train-objects", "--set.views")
    return [
        word
        for option, values in small.items()
        if option not in options or option in last_counts
        for word in (option, *values)
    ]


# ---------------------------------------------------------------- what commands find in their folder


class Sandbox:
    """Folders in which commands find what they name: data, sources of data, and runs of methods, trained once each."""

    def __init__(self, root: Path, archives: dict[str, Path], image_bytes: Callable[..., bytes]) -> None:
        self.root, self.archives, self.image_bytes = root, archives, image_bytes
        self.runs: dict[tuple[str, str], Path] = {}
        for name, script, out in (
            ("posed", "datasets/posed_images.py", "data/eth80"), ("meshes", "datasets/meshes.py", "data/mine"),
            ("mugs", "datasets/posed_images.py", "data/mugs"), ("many", "datasets/procedural.py", "data/many"),
        ):  # fmt: skip
            folder = self.folder(name)
            self.run(next(words for words in kept() if words[1] == script and out in words), folder)
            self.archives[name] = folder / out

    def folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        return folder

    def run(self, words: list[str], folder: Path) -> str:
        """What a command prints, made small, in a folder that has what it names."""
        script, options = script_and_options(words)
        script = str(Path(script).relative_to(ROOT)) if Path(script).is_absolute() else script
        added = reductions(script, options)
        data_set = self.data_set_of(script, options)
        takes_data = script.startswith("recipes/") or script in (
            "halves.py", "evaluation/suite.py", "evaluation/probe.py", "evaluation/sequences.py",
            "evaluation/retrieval.py", "tools/seq_jepa_variants.py",
        )  # fmt: skip
        if takes_data and "--images" not in options and "--data-dir" not in options:
            added += ["--data-dir", str(self.archives[data_set])]
        self.prepare(words, folder, data_set)
        written = [word for given in words for word in self.expanded(given, script)]
        return run_script([*written, *added], folder)

    def data_set_of(self, script: str, options: list[str]) -> str:
        """The data set that a command names, or that its configuration or the run that it asks was made for."""
        named = value_of(options, "--dataset")
        if named == "posed" and "elevation" in options:
            named = "mugs"
        if named is not None or script.startswith("recipes/"):
            return named or configuration_of(script, options).dataset
        runs = [found for word in options if (found := RUN.fullmatch(word))]
        return DATA_OF_RUN[runs[0]["data"]] if runs else EMBEDDED

    def expanded(self, word: str, script: str) -> list[str]:
        """A word as a shell would expand it; of a loop's the first."""
        braces = re.fullmatch(r"(.*)\{(\w+(?:,\w+)+)\}(.*)", word)
        if braces is not None:
            words = [f"{braces[1]}{part}{braces[3]}" for part in braces[2].split(",")]
            return [expanded for each in words for expanded in self.expanded(each, script)]
        if word in GLOBBED:
            return list(GLOBBED[word])
        return [word.replace("?", "0") if word.startswith("runs/") else word]

    def prepare(self, words: list[str], folder: Path, data_set: str = EMBEDDED) -> None:
        """Makes what the words name, but for what they write."""
        for notebook in tutorials():
            for name, text in written_files(notebook).items():
                (folder / name).write_text(text)
        shutil.copytree(ROOT / "docs" / "campaigns", folder / "docs" / "campaigns")
        for before, word in zip(["", *words], words):
            if before == "--out":
                continue
            for name in self.expanded(word, ""):
                self.make(name, before, folder, data_set)

    def make(self, name: str, before: str, folder: Path, data_set: str) -> None:
        """Makes one thing that a command names."""
        path = folder / name
        if before == "--table" or name in TABLES:
            write_posed_photographs(folder, name)
        elif path.exists():
            return
        elif before == "--data-dir" or name in DATA_FOLDERS:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_told = before == "--data-dir" and name != "data/mine"  # by other options
            path.symlink_to(self.archives[data_set if is_told else DATA_FOLDERS[name]])
        elif name in ("PHOTOS", "photos"):
            write_photographs(path, self.image_bytes)
        elif name in ("IMAGES", "ILSVRC2012"):
            write_imagenet(path, self.image_bytes)
        elif name == "MODELS":
            write_models(path, [f"{kind}/{number}.obj" for kind in ("cup", "chair") for number in range(5)])
        elif before == "--source" and name == "data":
            path.symlink_to(self.archives["cifar10"])
        elif before == "--source":
            write_archive(path, latent_size=10 if name.endswith("-T") else 7)
            for lists in ("SIE/data", "EquiCaps/data"):
                (folder / lists).mkdir(parents=True, exist_ok=True)
                for file in path.glob("*.npy"):
                    shutil.copy(file, folder / lists)
        elif "@" in name:
            architecture, _, file = name.removeprefix("timm:").partition("@")
            write_weights(folder / file, architecture)
        elif found := RUN.fullmatch(name):
            method = max((recipe for recipe in RECIPES if found["name"].startswith(recipe)), key=len)
            data = data_set if before == "--encoder" and data_set in ("posed", "3diebench-pt") else None
            run = self.trained(method, data or DATA_OF_RUN[found["data"]])
            target = folder / "/".join(Path(name).parts[:2])
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                shutil.copytree(run, target)

    def trained(self, method: str, data_set: str) -> Path:
        """The folder of a run of a method, which is made when it is first asked for."""
        if (method, data_set) not in self.runs:
            folder = self.folder(f"{method}-{data_set}")
            latents = {"posed": ["pose"], "3diebench-pt": ["pose_base"]}.get(data_set, [])
            split = ["--evaluation-split", "val"] if data_set == "posed" else []
            actions = ["--actions", *latents] if latents and method not in ("vicreg", "simclr", "byol") else []
            words = ["python", f"recipes/{method}.py", "--dataset", data_set, *split, *actions, "--out", "run"]
            self.run(words, folder)
            self.runs[method, data_set] = folder / "run"
        return self.runs[method, data_set]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Iterator[Sandbox]:
    root = tmp_path_factory.mktemp("sandbox")
    with small_archives(root / "archives", image_bytes) as archives:
        yield Sandbox(root, archives, image_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("words", [pytest.param(words, id=shlex.join(words)[:150]) for words in kept()])
def test_the_command_runs(words: list[str], sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.run(words, tmp_path)
