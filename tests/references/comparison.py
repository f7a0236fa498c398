"""A named configuration of a recipe in small, and what differs between its objective and its reference."""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ssl_equi import options
from ssl_equi.training.optimisation import follow_schedule, optimizer_of, target_momentum
from tests.references.networks import Batch, MissingWeightError, Network
from tests.references.table import Reference
from tests.references.training import Training

TOLERANCE = 1e-9  # of the package against a reference, relative where a number is above 1
SIDE = 8  # of an image
FEATURES = 16
SMALL_WIDTHS = (24, 20, 12)  # of hidden layers, none like another, so that a layer in another's place shows
SMALL_SIZES = {
    "predictor_hidden_width": 14, "action_width": 8, "feedforward_width": 22, "num_capsules": 4, "image_size": SIDE,
    "queue_size": 128,
}  # fmt: skip
NO_MASKS = {"dropout": 0.0}  # what it leaves out can't be said in advance
# How weights start, and options whose batches are others.
NOT_CHANGED = {"hypernetwork_init", "relative", "reuse_views"}
BUFFERS_OF_NORMS = ("running_mean", "running_var", "num_batches_tracked")

Values = dict[str, Tensor]
Differences = dict[str, float]


class SmallEncoder(nn.Module):
    """The linear map and the batch norm of `Network.encoder`."""

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE * SIDE, FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.linear(images.flatten(1)))


