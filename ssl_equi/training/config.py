"""Options of a run and of pretraining, and what is checked about them before a run starts or goes on."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch

from ssl_equi.data.bad_records import OnBadRecord
from ssl_equi.data.loading.choice import CachePlace, ImageSource
from ssl_equi.data.sources import DATASETS, DatasetName, DataSource, Reading, open_data
from ssl_equi.errors import RunError
from ssl_equi.evaluation.protocol import ProtocolName
from ssl_equi.files import read_json_object
from ssl_equi.options import (
    ActsWhen,
    Count,
    CountOrZero,
    EncoderArguments,
    GivenName,
    ImageSide,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    Threads,
    Width,
    check_options,
)
from ssl_equi.runtime.system import share_of_cores
from ssl_equi.views.glimpses import SaccadeOptions
from ssl_equi.views.options import ActionNames, PairOptions, check_actions

Options = TypeVar("Options")
Precision = Literal["auto", "no", "bf16"]
OptimizerName = Literal["adam", "adamw", "sgd", "lars"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]

# Of a loader, where the options leave them open. On a host with 16 cores 8 threads decode 23,000 images a second at 256
# pixels, and 16 no more; 12 processes decode 32,000, three times what a compiled ResNet-18 trains on. Each takes 30 MB.
CPU_THREADS, MOST_THREADS, MOST_WORKERS, CORES_OF_THE_TRAINER = 2, 8, 16, 2

_NO_WORKERS = "processes decode instead, so leave out --loader-workers"
_EVALUATE = "leave out --no-evaluate"
_INIT = "leave out --init, which names the encoder"
_ENCODER_LEARNS = ActsWhen(lambda options: options.encoder_rate_factor > 0, "give an encoder_rate_factor above 0")

# Options that may differ between the first start of a run and its continuation: they don't change what is learnt. A run
# that ended at a bad record goes on as if it had skipped bad records from the start.
FREE_OPTIONS = (
    "out", "resume", "steps", "data_dir", "log_every", "save_every", "threads", "loader_threads", "cache_decoded",
    "cache_in", "loader_workers", "on_bad_record", "max_skipped", "tracker", "compile", "cuda_graph",
    "checkpoint_activations", "sharding", "collective_timeout", "evaluate", "tasks", "verbose",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Options that every recipe shares. Batch sizes and steps are global: they don't change with the processes."""

    out: Path | None = None
    """Run folder; runs/NAME when not given, or runs/NAME-2 and so on if that exists."""
    data_dir: str | Path | None = None
    """Folder with the data set's shards, or their http://, https:// or s3:// address; the user's cache folder when not
    given."""
    seed: Seed = 0
    """Seeds the weights, the order of the data and the probes."""
    steps: Count | None = None
    """Stop after this many steps, with the schedule left as it is (a short try of a long run)."""
    resume: bool = False
    """Continue from the newest checkpoint of the run folder; starts afresh if it has none. A run that a signal stopped
    leaves with status 75 and is waiting for this."""
    mixed_precision: Precision = "auto"
    """no or bf16; losses and their statistics stay in fp32. auto: what `accelerate launch --mixed_precision` was given,
    or else no."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient, over all parameters; not clipped when not given."""
    compile: bool = False
    """Compile encoder, momentum target and heads with torch.compile; of vision transformers each block by itself. On a
    GPU also the colour changes of augmented views."""
    cuda_graph: Annotated[bool, ActsWhen(lambda options: options.log_every > 1, "give a log_every above 1")] = False
    """Launch each step on a GPU at once, as a CUDA graph, with what `compile` makes: for small encoders, whose kernels
    take less time than their launches. Takes the memory of a step twice, since steps that are logged run without."""
    checkpoint_activations: bool = False
    """Compute the encoder's activations again in the backward pass rather than keep them: larger models and batches fit
    into memory, for about a third more computation."""
    sharding: Literal["none", "full"] = "none"
    """none: every process holds all weights. full: the weights of vision transformers and their heads, gradients and
    the optimiser's state are shared out among the processes, for models that one GPU can't hold."""
    log_every: Count = 10
    """Steps between two lines of metrics.jsonl."""
    save_every: Count = 200
    """Steps between two checkpoints."""
    threads: Threads | None = None
    """CPU threads of torch in each process; the cores shared among the processes when not given."""
    loader_threads: Annotated[Threads | None, ActsWhen(lambda options: not options.loader_workers, _NO_WORKERS)] = None
    """Threads that decode images, in each process. When neither this nor loader_workers is given, a run on the CPU has
    2; one on a GPU decodes a set of up to 1 GiB once, into its memory, and has processes for a larger one."""
    loader_workers: Annotated[int, Range(minimum=0, maximum=256)] | None = None
    """Processes that decode images, for each process that trains, instead of threads; 0: threads. When not given, as
    many on a GPU as its share of the cores less two, and at most 16."""
    on_bad_record: OnBadRecord = "raise"
    """raise ends the run at a record that is cut, changed or does not decode; skip puts another one of its batch in its
    place, counts and logs it. Records that are judged, and whole shards, are never skipped."""
    max_skipped: Annotated[
        CountOrZero, ActsWhen(lambda options: options.on_bad_record == "skip", "add --on-bad-record skip")
    ] = 100
    """The most different bad records that each process skips before it ends the run after all."""
    collective_timeout: Annotated[float, Range(above=0, maximum=100_000)] = 5.0
    """Minutes that a process waits for the others before it ends the run; at least 30 until the first step is done.
    More than a checkpoint takes to be written."""
    tracker: TrackerName | None = None
    """tensorboard, wandb, trackio or mlflow, besides metrics.jsonl (needs the extra `trackers`)."""
    configuration: GivenName = ""
    """Under what name the recipe has this configuration, for trackers."""

    @property
    def decodes_stored_images(self) -> bool:
        """Whether the CPU decodes images that are read by index: what processes of the loader are for."""
        return True

    @property
    def tags(self) -> dict[str, str]:
        """What trackers can look for, by what it says."""
        return {"configuration": self.configuration} if self.configuration else {}

    def check(self) -> None:
        """Raises RunError for further options, of an extension of this class, that contradict each other."""


