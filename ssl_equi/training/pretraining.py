"""What every pretraining recipe does around its loop: data, views, loader, schedule, online probes, ending."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.cache import bytes_of_all_views
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.loading import choice
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.sources import DataSource
from ssl_equi.encoders import create_encoder
from ssl_equi.errors import RunError
from ssl_equi.evaluation.encoders import EncoderSource, open_encoder
from ssl_equi.evaluation.online import OnlineProbes, followed_of
from ssl_equi.objectives.base import Objective, ObjectiveOutput
from ssl_equi.runtime.cuda_graphs import CapturedFunction
from ssl_equi.runtime.device_copies import Unread, merged
from ssl_equi.training.config import LoaderSize, PretrainingOptions
from ssl_equi.training.ending import Ending, probed_parts
from ssl_equi.training.optimisation import described_rates, follow_schedule, freeze, optimizer_of
from ssl_equi.training.processes import Processes
from ssl_equi.training.run import Run
from ssl_equi.views.makers import ViewMaker

Trained = TypeVar("Trained", bound=Objective)
Options = TypeVar("Options")
LARGEST_KEPT = 2**30  # bytes of decoded views that a GPU keeps unasked


def initial_encoder(config: PretrainingOptions) -> nn.Module:
    """The encoder that the options name, initialised from their seed, which heads made after it go on from.

    With `init` it has those weights, and the heads are the same as without.
    """
    torch.manual_seed(config.seed)
    encoder = create_encoder(config.encoder, config.image_size, **config.encoder_arguments)
    if config.init is not None:
        with torch.random.fork_rng(devices=[]):  # whatever it draws, so that the heads depend on the seed alone
            source = open_encoder(config.init, image_size=config.image_size)
        if (config.encoder, config.encoder_arguments) != named_architecture(source):
            raise RunError(
                f"--init {config.init} is no {config.encoder}: let `with_named_encoder` complete the configuration"
            )
        encoder.load_state_dict(source.module.state_dict())
    return encoder


def with_named_encoder(config: Options) -> Options:
    """The options of a run, with the encoder that its `init` names in place of theirs."""
    if not isinstance(config, PretrainingOptions) or config.init is None:
        return config
    encoder, arguments = named_architecture(open_encoder(config.init, image_size=config.image_size))
    return replace(config, encoder=encoder, encoder_arguments=arguments)


def named_architecture(source: EncoderSource) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an encoder's architecture, but for the size of the images."""
    name, arguments = json.loads(source.architecture)
    return name, {argument: value for argument, value in arguments.items() if argument != "img_size"}


class Pretraining(Generic[Trained]):
    """A pretraining run, to be iterated over by the loop of its recipe:

        for step, batch in run:
            pair = run.views(batch, step)
            output = run.train_step(pair.images)
            run.log(output)
        run.finish()

    Whatever can refuse a run does so before the first step, and nothing is written before.

    Args:
        config: the recipe's configuration.
        name: the recipe's name.
        objective: the bare objective; or, if it depends on the data, such as on the width of their actions, what makes
            it of them.
        make_views: makes the recipe's way from a batch to views, of the data and the processes of the run.
        make_optimizer: makes the optimiser, of the objective and the options.

    Attributes:
        objective: the bare objective, for what a recipe's loop does to it.
        data: what is trained and judged on.
        processes: of the run.
        total_steps: of the schedule, from the first step on.
    """

    def __init__(
        self,
        config: PretrainingOptions,
        name: str,
        objective: Trained | Callable[[DataSource], Trained],
        make_views: Callable[[DataSource, Processes], ViewMaker],
        make_optimizer: Callable[[Any, Any], torch.optim.Optimizer] = optimizer_of,
    ) -> None:
        self.config = config
        self.run = Run(config, name)
        self.processes = self.run.processes
        self.data = config.open_data()
        self.objective = cast(Trained, objective if isinstance(objective, Objective) else objective(self.data))
        self.views = make_views(self.data, self.processes)
        freeze(self.objective, config)
        self._model = self.run.prepare(self.objective, lambda module: make_optimizer(module, config))
        self.ending = Ending(self.run, config, self.objective, self.data, self.views.describe())
        self.ending.check()
        self.run.register("data", DataIdentity(self.data.train))
        self.probes = FollowingProbes(self.run, self.objective, self.data)
        self._captured_step: CapturedFunction[ObjectiveOutput] | None = None
        if config.cuda_graph:
            self._captured_step = CapturedFunction(self._update, self.run.device, [self.run.state.optimizer])
        self.total_steps = 0

    def __iter__(self) -> Iterator[tuple[int, ViewBatch]]:
        """The steps that are still to be done, each with its batch on the device."""
        size, stored_views = self.run.loader_size, self.views.stored_views
        with open_loader(self.config, self.data, self.processes, size, stored_views) as loader:
            start = self.run.resume()
            self.total_steps = self.config.epochs * loader.steps_per_epoch
            if self.total_steps <= self.config.warmup_steps:
                self.processes.say(
                    f"warning: the run has {self.total_steps} steps and its learning rate rises for "
                    f"{self.config.warmup_steps}: give more --epochs or fewer --warmup-steps"
                )
            rates = described_rates(self.objective.encoder, self.config)
            if rates is not None:
                self.processes.say(rates)
            for step, batch in self.run.batches(loader, start, self.total_steps, self.ending.outlook()):
                self._step, self._batch = step, batch
                self._learning_rate = follow_schedule(self.run.optimizer, self.config, step, self.total_steps)
                yield step, batch

    def train_step(self, *inputs: Tensor | None) -> ObjectiveOutput:
        """One step on what the objective is given: forward and backward pass, clipping if asked, and the optimiser's
        step at the learning rate of the schedule. Its output has no graph, and lasts until the next step."""
        # What only logged steps measure may draw random numbers of its own, which a graph can't.
        captured = None if self.run.logs(self._step) else self._captured_step
        output = self._update(*inputs) if captured is None else captured(*inputs)
        self.run.watch(output)
        return output

    def _update(self, *inputs: Tensor | None) -> ObjectiveOutput:
        output: ObjectiveOutput = self._model(*inputs)
        self.run.backward(output)
        self.run.optimizer.step()
        self.run.optimizer.zero_grad()
        return output.without_graph()

    def log(self, output: ObjectiveOutput) -> None:
        """Lets the online probes follow the features, and writes a line of the log when one is due."""
        self.probes.update(output, self._batch)
        self.run.log(self._step, output, probes=self.probes.metrics, learning_rate=self._learning_rate)

    def finish(self) -> None:
        """Exports the encoder, probes it on unseen objects, writes the report; see `Ending`."""
        self.ending.finish()


