"""Probes an exported encoder: class, rotations, translations and colour from each part of its features.

    python evaluation/probe.py runs/sie/encoder                                  the embedded test split
    python evaluation/probe.py runs/sie/encoder --split ood_rotation             poses that were never trained on
    python evaluation/probe.py runs/sie/encoder --turns quarter                  views turned in the image plane
    python evaluation/probe.py runs/sie/encoder --data-dir SHARDS --split val --protocol sie
    python evaluation/probe.py random:resnet18                                   a timm model with random weights
    python evaluation/probe.py timm:resnet18 --weights resnet18.safetensors      timm's pretrained weights
    python evaluation/probe.py runs/simclr/encoder --dataset cifar10 --data-dir DATA --image-size 32
    python evaluation/probe.py runs/equicaps/capsule_network                     activations (inv), poses (equi)

Every view is encoded once; heads are trained on the train split's features. The protocol says which tasks are asked;
that of the embedded set also measures whether augmentations move the features of all images alike. Translations are
asked of sets whose objects move, and latents that only these data have (relative_azimuth, absolute_azimuth) besides;
ordinary images (datasets/images.md) have no poses and are not asked for them. With
--turns every judged view is turned about the camera's axis, by an angle of its own, and its pose with it: what a head
has learnt of upright images is then asked of turned ones. Prints the table and appends the records to results.json in
--out (the folder above the encoder when not given).
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.evaluation.command import AskedEncoder, open_encoder_and_data
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, ProtocolName
from ssl_equi.evaluation.results import append_records, refuse_other_content
from ssl_equi.evaluation.suite import evaluate, tasks_for
from ssl_equi.evaluation.tables import print_records
from ssl_equi.options import Seed
from ssl_equi.runtime.progress import LiveProgress

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Config(AskedEncoder):
    """What is probed, and on what."""

    encoder: Annotated[str, tyro.conf.Positional]
    """Folder of an exported encoder, timm:NAME (pretrained), random:NAME or hub:OWNER/NAME."""
    protocol: ProtocolName = "embedded"
    """Which tasks are asked and how heads are trained; all but embedded and ssl_equi are papers' protocols."""
    compare_with_random: bool = True
    """Also probe an untrained encoder; off saves half of the time."""
    seed: Seed = 0
    """Seeds the heads."""
    out: Path | None = None
    """Folder of results.json."""


def main(config: Config) -> None:
    source, data = open_encoder_and_data(config)
    out = config.out or source.out_folder
    refuse_other_content(out / "results.json")
    protocol = config.with_turns(PROBE_PROTOCOLS[config.protocol]())
    with LiveProgress() as progress:
        results = evaluate(
            source, data, protocol, tasks=tasks_for(data.evaluation, protocol.tasks), seeds=(config.seed,),
            device=DEVICE, compare_with_random=config.compare_with_random, say=print, progress=progress,
        )  # fmt: skip
    print_records(results.records, results.notes)
    append_records(out / "results.json", results.records, notes=results.notes)
    print(f"added to {out / 'results.json'}")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
