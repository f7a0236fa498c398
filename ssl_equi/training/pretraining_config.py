"""Options of every pretraining recipe: data, encoder, views, budget, optimiser."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import nn

from ssl_equi.data.sources import DatasetName, Reading
from ssl_equi.data.torchvision_sets import STORED_SIDE
from ssl_equi.errors import RunError
from ssl_equi.options import ActsWhen, Count, CountOrZero, EncoderArguments, ImageSide, NonNegative, Positive, Range
from ssl_equi.probing.protocol import ProtocolName
from ssl_equi.training.config import RunConfig
from ssl_equi.training.optimisation import (
    OptimizerName,
    make_optimizer,
    parameter_groups,
    rising_momentum,
    set_learning_rate,
    warmup_cosine,
)
from ssl_equi.views.makers import PairOptions

EXCLUSIVE_OPTIONS = (
    ("--render-views", "--cache-decoded", "rendering reads no stored views that could be kept"),
    ("--render-views", "--decode-on cuda", "rendering decodes nothing"),
    ("--render-views", "--reading streamed", "rendering reads nothing"),
    ("--render-views", "--loader-workers", "rendering decodes nothing"),
    ("--cache-decoded", "--decode-on cuda", "what is kept has been decoded"),
    ("--cache-decoded", "--reading streamed", "what is kept is read by index"),
    ("--cache-decoded", "--on-bad-record skip", "every view is decoded when the cache is made"),
    ("--decode-on cuda", "--reading streamed", "a GPU decodes what is read by index"),
    ("--decode-on cuda", "--loader-workers", "a GPU decodes in the process that trains"),
    ("--decode-on cuda", "--on-bad-record skip", "a GPU decodes whole batches"),
    ("--reading streamed", "--loader-workers", "what is streamed is decoded by threads"),
)

# What seq-JEPA's released code trains every method with on 3DIEBench, but for the objective: Adam without decay, a
# warm-up by epochs and then a constant rate, 82 steps an epoch of which the last is smaller.
SEQ_JEPA_RELEASED: dict[str, Any] = {
    "dataset": "3diebench", "image_size": 128, "evaluation_split": "val", "encoder": "resnet18", "batch_size": 512,
    "keep_incomplete_batch": True, "epochs": 1000, "optimizer": "adam", "learning_rate": 4e-4,
    "final_learning_rate": 4e-4, "warmup_steps": 20 * 82, "warmup_from": 1e-5, "schedule_by": "epoch",
    "log_every": 20, "save_every": 1000, "probe_protocol": "sie",
}  # fmt: skip


@dataclass(frozen=True)
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
    encoder: str = "strided_cnn_tiny"
    """Any name of timm.list_models(), or one of our own."""
    encoder_arguments: EncoderArguments = field(default_factory=dict)
    """What timm.create_model is given besides the name, in pairs: --encoder-arguments depth 6 embed_dim 128. Without
    pairs it drops those of a configuration, which another encoder may not take."""
    render_views: bool = False
    """Render the views of 3diebench-p or 3diebench-pt while training, on its device; the probes read stored ones."""
    fresh_views: bool = False
    """With render_views, other views of each object in every epoch."""
    cache_decoded: bool = False
    """Decode all training views once, into the user's cache folder (the size is stated), and copy them ever after."""
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
    sgd_momentum: Annotated[
        Annotated[float, Range(minimum=0, below=1)],
        ActsWhen(lambda options: options.optimizer in ("sgd", "lars"), "choose the optimizer sgd or lars"),
    ] = 0.9
    """Momentum of sgd and lars."""
    probe_protocol: ProtocolName = "embedded"
    """How the final heads are trained, and which tasks are asked beside one of each kind; all but embedded and ssl_equi
    are papers' protocols."""
    compare_with_random: bool = True
    """Also probe an untrained encoder; off saves a third of the final probing."""

    @property
    def decodes_stored_images(self) -> bool:
        """See `RunConfig`; CIFAR and STL-10 are decoded in memory, which each process would have for itself."""
        kept = self.cache_decoded or self.dataset in STORED_SIDE
        return not (kept or self.render_views or self.decode_on == "cuda" or self.reading == "streamed")

    def check(self) -> None:
        """Raises RunError for ways of getting at the views that don't go together, or with the data."""
        if self.render_views and self.dataset not in ("3diebench-p", "3diebench-pt"):
            raise RunError(
                f"--render-views is given and --dataset {self.dataset} consists of files: choose 3diebench-p or "
                f"3diebench-pt, or leave it out"
            )
        if self.fresh_views and not self.render_views:
            raise RunError("--fresh-views is given and stored views are always the same: add --render-views")
        given = {
            "--render-views": self.render_views,
            "--cache-decoded": self.cache_decoded,
            "--decode-on cuda": self.decode_on == "cuda",
            "--reading streamed": self.reading == "streamed",
            "--loader-workers": bool(self.loader_workers),
            "--on-bad-record skip": self.on_bad_record == "skip",
        }
        for first, second, reason in EXCLUSIVE_OPTIONS:
            if given[first] and given[second]:
                raise RunError(f"{first} and {second} don't go together ({reason}): give one of the two")
        if self.decode_on == "cuda" and not torch.cuda.is_available():
            raise RunError("--decode-on cuda needs an NVIDIA GPU and PyTorch sees none: leave it out")


@dataclass(frozen=True)
class PretrainingConfig(PretrainingOptions):
    """Options of the recipes that learn from whole views of an object, in pairs or sequences."""

    views: PairOptions = field(default_factory=PairOptions)
    """Where the views of an object come from."""


def optimizer_of(module: nn.Module, config: PretrainingOptions) -> torch.optim.Optimizer:
    """The optimiser that the options ask for, over the parameters of `module` that take a gradient."""
    groups = parameter_groups(module, config.weight_decay, config.decay_bias_and_norm, config.bias_and_norm_rate_factor)
    return make_optimizer(config.optimizer, groups, config.learning_rate, config.sgd_momentum)


def follow_schedule(optimizer: torch.optim.Optimizer, config: PretrainingOptions, step: int, total_steps: int) -> float:
    """Sets the learning rate of a step: linear warm-up, then a cosine; returns it."""
    learning_rate = warmup_cosine(
        _step_of_schedule(config, step, total_steps),
        base=config.learning_rate,
        final=config.final_learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=total_steps,
        warmup_from=config.warmup_from,
    )
    set_learning_rate(optimizer, learning_rate)
    return learning_rate


class ScheduleOptions(Protocol):
    """The options that say how often schedules change."""

    @property
    def epochs(self) -> int: ...

    @property
    def schedule_by(self) -> Literal["step", "epoch"]: ...


class TargetOptions(ScheduleOptions, Protocol):
    """The options that the momentum of a target network depends on."""

    @property
    def target_momentum(self) -> float: ...


def target_momentum(config: TargetOptions, step: int, total_steps: int) -> float:
    """Momentum of the target network at a step: it rises to 1 at the last step or, by the epoch, after the last one."""
    last = total_steps if config.schedule_by == "epoch" else max(total_steps - 1, 1)
    return rising_momentum(_step_of_schedule(config, step, total_steps) / last, base=config.target_momentum)


def _step_of_schedule(config: ScheduleOptions, step: int, total_steps: int) -> int:
    """The step whose values a step has: its own, or that with which its epoch began."""
    steps_per_epoch = total_steps // config.epochs
    return step - step % steps_per_epoch if config.schedule_by == "epoch" else step