def open_loader(
    config: PretrainingOptions, data: DataSource, processes: Processes, size: LoaderSize, stored_views: int
) -> Loader:
    """Loads this process's share of the global batches: `stored_views` views of each object."""
    for note in data.notes:
        processes.say(note)
    source = image_source(config, data.train, size, processes.device)
    if source.workers > 0:
        processes.say(f"{source.workers} processes decode the images")
    return choice.open_loader(
        data.train,
        source,
        show_progress=processes.is_main,
        global_batch_size=config.batch_size,
        views=stored_views,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.world_size,
        keep_incomplete_batch=config.keep_incomplete_batch,
        on_bad_record=config.on_bad_record,
        max_skipped=config.max_skipped,
    )


def image_source(
    config: PretrainingOptions, train: ViewCollection, size: LoaderSize, device: torch.device
) -> choice.ImageSource:
    """Where the images come from: a small set lies on the GPU that trains, where the options leave that open."""
    source = replace(config.image_source, threads=size.threads, workers=size.workers, device=device)
    says_nothing = config.image_source == choice.ImageSource()
    if device.type == "cpu" or not says_nothing or (config.loader_threads, config.loader_workers) != (None, None):
        return source
    room = min(LARGEST_KEPT, torch.cuda.mem_get_info(device)[0] // 4)
    return replace(source, workers=0, cache_decoded="device") if bytes_of_all_views(train) <= room else source


class DataIdentity:
    """What a checkpoint remembers of the training data, so that a run never goes on with another set."""

    def __init__(self, train: ViewCollection) -> None:
        self.train = train

    def state_dict(self) -> dict[str, str]:
        # The plan (settings and list of objects) and not the fingerprint of the bytes: the embedded set, rendered anew
        # on another machine, may differ in the rounding of a pixel.
        return {"plan_sha256": self.train.plan_sha256, "source": self.train.source}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Raises RunError if the checkpoint was trained on other data."""
        if state["plan_sha256"] != self.train.plan_sha256:
            raise RunError(
                f"the run was trained on other data ({state['source']}) than {self.train.folder} holds: "
                "resume with the first --data-dir, or choose another --out"
            )


class FollowingProbes:
    """Online probes of a run: saved with its checkpoints, fed with the objective's output.

    Of an objective that makes aggregates, the class is read from them too, as part `agg`.
    """

    def __init__(self, run: Run, objective: Objective, data: DataSource) -> None:
        num_classes = len(data.train.class_names)
        self.followed = followed_of(data.train.schema)

        def probes(width: int, columns: dict[str, slice]) -> OnlineProbes:
            return OnlineProbes(
                width, columns, num_classes, followed=self.followed, seed=run.config.seed, device=run.device,
                captured=run.config.cuda_graph,
            )  # fmt: skip

        self.probes = probes(objective.parts["all"].stop, probed_parts(objective))
        run.register("online_probes", self.probes)
        self.aggregate_probes = None
        if objective.aggregate_width is not None:
            self.aggregate_probes = probes(objective.aggregate_width, {"agg": slice(0, objective.aggregate_width)})
            run.register("online_aggregate_probes", self.aggregate_probes)

    def update(self, output: ObjectiveOutput, batch: ViewBatch) -> None:
        """Measures and trains the probes on one step's features."""
        num_views = output.features.shape[1]
        # Augmentations turn and crop a picture, so latents are followed only if the views are stored ones: then a
        # batch holds more than one of each object.
        known = self.probes.are_due and batch.images.shape[1] > 1
        targets = self.followed.targets(batch) if known else None
        self.probes.update(output.features, batch.labels, None if targets is None else targets[:, :num_views])
        if self.aggregate_probes is not None and output.aggregates is not None:
            self.aggregate_probes.update(output.aggregates.unsqueeze(1), batch.labels, None)

    def metrics(self) -> Unread[dict[str, float]]:
        """What `Run.log` reads and writes: of each part since the last call, accuracy and R2 of what is followed."""
        probes = (self.probes, self.aggregate_probes)
        return merged([probe.unread_metrics() for probe in probes if probe is not None])
