"""Probes an exported encoder: class, rotations, translations and colour from each part of its features.

    python evaluation/probe.py runs/sie/encoder                                  the embedded test split
    python evaluation/probe.py runs/sie/encoder --split ood_rotation             poses that were never trained on
    python evaluation/probe.py runs/sie/encoder --turns quarter                  views turned in the image plane
    python evaluation/probe.py runs/sie/encoder --data-dir SHARDS --split val --protocol sie
    python evaluation/probe.py timm:resnet18 --image-size 64                     a timm model with random weights
    python evaluation/probe.py runs/simclr/encoder --dataset cifar10 --data-dir DATA --image-size 32
    python evaluation/probe.py runs/equicaps/capsule_network                     activations (inv), poses (equi)

Every view is encoded once; heads are trained on the train split's features. Besides, it is measured whether
augmentations move the features of all images alike. Translations are asked of sets whose objects move; ordinary
images (datasets/images.md) have no poses and are probed for their class and this alone. With --turns every judged view
is turned about the camera's axis, by an angle of its own, and its pose with it: what a head has learnt of upright
images is then asked of turned ones. Prints the table and appends the records to results.json in --out (the folder above
the encoder when not given).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.errors import DataError
from ssl_equi.data.sources import DatasetName, DataSource, open_data
from ssl_equi.data.turned_views import TurnedViews
from ssl_equi.encoders import create_encoder
from ssl_equi.export import build_encoder, load_encoder, normalization_of, parts_of, read_encoder_config
from ssl_equi.pretraining import RANDOM_ENCODER_SEED
from ssl_equi.probing.protocol import PROBE_PROTOCOLS, ProtocolName
from ssl_equi.probing.records import append_records, print_records
from ssl_equi.probing.suite import ProbeResults, run_probes

TIMM_PREFIX = "timm:"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Config:
    """What is probed, and on what."""

    encoder: Annotated[str, tyro.conf.Positional]
    """Folder of an exported encoder, or timm:NAME for random weights."""
    dataset: DatasetName = "3diebench-p"
    """3diebench-p and 3diebench-pt (whose objects also move) render themselves; the others need --data-dir."""
    data_dir: str | Path | None = None
    """Folder with the data set; the user's cache folder for those that render themselves when not given."""
    split: str = "test"
    """Split that is judged; heads are trained on train."""
    image_size: int = 64
    """Side of the data set's images in pixels."""
    protocol: ProtocolName = "embedded"
    """How the heads are trained; sie and equicaps are those papers' protocols."""
    turns: Literal["none", "quarter", "any"] = "none"
    """Turns judged views by a random number of quarter turns (exactly), or by any angle (with interpolation)."""
    turn_training_views: bool = False
    """Turns the views that the heads are trained on likewise."""
    encoder_arguments: dict[str, int | float | bool | str] = field(default_factory=dict)
    """What timm.create_model is given besides timm:NAME, in pairs: --encoder-arguments depth 6 embed_dim 128."""
    compare_with_random: bool = True
    """Also probe an untrained encoder; off saves half of the time."""
    seed: int = 0
    """Seeds the heads."""
    out: Path | None = None
    """Folder of results.json."""


def main(config: Config) -> None:
    data = turned(open_data(config.dataset, config.data_dir, config.split, config.image_size), config)
    if config.encoder.startswith(TIMM_PREFIX):
        name = config.encoder.removeprefix(TIMM_PREFIX)
        results, out = probe_random(name, config, data), Path("runs") / f"random-{name}"
    else:
        results, out = probe_exported(Path(config.encoder), config, data), Path(config.encoder).parent
    out = config.out or out
    print_records(results.records, results.notes)
    append_records(out / "results.json", results.records)
    print(f"added to {out / 'results.json'}")


def turned(data: DataSource, config: Config) -> DataSource:
    """The data, with those views turned that the options name.

    Raises:
        DataError: the training views alone would be turned, or views that aren't square.
    """
    if config.turns == "none" and config.turn_training_views:
        raise DataError("--turn-training-views is given and --turns is none: give --turns quarter or any")
    if config.turns == "none":
        return data
    probe_train = TurnedViews(data.probe_train, config.turns) if config.turn_training_views else data.probe_train
    return replace(data, probe_train=probe_train, evaluation=TurnedViews(data.evaluation, config.turns))


def probe_exported(folder: Path, config: Config, data: DataSource) -> ProbeResults:
    """An exported encoder beside one of its architecture with random weights, both with the exported normalisation."""
    encoder_config = read_encoder_config(folder)
    mean, std = normalization_of(encoder_config)
    encoder = load_encoder(folder)
    random_encoder = None
    if config.compare_with_random:
        torch.manual_seed(RANDOM_ENCODER_SEED)
        random_encoder = build_encoder(encoder_config, folder).to(DEVICE)
    return run_probes(
        encoder.to(DEVICE),
        parts_of(encoder_config),
        data.probe_train,
        data.evaluation,
        random_encoder=random_encoder,
        mean_rgb=mean.tolist(),
        std_rgb=std.tolist(),
        **options(config, data),
    )


def probe_random(name: str, config: Config, data: DataSource) -> ProbeResults:
    """A timm architecture with random weights: what any training has to beat."""
    torch.manual_seed(RANDOM_ENCODER_SEED)
    encoder = create_encoder(name, config.image_size, **config.encoder_arguments)
    return run_probes(
        encoder.to(DEVICE),
        getattr(encoder, "parts", {"all": slice(0, int(encoder.num_features))}),
        data.probe_train,
        data.evaluation,
        random_encoder=None,
        mean_rgb=data.mean_rgb,
        std_rgb=data.std_rgb,
        **options(config, data),
    )


def options(config: Config, data: DataSource) -> dict[str, Any]:
    """What both kinds of encoder are probed with."""
    protocol = PROBE_PROTOCOLS[config.protocol]()
    if config.turn_training_views:
        protocol = replace(protocol, name=f"{protocol.name}_{config.turns}_turned_heads")
    return {"protocol": protocol, "device": DEVICE, "seed": config.seed, "split_name": data.evaluation.split}


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