@dataclasses.dataclass(frozen=True)
class PretrainingOptions(RunConfig):
    """Options of every pretraining recipe; the defaults are those of the embedded set.

    What a paper used stands in the recipe's named configurations.
    """

    dataset: DatasetName = "3diebench-p"
    """3diebench-p and 3diebench-pt (whose objects also move) render themselves; the others need --data-dir."""
    reading: Reading = "indexed"
    """indexed: every step draws from the whole split; of an address, the splits are first fetched to the user's cache
    folder. streamed: training reads the shards from front to back, where they lie; only what is judged is fetched."""
    shuffle_buffer: Annotated[
        Count, ActsWhen(lambda options: options.reading == "streamed", "add --reading streamed")
    ] = 1000
    """Objects among which a streamed run mixes its batches."""
    image_size: ImageSide = 64
    """Side of the images that the encoder sees, in pixels; stored views of another size (256 in 3DIEBench) are
    resized when they are read."""
    evaluation_split: str = "test"
    """Split of unseen objects for the final probes; val to choose settings."""
    init: str | None = None
    """Trained weights that the encoder starts from, which also say what encoder it is: a run's folder or an exported
    encoder's, timm:NAME (downloaded), timm:NAME@FILE (its weights in a local safetensors file) or hub:OWNER/NAME.
    Random weights when not given."""
    encoder: Annotated[str, ActsWhen(lambda options: options.init is None, _INIT)] = "strided_cnn_tiny"
    """Any name of timm.list_models(), or one of our own."""
    encoder_arguments: Annotated[EncoderArguments, ActsWhen(lambda options: options.init is None, _INIT)] = (
        dataclasses.field(default_factory=dict)
    )
    """What timm.create_model is given besides the name, in pairs: --encoder-arguments depth 6 embed_dim 128. Without
    pairs it drops those of a configuration, which another encoder may not take."""
    render_views: bool = False
    """Render the views of 3diebench-p or 3diebench-pt while training, on its device; the probes read stored ones."""
    fresh_views: bool = False
    """With render_views, other views of each object in every epoch."""
    cache_decoded: bool = False
    """Decode all training views once (the size is stated), and copy them ever after."""
    cache_in: Annotated[CachePlace, ActsWhen(lambda options: options.cache_decoded, "add --cache-decoded")] = "disk"
    """Where decoded views are kept: in the user's cache folder, for all runs; in the memory of this run; or in that of
    the device that trains, which then takes its batches itself: the fastest for a small set on a GPU."""
    decode_on: Literal["cpu", "cuda"] = "cpu"
    """Where the JPEGs of shards are decoded; cuda (nvJPEG) gives slightly other pixels."""
    batch_size: Count = 64
    """Objects in a step over all processes, two views each."""
    keep_incomplete_batch: bool = False
    """Train also on the objects left over at the end of an epoch, as one more, smaller batch. Each process has equally
    many of them, and what can't be shared so is dropped; fewer than 2 objects in all make no batch."""
    epochs: Count = 160
    """Passes over the objects; each shows one pair of views of each object."""
    optimizer: OptimizerName = "adam"
    """adam, adamw, sgd or lars."""
    learning_rate: Positive = 1e-3
    """After the warm-up. Not scaled with the batch: give the rate that is meant."""
    final_learning_rate: NonNegative = 1e-5
    """End of the cosine; the same as the learning rate for a constant one."""
    warmup_steps: CountOrZero = 100
    """Steps of linear warm-up."""
    warmup_from: Annotated[
        NonNegative | None, ActsWhen(lambda options: options.warmup_steps > 0, "give warmup_steps above 0")
    ] = None
    """Learning rate of the first step, from which the warm-up rises to learning_rate at step warmup_steps, counted from
    0. When not given, it starts from learning_rate / warmup_steps and gets there one step earlier."""
    schedule_by: Literal["step", "epoch"] = "step"
    """How often the learning rate and the momentum of a target network change. epoch: both keep the value of an epoch's
    first step all through it, so neither gets to the end of its schedule."""
    weight_decay: NonNegative = 0.0
    """Of the weights; how it acts depends on the optimiser."""
    decay_bias_and_norm: Annotated[
        bool, ActsWhen(lambda options: options.weight_decay > 0, "give a weight_decay above 0")
    ] = True
    """Decay biases and normalisation layers too; with lars, off also leaves them out of its scaling."""
    bias_and_norm_rate_factor: NonNegative = 1.0
    """Learning rate of biases and normalisation layers, as a multiple of the others'."""
    encoder_rate_factor: NonNegative = 1.0
    """Learning rate of the encoder, as a multiple of the heads': below 1 to keep more of trained weights. 0 freezes it:
    the heads are trained alone, and its batch norms keep their statistics."""
    layer_decay: Annotated[Annotated[float, Range(above=0, maximum=1)], _ENCODER_LEARNS] = 1.0
    """Learning rate of each layer group of the encoder, as a multiple of that of the next one, whose last is followed
    by the heads. Groups are timm's: the stem, and each block."""
    frozen_layers: Annotated[CountOrZero, _ENCODER_LEARNS] = 0
    """So many layer groups of the encoder, from the stem on, stay as they are: no gradient, and batch norms that keep
    their statistics, by which they also normalise."""
    sgd_momentum: Annotated[
        Annotated[float, Range(minimum=0, below=1)],
        ActsWhen(lambda options: options.optimizer in ("sgd", "lars"), "choose the optimizer sgd or lars"),
    ] = 0.9
    """Momentum of sgd and lars."""
    evaluate: bool = True
    """Probe the encoder on unseen objects at the end. Off: it is only exported, for `evaluation/suite.py` to ask."""
    probe_protocol: Annotated[ProtocolName, ActsWhen(lambda options: options.evaluate, _EVALUATE)] = "embedded"
    """How the final heads are trained, and which tasks are asked beside one of each kind; all but embedded and ssl_equi
    are papers' protocols."""
    tasks: Annotated[tuple[str, ...], ActsWhen(lambda options: options.evaluate, _EVALUATE)] = ()
    """What the final probes ask, by the names of evaluation/suite.py; when not given, one task of each kind and the
    protocol's."""
    compare_with_random: Annotated[bool, ActsWhen(lambda options: options.evaluate, _EVALUATE)] = True
    """Also probe an untrained encoder; off saves a third of the final probing."""
    verbose: Annotated[bool, ActsWhen(lambda options: options.evaluate, _EVALUATE)] = False
    """Print all numbers of the final probes, with notes on how they were made; they are in the report in any case."""

    @property
    def decodes_stored_images(self) -> bool:
        """See `RunConfig`; CIFAR and STL-10 are decoded in memory, which each process would have for itself."""
        kept = self.cache_decoded or DATASETS[self.dataset].side is not None
        return not (kept or self.render_views or self.decode_on == "cuda" or self.reading == "streamed")

    @property
    def tags(self) -> dict[str, str]:
        """See `RunConfig`."""
        return super().tags | {"dataset": self.dataset, "encoder": self.encoder}

    def open_data(self) -> DataSource:
        """The data that the options name; sets that render themselves are rendered if need be."""
        return open_data(self.dataset, self.data_dir, self.evaluation_split, self.image_size, self.reading)

    @property
    def image_source(self) -> ImageSource:
        """Where the images come from."""
        return ImageSource(
            render_views=self.render_views,
            cache_decoded=self.cache_in if self.cache_decoded else None,
            decode_on_cuda=self.decode_on == "cuda",
            streamed=self.reading == "streamed",
            workers=self.loader_workers or 0,
            fresh_views=self.fresh_views,
            shuffle_buffer=self.shuffle_buffer,
        )

    def check(self) -> None:
        """Raises RunError for ways of getting at the views that don't go together, or with the data."""
        if self.render_views and not DATASETS[self.dataset].embedded:
            raise RunError(
                f"--render-views is given and --dataset {self.dataset} consists of files: choose 3diebench-p or "
                f"3diebench-pt, or leave it out"
            )
        if self.fresh_views and not self.render_views:
            raise RunError("--fresh-views is given and stored views are always the same: add --render-views")
        problem = self.image_source.problem()
        if problem is not None:
            raise RunError(problem)
        if self.decode_on == "cuda" and not torch.cuda.is_available():
            raise RunError("--decode-on cuda needs an NVIDIA GPU and PyTorch sees none: leave it out")


