"""What the scripts that evaluate an encoder share: their options, and the way from these to a folder of results."""

import hashlib
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from ssl_equi.checkpoint import require_writable
from ssl_equi.data.rendering.procedural import ProceduralConfig
from ssl_equi.data.sources import DATASETS, DatasetName, DataSource, open_data, stored_image_size, turned_source
from ssl_equi.errors import UserError
from ssl_equi.evaluation.encoders import EncoderSource, open_encoder
from ssl_equi.evaluation.features import FeatureStore, default_cache_folder
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, ProbeProtocol, ProtocolName
from ssl_equi.evaluation.publish import publish
from ssl_equi.evaluation.report.write import write_report_or_warn
from ssl_equi.evaluation.results import refuse_results_of_a_run
from ssl_equi.evaluation.suite import Evaluation, evaluate
from ssl_equi.evaluation.tables import print_seeds
from ssl_equi.evaluation.tasks.transfer import open_transfer_set, transfer_tasks
from ssl_equi.options import ActsWhen, Count, EncoderArguments, ImageSide, Range
from ssl_equi.runtime.progress import LiveProgress
from ssl_equi.runtime.system import software_versions


@dataclass(frozen=True)
class AskedEncoder:
    """Which encoder is given which images."""

    encoder: str
    """A run's folder, an exported encoder's, timm:NAME (pretrained), random:NAME or hub:OWNER/NAME."""
    dataset: DatasetName = "3diebench-p"
    """3diebench-p and 3diebench-pt (whose objects also move) render themselves; the others need --data-dir."""
    data_dir: str | None = None
    """Folder or address of the data set; the user's cache folder for those that render themselves when not given."""
    split: str = "test"
    """Split that is judged; heads are trained on train."""
    image_size: ImageSide | None = None
    """Side of the images in pixels, to which stored ones are resized; when not given that which the encoder was
    trained on, but for encoders of others that of rendered views, if they can take it."""
    turns: Literal["none", "quarter", "any"] = "none"
    """Turns judged views by a random number of quarter turns (exactly), or by any angle (with interpolation)."""
    turn_training_views: Annotated[
        bool, ActsWhen(lambda options: options.turns != "none", "add --turns quarter or any")
    ] = False
    """Turns the views that the heads are trained on likewise."""
    weights: Path | None = None
    """Local safetensors file for timm:NAME, in place of a download."""
    encoder_arguments: EncoderArguments = field(default_factory=dict)
    """What timm.create_model is given besides timm:NAME or random:NAME, in pairs: depth 6 embed_dim 128."""

    def with_turns(self, protocol: ProbeProtocol) -> ProbeProtocol:
        """The protocol, whose name says so where heads are trained on turned views."""
        if not self.turn_training_views:
            return protocol
        return replace(protocol, name=f"{protocol.name}_{self.turns}_turned_heads")


@dataclass(frozen=True)
class EvaluationConfig(AskedEncoder):
    """Which encoder is asked what, and on which images."""

    beside: tuple[str, ...] = ()
    """Further encoders that are asked the same of the same images, and put beside it on one page (peers.html)."""
    protocol: ProtocolName = "ssl_equi"
    """How heads are trained and judged; all but ssl_equi are papers' protocols."""
    tasks: tuple[str, ...] = ()
    """What is asked; when not given, the protocol's questions and those of the data's own latents, which latents stands
    for. robustness is four questions, all is everything."""
    transfer: tuple[str, ...] = ()
    """Other data sets whose classes are asked too, each DATASET:DIR, such as folder:/data/flowers or cifar10:/data."""
    transfer_split: Annotated[str, ActsWhen(lambda options: len(options.transfer) > 0, "add --transfer")] = "test"
    """Split of these that is judged."""
    parts: tuple[str, ...] = ()
    """Parts of the features, such as all, inv and equi; all that the encoder has when not given."""
    seeds: Annotated[int, Range(minimum=1, maximum=10_000)] = 3
    """Heads are trained with so many seeds, 0, 1, ..."""
    compare_with_random: bool = True
    """Also ask an untrained encoder of the same architecture; off saves half of the time."""
    cache: Path | None = None
    """Folder of encoded features, which are found again; the user's cache folder when not given."""
    batch_size: Count = 512
    """Images in one forward pass."""
    out: Path | None = None
    """Folder of results.json, arrays.npz and report.html; one within the encoder's run when not given."""