class SmallMapEncoder(nn.Module):
    """The convolution and the batch norm in `capsules.capsules`: a map of 3 x 3 places."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.num_features, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(self.num_features)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def configuration(recipe: ModuleType, key: str) -> Any:
    """The configuration that a key of the table names, as on the command line."""
    _, name, *flags = key.split()
    changes = {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    return dataclasses.replace(recipe.CONFIGS[name](), **changes)


def shrunk(config: Any) -> Any:
    """The same with narrow layers, as many as before."""
    changes: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            changes[entry.name] = shrunk(value)
        elif entry.name in ("projector", "hidden", "hidden_widths"):
            assert len(value) <= len(SMALL_WIDTHS)
            changes[entry.name] = SMALL_WIDTHS[: len(value)]
        elif entry.name in SMALL_SIZES | NO_MASKS:
            changes[entry.name] = (SMALL_SIZES | NO_MASKS)[entry.name]
    return dataclasses.replace(config, **changes)


def small_objective(recipe: ModuleType, config: Any) -> nn.Module:
    """What the recipe builds, with a small encoder, see `moved`."""
    encoder = SmallMapEncoder if hasattr(config, "num_capsules") else SmallEncoder
    with mock.patch("ssl_equi.training.pretraining.create_encoder", lambda *_, **__: encoder()):
        return moved(recipe.build(shrunk(config)))


def moved(objective: nn.Module) -> nn.Module:
    """The objective in float64 and train mode, with weights that are nowhere 0 or 1, and a target of other weights."""
    objective = objective.double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in objective.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return objective


def disagreements(objective: nn.Module, reference: Reference) -> Differences:
    """What differs, of an objective on a `SmallEncoder` or `SmallMapEncoder`, on a random batch."""
    return unlike(differences(moved(objective), reference, random_batch(reference)))


def random_batch(reference: Reference, seed: int = 2) -> Batch:
    """Images and actions from a normal distribution; rotations have length 1."""
    generator = torch.Generator().manual_seed(seed)
    objects, counts = reference.objects, [reference.views, reference.transformed_views, reference.shared_views]
    images = torch.randn(objects, sum(counts), 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    views, transformed_views, shared_views = images.split(counts, dim=1)
    actions = torch.randn(objects, *reference.actions, generator=generator, dtype=torch.float64)
    if reference.actions and reference.actions[-1] in (4, 6, 7):
        actions[..., :4] /= actions[..., :4].norm(dim=-1, keepdim=True)
    return Batch(
        views=views,
        actions=actions if reference.actions else None,
        labels=torch.arange(objects) % 3,
        transformed_views=transformed_views if counts[1] else None,
        elements=torch.arange(counts[1]).expand(objects, -1) if counts[1] else None,
        shared_views=shared_views if counts[2] else None,
        progress=0.5,
    )


def package_output(objective: nn.Module, batch: Batch) -> Any:
    """Of one forward pass, with what the objective takes of the batch."""
    names = inspect.signature(objective.forward).parameters
    return objective(**{name: value for name, value in vars(batch).items() if name in names and value is not None})


def package_values(objective: nn.Module, batch: Batch) -> Values:
    """Loss, terms, gradients of all parameters and all buffers that are saved (the statistics of batch norms), by
    name, after one forward pass."""
    if hasattr(objective, "soften_targets"):
        objective.soften_targets(batch.progress)
    output = package_output(objective, batch)
    output.loss.backward()
    values = {"loss": output.loss.detach()}
    values |= {f"term {name}": term for name, term in output.terms.items()}
    for name, weight in objective.named_parameters():
        values[f"gradient {name}"] = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return values | {name: buffer.double() for name, buffer in saved_buffers(objective).items()}


def saved_buffers(objective: nn.Module) -> Values:
    """Those that are part of a checkpoint."""
    state = objective.state_dict()
    return {name: buffer for name, buffer in objective.named_buffers() if name in state}


def state(objective: nn.Module) -> Values:
    """Copies of weights and buffers before the step, without those of batch norms."""
    buffers = {name: value for name, value in saved_buffers(objective).items() if not name.endswith(BUFFERS_OF_NORMS)}
    return {name: value.detach().clone() for name, value in (dict(objective.named_parameters()) | buffers).items()}


def reference_values(reference: Reference, weights: Values, batch: Batch) -> Values:
    """The same, from the reference. A gradient is named only if the reference used the weight."""
    leaves = {name: weight.clone().requires_grad_(weight.is_floating_point()) for name, weight in weights.items()}
    network = Network(leaves)
    terms = reference.loss(network, batch, **reference.settings)
    loss = terms.pop("loss")
    used = sorted(network.record.used - network.record.buffers.keys())
    gradients = torch.autograd.grad(loss, [leaves[name] for name in used], allow_unused=True, materialize_grads=True)
    values = {"loss": loss.detach()} | {f"term {name}": term.detach() for name, term in terms.items()}
    values |= {f"gradient {name}": gradient for name, gradient in zip(used, gradients, strict=True)}
    for name, statistics in network.record.statistics.items():
        remembered = (statistics.mean, statistics.variance, torch.tensor(statistics.calls).double())
        values |= {f"{name}.{buffer}": value for buffer, value in zip(BUFFERS_OF_NORMS, remembered, strict=True)}
    return values | {name: buffer.double() for name, buffer in network.record.buffers.items()}


def differences(objective: nn.Module, reference: Reference, batch: Batch, weights: Values | None = None) -> Differences:
    """What differs by how much, relative to its size if that is above 1; infinity for what only one of both has.

    Args:
        weights: the reference's; the objective's own if None.
    """
    weights = state(objective) if weights is None else weights
    ours = package_values(objective, batch)
    try:
        theirs = reference_values(reference, weights, batch)
    except (MissingWeightError, RuntimeError) as error:  # PyTorch's for shapes that don't fit
        return {f"the reference has no use for these weights: {error}": float("inf")}
    found: Differences = dict.fromkeys(ours.keys() ^ theirs.keys(), float("inf"))
    for name in ours.keys() & theirs.keys():
        scale = max(1.0, theirs[name].abs().max().item())
        found[name] = (ours[name] - theirs[name]).abs().max().item() / scale
    return found


def unlike(found: Differences, factor: float = 1.0) -> Differences:
    """The differences above the tolerance times a factor."""
    return {name: difference for name, difference in found.items() if not difference <= factor * TOLERANCE}


def with_other_options(config: Any) -> Iterator[tuple[str, Any]]:
    """The configuration with each option of its loss changed that has an effect, but for widths."""
    for option in options._options(config):
        group, _, name = option.name.partition(".")
        of_the_loss = type(getattr(config, group)).__module__.startswith("ssl_equi.objectives.")
        if not of_the_loss or option.inactive or name in NOT_CHANGED | SMALL_SIZES.keys() | NO_MASKS.keys():
            continue
        for value in _other_values(option):
            inner = dataclasses.replace(getattr(config, group), **{name: value})
            yield f"{option.flag} {value}", dataclasses.replace(config, **{group: inner})


def _other_values(option: options._Option) -> tuple[Any, ...]:
    value = option.value
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (2 * value,)
    if isinstance(value, float):
        return (1.5 * value or 0.5,)
    if isinstance(value, tuple):
        return (value[:-1],)
    return tuple(choice for choice in options._choices(option.hint) if choice != value)


def package_losses(objective: nn.Module, config: Any, batches: Iterable[Batch]) -> Iterator[float]:
    """Trains as the recipes' loops do; the loss of each step."""
    optimizer = optimizer_of(objective.train(), config)
    for step, batch in enumerate(batches):
        follow_schedule(optimizer, config, step, config.steps)
        objective.measures_action_gain = step % 3 == 0  # which must leave no trace
        output = package_output(objective, batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(config, "target_momentum"):
            objective.update_target(target_momentum(config, step, config.steps))
        yield output.loss.item()


def reference_training(config: Any) -> Training:
    """The reference's, with the options of the package."""
    return Training(
        last_step=config.steps - 1,
        rate=config.learning_rate,
        final_rate=config.final_learning_rate,
        warmup_steps=config.warmup_steps,
        first_rate=config.warmup_from,
        weight_decay=config.weight_decay,
        momentum=getattr(config, "target_momentum", 0.0),
    )


def largest_difference(
    ours: Iterable[float], theirs: Iterable[float], weights: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Of the losses of all steps and of pairs of weights after the last, relative where a number is above 1."""
    losses = tuple(torch.tensor(list(each), dtype=torch.float64) for each in (ours, theirs))
    return max(((mine - other).abs() / other.abs().clamp(min=1)).max().item() for mine, other in (losses, *weights))
