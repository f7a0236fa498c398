"""Optimisers, and the schedules of the learning rate and of a target network's momentum."""

import math
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ssl_equi.training.config import OptimizerName, PretrainingOptions


def optimizer_of(module: nn.Module, config: PretrainingOptions) -> torch.optim.Optimizer:
    """The optimiser that the options ask for, over the parameters of `module` that take a gradient."""
    groups = parameter_groups_of(module, config)
    return make_optimizer(config.optimizer, groups, config.learning_rate, config.sgd_momentum)


def parameter_groups_of(module: nn.Module, config: PretrainingOptions) -> list[dict[str, Any]]:
    """`parameter_groups` with the options of a recipe; those of the module's encoder have a rate of their own."""
    encoder = getattr(module, "encoder", None)
    options = config.weight_decay, config.decay_bias_and_norm, config.bias_and_norm_rate_factor
    if config.encoder_rate_factor == 1 or not isinstance(encoder, nn.Module):
        return parameter_groups(module.parameters(), *options)
    of_encoder = set(encoder.parameters())
    heads = [parameter for parameter in module.parameters() if parameter not in of_encoder]
    slower = [
        {**group, "rate_factor": config.encoder_rate_factor * group["rate_factor"]}
        for group in parameter_groups(encoder.parameters(), *options)
    ]
    return slower + parameter_groups(heads, *options)


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    weight_decay: float,
    decay_bias_and_norm: bool = True,
    bias_and_norm_rate_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """The parameters that are trained, in one group, or biases and normalisations in a group of their own.

    Args:
        parameters: those without gradient (momentum targets) are left out.
        decay_bias_and_norm: False: parameters of less than two dimensions are not decayed.
        bias_and_norm_rate_factor: their learning rate as a multiple of the others' (Barlow Twins: .0048 / .2); a
            group's `rate_factor` is what `set_learning_rate` multiplies the rate by.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if decay_bias_and_norm and bias_and_norm_rate_factor == 1:
        groups = [{"params": trained, "weight_decay": weight_decay, "rate_factor": 1.0}]
    else:
        groups = [
            {
                "params": [parameter for parameter in trained if parameter.ndim > 1],
                "weight_decay": weight_decay,
                "rate_factor": 1.0,
            },
            {
                "params": [parameter for parameter in trained if parameter.ndim <= 1],
                "weight_decay": weight_decay if decay_bias_and_norm else 0.0,
                "rate_factor": bias_and_norm_rate_factor,
            },
        ]
    return [group for group in groups if group["params"]]


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
