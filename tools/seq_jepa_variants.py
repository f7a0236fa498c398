"""What keeps seq-JEPA from using its actions: one change at a time, on many objects, with action_gain along the way.

    python datasets/procedural.py --out SHARDS --set.train-objects 336 --splits train      8,064 objects, once
    python tools/seq_jepa_variants.py SHARDS                        all variants, some minutes each on one core
    python tools/seq_jepa_variants.py SHARDS --only base no_action --seed 1 --json figures.jsonl
    python tools/seq_jepa_variants.py SHARDS --encoder strided_cnn_nano --data-dir SMALL      both of 32 pixels

Every variant is the recipe's embedded configuration with one change, and sees equally many images. Views are decoded
once, into memory. Features are judged on the embedded set: `r2_uniform` of the relative rotation by a small head
(`ssl_equi.evaluation.sequences.tasks.QUICK`), and the class by its nearest neighbours, on the test split's objects.
The gain is that of training batches, as means over six equal parts of the training.
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from recipe_steps import recipe_of
from torch import Tensor, nn

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.images import normalise_views
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import encode_split
from ssl_equi.evaluation.sequences.tasks import QUICK
from ssl_equi.evaluation.task import TASKS, Ask
from ssl_equi.latents.actions import actions_of
from ssl_equi.objectives.seq_jepa import SeqJEPA
from ssl_equi.options import Count, Threads
from ssl_equi.training.devices import prepare_for_device
from ssl_equi.training.optimisation import follow_schedule, optimizer_of, target_momentum
from ssl_equi.training.pretraining import initial_encoder

PARTS_OF_TRAINING = 6
LATENTS = ("rotation", "floor_hue", "light", "light_hue")
NO_ACTION: dict[str, Any] = {"conditioning": "none"}
FAST_TARGET: dict[str, Any] = {"config": {"target_momentum": 0.9}, "constant_momentum": True}


@dataclass(frozen=True)
class Variant:
    """One change of the embedded configuration.

    Attributes:
        config, objective: options that differ, of the recipe and of its objective.
        constant_momentum: the target's momentum doesn't rise to 1.
        constant_rate: the learning rate doesn't fall after its warm-up.
        target: what predictions are compared with; centred and standardised with the batch's own statistics.
        last_layer: behind the encoder's pooled features.
        gated_predictor: hidden numbers of the predictor are multiplied with numbers made of the action.
        zero_branches: residual branches of the aggregator start as zero.
        pre_norm: the aggregator normalises before its residual branches.
    """

    config: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    constant_momentum: bool = False
    constant_rate: bool = False
    target: Literal["raw", "centred", "standardised"] = "raw"
    last_layer: Literal["none", "linear"] = "none"
    gated_predictor: bool = False
    zero_branches: bool = False
    pre_norm: bool = False


VARIANTS = {
    "base": Variant(),
    "no_action": Variant(objective=NO_ACTION),
    "predictor_only": Variant(objective={"conditioning": "predictor"}),
    "one_view": Variant(config={"observed_views": 1}),
    "centred_target": Variant(target="centred"),
    "standardised_target": Variant(target="standardised"),
    "momentum_0.9": Variant(**FAST_TARGET),
    "momentum_0.9_no_action": Variant(**FAST_TARGET, objective=NO_ACTION),
    "momentum_0.9_centred": Variant(**FAST_TARGET, target="centred"),
    "momentum_0.9_centred_no_action": Variant(**FAST_TARGET, target="centred", objective=NO_ACTION),
    "momentum_0.99": Variant(config={"target_momentum": 0.99}, constant_momentum=True),
    "no_momentum_target": Variant(objective={"momentum_target": False}),
    "constant_rate": Variant(constant_rate=True),
    "shorter_warm-up": Variant(config={"warmup_steps": 10}),
    "batch_16": Variant(config={"batch_size": 16}),
    "batch_16_no_action": Variant(config={"batch_size": 16}, objective=NO_ACTION),
    "batch_128": Variant(config={"batch_size": 128}),
    "batch_512": Variant(config={"batch_size": 512}),
    "linear_last_layer": Variant(last_layer="linear"),
    "zero_branches": Variant(zero_branches=True),
    "pre_norm": Variant(pre_norm=True),
    "one_layer": Variant(objective={"layers": 1}),
    "all_latents": Variant(config={"actions": LATENTS}),
    "gated_predictor": Variant(gated_predictor=True),
    "momentum_0.9_gated_predictor": Variant(**FAST_TARGET, gated_predictor=True),
}


class WithLinearLayer(nn.Module):
    """An encoder whose features may be negative."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.num_features: int = encoder.num_features  # type: ignore[assignment]
        self.encoder, self.layer = encoder, nn.Linear(self.num_features, self.num_features)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer(self.encoder(images))
        return features