def evaluate_command(config: EvaluationConfig, label: str = "suite") -> Path:
    """Runs an evaluation as a script does, of one encoder or of several; returns the folder of the first one's results.

    Args:
        label: the script's name; part of the default folder.
    """
    configs = [config]
    for text in config.beside:
        configs.append(replace(config, encoder=text, weights=None, encoder_arguments={}))
    opened = [open_encoder_and_data(each) for each in configs]  # all of them, before the first takes its time
    folders: list[Path] = []
    for each, (source, data) in zip(configs, opened, strict=True):
        if folders and config.out is not None:
            each = replace(each, out=config.out / source.name)
        folders.append(_evaluate_encoder(each, source, data, label))
    if config.beside:
        write_report_or_warn(folders, folders[0] / "peers.html")
        print(f"all of them side by side: {folders[0] / 'peers.html'}")
    return folders[0]


def _evaluate_encoder(config: EvaluationConfig, source: EncoderSource, data: DataSource, label: str) -> Path:
    """One encoder; returns the folder of its results."""
    if config.seeds < 1:
        raise UserError(f"--seeds is {config.seeds}: give 1 or more")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    protocol = config.with_turns(PROBE_PROTOCOLS[config.protocol]())
    results_name = f"{label}-{data.name}-{data.evaluation.split}-{protocol.name}"
    out = config.out or source.out_folder / "evaluation" / results_name
    refuse_results_of_a_run(out)
    require_writable(out)
    transfer_sets = [open_transfer_set(text, source.image_size, config.transfer_split) for text in config.transfer]
    store = FeatureStore(config.cache or default_cache_folder())
    with LiveProgress() as progress:
        results = evaluate(
            source, data, protocol, tasks=config.tasks, parts=config.parts,
            seeds=range(config.seeds), further=transfer_tasks(transfer_sets), store=store,
            compare_with_random=config.compare_with_random, device=device, batch_size=config.batch_size,
            say=partial(print, flush=True), progress=progress,
        )  # fmt: skip
    print_seeds(results.records, results.notes, protocol.paper_metrics)
    run = describe(config, source, data, results) | {
        "transfer_fingerprints": {
            each.label: [each.data.probe_train.fingerprint, each.data.evaluation.fingerprint] for each in transfer_sets
        }
    }
    publish(out, source, data, results, run, device)
    print(f"{results.encoder_passes:,} images went through the encoder; all of it in {out}")
    return out


def open_encoder_and_data(config: AskedEncoder) -> tuple[EncoderSource, DataSource]:
    """Opens the encoder, and the data at the size of its images."""
    stored_size = stored_image_size(config.dataset, config.data_dir)
    if stored_size is None and DATASETS[config.dataset].embedded:
        stored_size = ProceduralConfig().image_size
    source = open_encoder(
        config.encoder, image_size=config.image_size, stored_size=stored_size, weights=config.weights,
        arguments=config.encoder_arguments,
    )  # fmt: skip
    data = open_data(config.dataset, config.data_dir, config.split, source.image_size)
    return source, turned_source(data, config.turns, config.turn_training_views)


def describe(config: EvaluationConfig, source: EncoderSource, data: DataSource, results: Evaluation) -> dict[str, Any]:
    """What `results.json` says of the evaluation as a whole."""
    protocol, versions = results.protocol, software_versions()
    return {
        "encoder": config.encoder,
        "name": source.name,
        "architecture": source.architecture,
        "encoder_sha256": source.state_sha256,
        "parts": {name: [columns.start, columns.stop] for name, columns in results.parts.items()},
        "image_size": source.image_size,
        "data": data.name,
        "source": data.evaluation.source,
        "train_fingerprint": data.probe_train.fingerprint,
        "evaluation_fingerprint": data.evaluation.fingerprint,
        "protocol": asdict(protocol),
        "protocol_sha256": hashlib.sha256(repr(protocol).encode()).hexdigest(),
        "paper_metrics": list(protocol.paper_metrics),
        "seeds": config.seeds,
        "encoder_passes": results.encoder_passes,
        "seconds": results.seconds,
        "command": f"python {shlex.join(sys.argv)}",
        "commit": versions["commit"],
        "options": {name: str(value) for name, value in asdict(config).items()},
        "versions": versions,
    }