@dataclasses.dataclass(frozen=True)
class PretrainingConfig(PretrainingOptions):
    """Options of the recipes that learn from whole views of an object, in pairs or sequences."""

    views: PairOptions = dataclasses.field(default_factory=PairOptions)
    """Where the views of an object come from."""


@dataclasses.dataclass(frozen=True)
class ActionsConfig(PretrainingConfig):
    """Options of the recipes that are told of the change from view to view."""

    actions: ActionNames = ("rotation",)
    """What the objective is told of the change. Of stored views: names of the data's latents, such as azimuth
    elevation. 3DIEBench has rotation, floor_hue, light, light_hue; further names are rotation_color (rotation and hues,
    as in SIE), rotation_6d and rotation_matrix (rotations without a sign), and where objects also move (3diebench-pt,
    3diebench-t) pose_base and pose_object, rotation and translation in that frame. Of augmented views: augmentation."""

    @property
    def told(self) -> ActionNames | None:
        """The actions that the objective is told; None if it asks for none."""
        return self.actions

    def check(self) -> None:
        """See `PretrainingOptions`; names that only the data know are checked when they are open."""
        super().check()
        if self.told is not None:
            check_actions(self.told, self.views, DATASETS[self.dataset].schema)


@dataclasses.dataclass(frozen=True)
class GlimpsesConfig(PretrainingOptions):
    """Options of the recipes that learn from glimpses of an image."""

    observed_views: Width = 4
    """M, glimpses that are observed; one more is predicted. Paper: 1 to 5; 4 in its tables."""
    saccades: SaccadeOptions = dataclasses.field(default_factory=SaccadeOptions)
    """Where the gaze goes, and what it sees there."""
    mean_rgb: tuple[Share, Share, Share] | None = None
    std_rgb: tuple[Positive, Positive, Positive] | None = None
    """Mean and standard deviation that images in [0, 1] are normalised with; those of the data when not given."""

    def open_data(self) -> DataSource:
        """See `PretrainingOptions`."""
        return super().open_data().normalised_with(self.mean_rgb, self.std_rgb)