class GatedPredictor(nn.Module):
    """A predictor whose hidden numbers are multiplied with what a linear layer makes of the embedded action."""

    def __init__(self, aggregate_width: int, action_width: int, hidden_width: int, num_features: int) -> None:
        super().__init__()
        self.split = [aggregate_width, action_width]
        self.of_aggregate = nn.Linear(aggregate_width, hidden_width)
        self.of_action = nn.Linear(action_width, hidden_width)
        self.last = nn.Linear(hidden_width, num_features)

    def forward(self, inputs: Tensor) -> Tensor:
        aggregates, embedded = inputs.split(self.split, dim=1)
        predicted: Tensor = self.last(F.relu(self.of_aggregate(aggregates) * (1 + self.of_action(embedded))))
        return predicted


class VariedSeqJEPA(SeqJEPA):
    """seq-JEPA with other targets."""

    target_form: str = "raw"

    def _encode(self, views: Tensor) -> tuple[Tensor, Tensor]:
        features, target = super()._encode(views)
        if self.target_form != "raw":
            target = target - target.mean(dim=0)
        if self.target_form == "standardised":
            target = target / (target.std(dim=0) + 1e-4)
        return features, target


@dataclass(frozen=True)
class Config:
    """Which variants, and for how long."""

    shards: Annotated[Path, tyro.conf.Positional]
    """Folder with a split train of rendered views."""
    data_dir: Path | None = None
    """Folder of the embedded set, on which features are judged; the user's cache folder when not given."""
    encoder: str = "strided_cnn_tiny"
    """Name of the encoder."""
    only: tuple[str, ...] = ()
    """Names of variants; all when not given."""
    images: Count = 72_576
    """Views that each variant sees, targets included."""
    seed: int = 0
    """Of weights, batches and heads."""
    threads: Threads = 1
    """Threads of PyTorch."""
    json: Path | None = None
    """File that gets a line for each variant."""


