"""Optimisers, the learning rates of layers, and the schedules of a run: its rate, a target network's momentum."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_equi.encoders.layer_groups import layer_groups, names_of_state
from ssl_equi.errors import RunError
from ssl_equi.objectives.base import Objective
from ssl_equi.training.config import OptimizerName, PretrainingOptions


def optimizer_of(module: nn.Module, config: PretrainingOptions) -> torch.optim.Optimizer:
    """The optimiser that the options ask for, over the parameters of `module` that take a gradient."""
    groups = parameter_groups_of(module, config)
    return make_optimizer(config.optimizer, groups, config.learning_rate, config.sgd_momentum)


def parameter_groups_of(module: nn.Module, config: PretrainingOptions) -> list[dict[str, Any]]:
    """`parameter_groups` with the options of a recipe, among them the rates of its encoder's layers."""
    factors: dict[nn.Parameter, float] = {}
    encoder = getattr(module, "encoder", None)
    if isinstance(encoder, nn.Module):
        by_name = encoder_rate_factors(encoder, config)
        factors = {parameter: by_name[name] for name, parameter in encoder.named_parameters()}
    return parameter_groups(
        module.parameters(), config.weight_decay, config.decay_bias_and_norm, config.bias_and_norm_rate_factor, factors
    )


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    weight_decay: float,
    decay_bias_and_norm: bool = True,
    bias_and_norm_rate_factor: float = 1.0,
    rate_factors: Mapping[nn.Parameter, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """The parameters that are trained: a group for each rate, or two, one of them for biases and normalisations.

    Args:
        parameters: those without gradient (momentum targets, frozen layers) are left out.
        decay_bias_and_norm: False: parameters of less than two dimensions are not decayed.
        bias_and_norm_rate_factor: their learning rate as a multiple of the others' (Barlow Twins: .0048 / .2); a
            group's `rate_factor` is what `set_learning_rate` multiplies the rate by.
        rate_factors: learning rates of parameters as multiples of those of all others.
    """
    by_factor: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            by_factor.setdefault(rate_factors.get(parameter, 1.0), []).append(parameter)
    apart = not decay_bias_and_norm or bias_and_norm_rate_factor != 1
    groups = []
    for factor, trained in by_factor.items():
        weights = [parameter for parameter in trained if parameter.ndim > 1 or not apart]
        others = [parameter for parameter in trained if parameter.ndim <= 1 and apart]
        groups += [
            {"params": weights, "weight_decay": weight_decay, "rate_factor": factor},
            {
                "params": others,
                "weight_decay": weight_decay if decay_bias_and_norm else 0.0,
                "rate_factor": factor * bias_and_norm_rate_factor,
            },
        ]
    return [group for group in groups if group["params"]]


def encoder_rate_factors(encoder: nn.Module, config: PretrainingOptions) -> dict[str, float]:
    """Learning rates of what training changes in an encoder, by name, as multiples of the heads'; 0: frozen.

    Raises:
        RunError: more layers are to be frozen than the encoder has.
        EncoderError: its layers can't be told apart, and the options ask for that.
    """
    factors = dict.fromkeys(names_of_state(encoder), config.encoder_rate_factor)
    if config.layer_decay == 1 and config.frozen_layers == 0:
        return factors
    groups = layer_groups(encoder)
    if config.frozen_layers > groups.count:
        raise RunError(
            f"--frozen-layers is {config.frozen_layers} and the encoder {config.encoder} has {groups.count} layer "
            f"groups: give at most {groups.count}, or --encoder-rate-factor 0 to freeze all of it"
        )
    for name, number in groups.numbers.items():
        factors[name] *= 0.0 if number < config.frozen_layers else config.layer_decay ** (groups.count - number)
    return factors


def freeze(objective: Objective, config: PretrainingOptions) -> None:
    """Freezes the layers of the encoder whose learning rate is 0, before a run trains it, and its momentum target's.

    They get no gradient, and their batch norms normalise by the statistics that they have, and keep them.

    Raises:
        RunError: nothing is left to be trained; further ones of `encoder_rate_factors`.
    """
    frozen = {name for name, factor in encoder_rate_factors(objective.encoder, config).items() if factor == 0}
    targets = [module for name, module in objective.named_modules() if name.split(".")[-1] == "target_encoder"]
    for encoder in (objective.encoder, *targets):
        for name, parameter in encoder.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        for name, layer in encoder.named_modules():
            if isinstance(layer, _BatchNorm) and f"{name}.running_mean" in frozen:
                layer.eval()
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        raise RunError(
            f"--encoder-rate-factor {config.encoder_rate_factor:g} and --frozen-layers {config.frozen_layers} leave "
            "nothing to train, since the objective has no heads: freeze less, or give it a projector"
        )


def described_rates(encoder: nn.Module, config: PretrainingOptions) -> str | None:
    """A sentence on what of the encoder is frozen and how fast its layers learn; None if all learn as the heads do."""
    factors = set(encoder_rate_factors(encoder, config).values())
    if factors == {1.0}:
        return None
    rates = sorted(factors - {0.0})
    if not rates:
        return "the encoder is frozen: its heads are trained alone"
    span = " to ".join(f"{rate:.2g}" for rate in dict.fromkeys((rates[0], rates[-1])))
    learns = "at the rate of the heads" if rates == [1.0] else f"at {span} times the rate of the heads"
    if 0.0 not in factors:
        return f"the encoder learns {learns}"
    frozen = f"the first {config.frozen_layers} of {layer_groups(encoder).count} layer groups of the encoder are frozen"
    return f"{frozen}, the rest learns {learns}"


def make_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], learning_rate: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """An optimiser over `parameter_groups`.

    adam adds the weight decay to the gradient, adamw takes it from the weights; lars scales each layer's step by the
    ratio of its norms (You et al., 2017) and leaves out groups without weight decay. The learning rate is that of
    groups with `rate_factor` 1, the momentum that of sgd and lars.
    """
    # Fused: all parameters in a few kernels on a GPU rather than some each, in one pass on a CPU rather than ten.
    if name == "adam":
        return torch.optim.Adam(groups, lr=learning_rate, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    if name == "sgd":
        # SGD has no fused kernel for weights that are shared out among processes.
        shared_out = any(hasattr(parameter, "device_mesh") for group in groups for parameter in group["params"])
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=not shared_out)
    if name == "lars":
        from timm.optim.lars import Lars  # timm takes seconds to import

        return Lars(groups, lr=learning_rate, momentum=momentum, trust_coeff=0.001)
    raise ValueError(f"the optimizer is {name!r}: choose adam, adamw, sgd or lars")


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores an optimiser from a state that may have been saved on another device.

    A KeyError or ValueError says that the state has other groups or parameters.
    """
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved["fused"] = group.get("fused")  # earlier versions saved that a CPU has no fused kernels
    optimizer.load_state_dict(state)
    # Fused kernels walk through parameters and moments in the order of their memory. Files hold tensors in the default
    # layout, so the moments of channels-last weights must be given that layout again.
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def warmup_cosine(
    step: int, *, base: float, final: float, warmup_steps: int, total_steps: int, warmup_from: float | None = None
) -> float:
    """Linear warm-up to `base` over `warmup_steps`, then half a cosine down to `final` at the last step.

    The warm-up is at `warmup_from` in step 0 and at `base` in step `warmup_steps`; when None it would be at 0 one step
    before the first, and is at `base` in its last one.
    """
    if step < warmup_steps:
        if warmup_from is None:
            return base * (step + 1) / warmup_steps
        return warmup_from + (base - warmup_from) * step / warmup_steps
    share = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every parameter group the learning rate, times the group's `rate_factor` where it has one.

    A group with `constant_rate` keeps that one (SimSiam's predictor).
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("constant_rate", learning_rate * group.get("rate_factor", 1.0))


# ---------------------------------------------------------------- schedules of a run


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


class TargetOptions(Protocol):
    """The options that the momentum of a target network depends on."""

    @property
    def epochs(self) -> int: ...

    @property
    def schedule_by(self) -> Literal["step", "epoch"]: ...

    @property
    def target_momentum(self) -> float: ...


def target_momentum(config: TargetOptions, step: int, total_steps: int) -> float:
    """Momentum of the target network at a step (BYOL, Grill et al., 2020, 3.2).

    It rises by a cosine, to 1 at the last step or, by the epoch, after the last one.
    """
    last = total_steps if config.schedule_by == "epoch" else max(total_steps - 1, 1)
    share = min(_step_of_schedule(config, step, total_steps) / last, 1.0)
    return 1 - (1 - config.target_momentum) * (math.cos(math.pi * share) + 1) / 2


def _step_of_schedule(config: PretrainingOptions | TargetOptions, step: int, total_steps: int) -> int:
    """The step whose values a step has: its own, or that with which its epoch began."""
    steps_per_epoch = total_steps // config.epochs
    return step - step % steps_per_epoch if config.schedule_by == "epoch" else step
