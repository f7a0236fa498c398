"""Gives an exported encoder in another format: a folder for timm, a torch.export program, ONNX, or a hub repository.

    python evaluation/export.py runs/sie --to onnx                      runs/sie/encoder.onnx
    python evaluation/export.py runs/sie --to torch --out sie.pt2       a program for torch.export.load
    python evaluation/export.py runs/sie --to timm --out sie            weights, config.json and a model card
    python evaluation/export.py runs/sie --to hub --repo OWNER/NAME     the same, pushed to the Hugging Face hub

A program takes images float32 [N, 3, S, S] in [0, 1] of the size that the encoder was trained on, in any number, and
gives the features of each part under its name; it normalises the images itself. Before it is written, its features are
compared with the encoder's; more than 1e-4 apart, or what a format can't hold, is an error that leaves no file.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.evaluation.model_card import model_card
from ssl_equi.export.encoder import encoder_folder, read_encoder_config
from ssl_equi.export.hub import push_files
from ssl_equi.export.programs import SUFFIXES, write_program
from ssl_equi.export.timm_folders import how_timm_opens, timm_files, write_timm_folder
from ssl_equi.options import ActsWhen


@dataclass(frozen=True)
class Config:
    """What is exported, and where to."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or of an exported encoder such as runs/sie/encoder."""
    to: Literal["timm", "torch", "onnx", "hub"]
    """Format; onnx needs pip install 'ssl-equi[onnx]'."""
    out: Annotated[Path | None, ActsWhen(lambda config: config.to != "hub", "give another --to")] = None
    """File to write (timm: folder); beside the encoder when not given."""
    repo: Annotated[str | None, ActsWhen(lambda config: config.to == "hub", "give --to hub")] = None
    """OWNER/NAME of the repository on the hub."""
    private: Annotated[bool, ActsWhen(lambda config: config.to == "hub", "give --to hub")] = False
    """Whether only its owner sees a repository that is made."""


def main(config: Config) -> None:
    folder = encoder_folder(config.run)
    name = folder.resolve().name
    if config.to == "hub":
        if config.repo is None:
            raise UserError("--to hub needs a repository: give --repo OWNER/NAME")
        files = timm_files(folder, model_card(folder, f"hf-hub:{config.repo}"))
        address = push_files(config.repo, files, private=config.private, message="Encoder exported by ssl-equi")
        print(f"pushed to {address}. {how_timm_opens(read_encoder_config(folder))}")
    elif config.to == "timm":
        out = config.out or folder.parent / f"{name}-timm"
        write_timm_folder(timm_files(folder, model_card(folder, f"local-dir:{out.resolve().name}")), out)
        print(f"wrote {out}. {how_timm_opens(read_encoder_config(folder))}")
    else:
        out = config.out or folder.parent / f"{name}{SUFFIXES[config.to]}"
        difference = write_program(folder, out, config.to)
        print(f"wrote {out}. Its features differ from the encoder's by at most {difference:.1e}.")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