class Views:
    """All views of a split in memory, and batches of sequences of them."""

    def __init__(self, split: ShardDataset, data: DataSource) -> None:
        self.data, self.schema = data, split.schema
        self.images = np.empty((split.num_objects, split.num_views, *split.image_size, 3), dtype=np.uint8)
        for objects in np.array_split(np.arange(split.num_objects), max(1, split.num_objects // 64)):
            split.read_all_views(objects, self.images[objects[0] : objects[-1] + 1])
        assert split.quats_xyzw is not None
        self.latents, self.quats_xyzw = torch.tensor(split.latents), torch.tensor(split.quats_xyzw)

    def batches(self, config: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised views [B, M + 1, 3, S, S] and the actions [B, M, A] between them, without end."""
        drawn = np.random.default_rng(config.seed)
        known = actions_of(self.schema, config.actions)
        num_objects, num_views = self.images.shape[:2]
        if num_objects < config.batch_size or num_views <= config.observed_views:
            raise UserError(
                f"the shards hold {num_objects} objects of {num_views} views: give some with at least "
                f"{config.batch_size} objects of {config.observed_views + 1} views"
            )
        while True:
            order = drawn.permutation(num_objects)
            for start in range(0, num_objects - config.batch_size + 1, config.batch_size):
                objects = order[start : start + config.batch_size, None]
                views = drawn.random((len(objects), num_views)).argsort(axis=1)[:, : config.observed_views + 1]
                latents, quats = self.latents[objects, views], self.quats_xyzw[objects, views]
                actions = known(latents[:, :-1], latents[:, 1:], (quats[:, :-1], quats[:, 1:]))
                images = torch.from_numpy(self.images[objects, views])
                yield normalise_views(images, self.data.mean_rgb, self.data.std_rgb), actions


def train(variant: Variant, views: Views, encoder: str, images: int, seed: int) -> dict[str, Any]:
    """Trains a variant, and judges its encoder."""
    recipe = recipe_of("seq_jepa")
    embedded = recipe.CONFIGS["embedded"]()
    objective_config = replace(embedded.objective, **variant.objective)
    config = replace(embedded, seed=seed, objective=objective_config, encoder=encoder, **variant.config)
    config = replace(config, image_size=views.images.shape[2])
    if variant.constant_rate:
        config = replace(config, final_learning_rate=config.learning_rate)
    objective = build(variant, config, views)
    optimizer = optimizer_of(objective, config)
    total_steps = images // (config.batch_size * (config.observed_views + 1))
    losses: list[float] = []
    gains: list[float] = []
    for step, (batch, actions) in zip(range(total_steps), views.batches(config)):
        follow_schedule(optimizer, config, step, total_steps)
        objective.measures_action_gain = step % 5 == 4
        output = objective(batch, actions)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        constant = variant.constant_momentum
        objective.update_target(config.target_momentum if constant else target_momentum(config, step, total_steps))
        losses.append(float(output.loss.detach()))
        gains += [] if output.action_gain is None else [float(output.action_gain)]
    parts = [float(part.mean()) for part in np.array_split(gains, min(len(gains), PARTS_OF_TRAINING))] if gains else []
    last = losses[-max(1, total_steps // PARTS_OF_TRAINING) :]
    return {"steps": total_steps, "loss": float(np.mean(last)), "action_gain": parts} | judged(objective, views, seed)


def build(variant: Variant, config: Any, views: Views) -> VariedSeqJEPA:
    """The objective of a variant, initialised from the seed."""
    encoder = initial_encoder(config)
    encoder = WithLinearLayer(encoder) if variant.last_layer == "linear" else encoder
    action_dim = actions_of(views.schema, config.actions).width
    objective = VariedSeqJEPA(encoder, replace(config.objective, action_dim=action_dim))
    objective.target_form = variant.target
    if variant.gated_predictor:
        sizes = objective.aggregate_width, config.objective.action_width, config.objective.predictor_hidden_width
        objective.predictor = GatedPredictor(*sizes, objective.num_features)
    for layer in objective.aggregator.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.norm_first = variant.pre_norm
            if variant.zero_branches:
                nn.init.zeros_(layer.linear2.weight)
                nn.init.zeros_(layer.self_attn.out_proj.weight)
    prepare_for_device(objective, torch.device("cpu"))
    return objective


def judged(objective: VariedSeqJEPA, views: Views, seed: int) -> dict[str, float]:
    """What the encoder's features tell on the embedded set."""
    data = views.data
    splits = data.probe_train, data.evaluation
    train_cache, test_cache = (encode_split(objective.encoder, split, data.mean_rgb, data.std_rgb) for split in splits)
    ask = Ask(train_cache, test_cache, len(data.train.class_names), QUICK.heads, seed)
    rotation, neighbours = TASKS["relative_rotation"].answer(ask), TASKS["knn"].answer(ask)
    directions = F.normalize(test_cache.features.flatten(0, 1), dim=1)
    return {
        "r2_uniform": rotation.metrics["r2_uniform"],
        "angle_deg_median": rotation.metrics["angle_deg_median"],
        "knn_top1": neighbours.metrics["top1"],
        "mean_cosine": float(directions.mean(dim=0).square().sum()),  # of all pairs of views; 1: collapsed
    }


def main(config: Config) -> None:
    unknown = [name for name in config.only if name not in VARIANTS]
    if unknown:
        raise UserError(f"--only names {unknown[0]!r}: choose from {', '.join(VARIANTS)}")
    torch.set_num_threads(config.threads)
    split = ShardDataset(config.shards, "train")
    views = Views(split, open_data("3diebench-p", config.data_dir, "test", split.image_size[0]))
    print(f"{'variant':30} {'steps':>5} {'loss':>5}  {'action gain, %':36} {'r2':>5} {'angle':>5} {'knn':>5}")
    for name in config.only or VARIANTS:
        found = train(VARIANTS[name], views, config.encoder, config.images, config.seed)
        gains = " ".join(f"{100 * gain:5.1f}" for gain in found["action_gain"])
        numbers = f"{found['r2_uniform']:5.3f} {found['angle_deg_median']:5.1f} {found['knn_top1']:5.3f}"
        print(f"{name:30} {found['steps']:5} {found['loss']:5.3f}  {gains:36} {numbers}", flush=True)
        if config.json is not None:
            with open(config.json, "a") as file:
                file.write(json.dumps({"variant": name, "seed": config.seed, "images": config.images, **found}) + "\n")
        assert math.isfinite(found["loss"]), name


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