@dataclasses.dataclass(frozen=True)
class LoaderSize:
    """How many threads of a process that trains decode images, or how many processes in their place."""

    threads: int
    workers: int
    """0: threads"""


def check_run(config: RunConfig) -> None:
    """Raises UserError for options that no run can have."""
    check_options(config)
    config.check()


def with_configuration_name(config: Options, name: str) -> Options:
    """The options of a run, which know under what name their recipe has them; others as they are."""
    return dataclasses.replace(config, configuration=name) if isinstance(config, RunConfig) else config


def refuse_other_options(config_file: Path, mine: dict[str, Any], defaults: dict[str, Any]) -> None:
    """A run goes on with the options that it was begun with, but for those that don't change what is learnt.

    An option that the file doesn't name came with a later version, whose default leaves things as they were: such a
    run was made with that default. One that took a single value, and now takes several, was that value alone.
    """
    cure = "delete this file to resume with the options of this command"
    theirs = flattened(read_json_object(config_file, RunError, cure))
    known = flattened(defaults) | theirs
    for option, value in flattened(mine).items():
        if option not in FREE_OPTIONS and known.get(option) != value and [known.get(option)] != value:
            raise RunError(
                f"{config_file} was made with {option} = {known.get(option)!r} and this command asks for "
                f"{value!r}: resume with the first options, or choose another --out"
            )


def default_threads() -> int:
    """Threads for torch in this process: its share of the usable cores under a launcher, else torch's own choice.

    Launchers set OMP_NUM_THREADS to 1 unless told otherwise, which leaves all cores but one idle on a CPU.
    """
    return share_of_cores() if "ACCELERATE_MIXED_PRECISION" in os.environ else torch.get_num_threads()


def loader_size(config: RunConfig, device: torch.device) -> LoaderSize:
    """What the options ask for, or what suits the device where they leave it open.

    Threads take the interpreter's lock from one another and from the loop that feeds a GPU, which processes don't. Two
    cores are left to the process that trains.
    """
    if device.type == "cpu":
        return LoaderSize(config.loader_threads or CPU_THREADS, config.loader_workers or 0)
    cores = share_of_cores() - CORES_OF_THE_TRAINER
    workers = config.loader_workers
    if workers is None:
        suited = config.loader_threads is None and config.decodes_stored_images and hasattr(os, "memfd_create")
        workers = min(cores, MOST_WORKERS) if suited and cores > 1 else 0
    return LoaderSize(config.loader_threads or max(CPU_THREADS, min(cores, MOST_THREADS)), workers)


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their names on the command line, such as objective.inv_weight."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
