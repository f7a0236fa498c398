"""Online probes: small linear heads that follow a run on detached features, with an optimiser of their own.

They show during training whether class and pose can be read off each part. Their numbers are not final results: they
come from training objects, from features that move, and from linear heads. The pose is each view's absolute rotation,
which a linear head can follow; the relative rotation of two views is far from linear in their features. Of data without
one rotation, the first latent with targets is followed in its place, such as sine and cosine of an azimuth.

A head that has learnt nothing scores an R2 of about 0, from the first line on: the answer is the mean of the targets
so far, plus what the head says times the slope (0 to 1) with which its answers to earlier batches agreed with their
targets, as far as that is certain (less two standard errors). Without the mean, heads would need hundreds of steps
to find a constant; without the slope, many features and a constant learning rate would leave noise in the heads that
scores far below 0.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.data.batch import ViewBatch
from ssl_equi.evaluation.metrics import exceeds_rounding
from ssl_equi.latents.schema import Latent, LatentSchema
from ssl_equi.runtime.device_copies import Unread, merged

UNLABELLED = -1
QUATERNION = 4
MEMORY = 0.95  # of earlier batches, each time that the heads are trained
STANDARD_ERRORS = 2  # that the agreement of earlier answers must exceed 0 by
_EPSILON = 1e-5


@dataclass(frozen=True)
class Followed:
    """What the regressors follow: `K` targets of each view, under a name.

    Attributes:
        latent: whose targets they are; None: each view's quaternion, if it is known.
        name: in metrics.
        width: K.
    """

    latent: Latent | None = None
    name: str = "absolute_rotation"
    width: int = QUATERNION

    def targets(self, batch: ViewBatch) -> Tensor | None:
        """Of a batch's stored views [B, V, K]; None where they aren't known."""
        if self.latent is None:
            return batch.quat_xyzw
        return self.latent.kind.encode(batch.latents[..., self.latent.columns])


def followed_of(schema: LatentSchema | None) -> Followed:
    """The pose, or else the first latent whose targets are no classes."""
    if schema is not None and schema.pose is None:
        for latent in schema.latents:
            if not latent.kind.targets_are_classes:
                return Followed(latent, f"absolute_{latent.name}", latent.kind.sizes.targets)
    return Followed()


class OnlineProbes:
    """A linear classifier and a linear regressor of what is followed for each part.

    Objects without a label (-1) are ignored by the classifier, and without targets the regressors stay untrained.
    Each update first measures the heads on the batch, which they have not seen, and then trains them on it. Sums stay
    on the device, so only reading metrics waits for it. Features are standardised by the batch's own statistics, so
    that the heads don't depend on the scale of the features. Several processes each train their own copy on their own
    share; the first one's is logged.

    Args:
        feature_dim: columns D of the features.
        parts: named slices of the feature columns.
        num_classes: of the data set.
        followed: what the regressors are trained on; absolute rotations if not given.
        every: train on one of so many calls of `update`.
        seed: of the heads; the global random generator is not touched.
    """

    def __init__(
        self,
        feature_dim: int,
        parts: Mapping[str, slice],
        num_classes: int,
        *,
        followed: Followed = Followed(),
        every: int = 4,
        learning_rate: float = 3e-3,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}: it must be 1 or more")
        self.parts, self.followed, self.every, self.calls = dict(parts), followed, every, 0
        generator = torch.Generator().manual_seed(seed)
        widths = {part: len(range(*columns.indices(feature_dim))) for part, columns in self.parts.items()}
        self.classifiers = nn.ModuleDict(
            {part: _linear(width, num_classes, generator) for part, width in widths.items()}
        )
        self.regressors = nn.ModuleDict(
            {part: _linear(width, followed.width, generator) for part, width in widths.items()}
        )
        self.heads = nn.ModuleDict({"classifier": self.classifiers, "regressor": self.regressors}).to(device)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=learning_rate, fused=True)
        self.sums = {part: _zeros(_sums_of(followed.width), device) for part in self.parts}
        self.past = {part: _zeros(_past_of(followed.width), device) for part in self.parts}

    def update(self, features: Tensor, labels: Tensor, targets: Tensor | None) -> None:
        """Measure the heads on a batch, then train them on it; does nothing on all but one of `every` calls.

        Args:
            features: `[B, V, D]`, V views of each object; detached here once more.
            labels: `[B]` int64, -1 for an object without a label.
            targets: `[B, V, K]` of each view, such as its absolute rotation, w > 0; None where they are unknown.
        """
        self.calls += 1
        if (self.calls - 1) % self.every != 0:
            return
        features = _standardise(features.detach().float())
        view_labels = labels.repeat_interleave(features.shape[1])
        targets = None if targets is None else targets.detach().float().flatten(0, 1)
        num_labelled = (view_labels != UNLABELLED).sum().clamp(min=1)
        loss = torch.zeros((), device=features.device)
        with torch.enable_grad():
            for part, columns in self.parts.items():
                views = features[:, :, columns].flatten(0, 1)
                logits = self.classifiers[part](views)
                cross_entropy = F.cross_entropy(logits, view_labels, ignore_index=UNLABELLED, reduction="sum")
                loss = loss + cross_entropy / num_labelled
                self._add_up_classes(part, logits.detach(), view_labels)
                if targets is not None:
                    mean, slope = self._experience(part, targets)
                    deviations = self.regressors[part](views)
                    loss = loss + F.mse_loss(deviations, targets - mean)
                    self._add_up_targets(part, mean + slope * deviations.detach(), targets)
                    self._remember(part, deviations.detach(), targets, mean)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()

    def metrics(self) -> dict[str, float]:
        """What `unread_metrics` holds; waits for the device."""
        return self.unread_metrics().read()

    def unread_metrics(self) -> Unread[dict[str, float]]:
        """`PART/top1` and `PART/absolute_rotation_r2_uniform` over the batches since the last call; empty without any.

        Top-1 is left out without labels, R2 without targets; R2 is that of the target components that vary. Its name is
        that of what is followed.
        """
        unread = []
        for part, sums in self.sums.items():
            unread.append(Unread([*sums.values()], functools.partial(_metrics_of, part, self.followed.name, [*sums])))
            self.sums[part] = {name: torch.zeros_like(tensor) for name, tensor in sums.items()}
        return merged(unread)

    def state_dict(self) -> dict[str, Any]:
        """Heads, optimiser, sums and the position in the cycle: all that an exact continuation needs."""
        return {
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": {part: dict(sums) for part, sums in self.sums.items()},
            "past": {part: dict(past) for part, past in self.past.items()},
            "calls": self.calls,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; every tensor is moved to the probes' device.

        Heads of earlier versions, whose states hold no "past", answered with whole quaternions: their bias, which is
        the mean that they have learnt, goes.
        """
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sums = _like(self.sums, state["sums"])
        if "past" in state:
            self.past = _like(self.past, state["past"])
        else:
            for regressor in self.regressors.values():
                assert isinstance(regressor, nn.Linear)
                nn.init.zeros_(regressor.bias)
        self.calls = int(state["calls"])

    @torch.no_grad()
    def _add_up_classes(self, part: str, logits: Tensor, labels: Tensor) -> None:
        sums = self.sums[part]
        sums["labelled"] += (labels != UNLABELLED).sum()
        sums["correct"] += (logits.argmax(dim=1) == labels).sum()

    @torch.no_grad()
    def _experience(self, part: str, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the earlier targets (at first: of these), and the slope that earlier answers make certain: `[K]`."""
        past = self.past[part]
        mean = torch.where(past["count"] > 0, past["target"] / past["count"].clamp(min=1), targets.double().mean(dim=0))
        certain = past["agreement"] - STANDARD_ERRORS * past["agreement_squared"].sqrt()
        slope = certain / past["deviation_squared"].clamp(min=torch.finfo(torch.float64).tiny)
        return mean.to(targets.dtype), slope.clamp(0, 1).to(targets.dtype)

    @torch.no_grad()
    def _remember(self, part: str, deviations: Tensor, targets: Tensor, mean: Tensor) -> None:
        deviations, targets = deviations.double(), targets.double()
        agreement = deviations * (targets - mean)
        seen: dict[str, Tensor | float] = {
            "count": len(targets),
            "target": targets.sum(dim=0),
            "agreement": agreement.sum(dim=0),
            "agreement_squared": agreement.square().sum(dim=0),
            "deviation_squared": deviations.square().sum(dim=0),
        }
        for name, value in self.past[part].items():
            value.mul_(MEMORY).add_(seen[name])

    @torch.no_grad()
    def _add_up_targets(self, part: str, predictions: Tensor, targets: Tensor) -> None:
        sums = self.sums[part]
        sums["posed"] += len(targets)
        sums["residual"] += (targets - predictions).double().square().sum(dim=0)
        sums["target"] += targets.double().sum(dim=0)
        sums["target_squared"] += targets.double().square().sum(dim=0)


def _metrics_of(part: str, followed: str, names: list[str], sums: list[Any]) -> dict[str, float]:
    """The metrics of a part, from the values of its sums and their names."""
    values = dict(zip(names, sums, strict=True))
    metrics: dict[str, float] = {}
    if values["labelled"] > 0:
        metrics[f"{part}/top1"] = values["correct"] / values["labelled"]
    if values["posed"] == 0:
        return metrics
    totals = [
        squared - summed**2 / values["posed"]
        for squared, summed in zip(values["target_squared"], values["target"], strict=True)
    ]
    varying = exceeds_rounding(torch.tensor(totals), torch.tensor(values["target_squared"])).tolist()
    ratios = [
        residual / total for residual, total, varies in zip(values["residual"], totals, varying, strict=True) if varies
    ]
    if ratios:
        metrics[f"{part}/{followed}_r2_uniform"] = 1 - math.fsum(ratios) / len(ratios)
    return metrics


def _linear(in_features: int, out_features: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer that starts at small weights from `generator` and zero bias."""
    linear = nn.utils.skip_init(nn.Linear, in_features, out_features)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


Sizes = Mapping[str, tuple[int, ...]]


def _sums_of(width: int) -> Sizes:
    """Since the last call of `metrics`."""
    return {
        "labelled": (),  # views of objects with a label
        "correct": (),
        "posed": (),  # views with known targets
        "residual": (width,),
        "target": (width,),
        "target_squared": (width,),
    }


def _past_of(width: int) -> Sizes:
    """Of all earlier batches, older ones count less."""
    return {
        "count": (),  # views with known targets
        "target": (width,),
        "agreement": (width,),  # products of the head's answers and the targets, both as deviations from the mean
        "agreement_squared": (width,),
        "deviation_squared": (width,),
    }


def _zeros(sizes: Sizes, device: torch.device | str) -> dict[str, Tensor]:
    return {name: torch.zeros(size, dtype=torch.float64, device=device) for name, size in sizes.items()}


def _like(known: Mapping[str, dict[str, Tensor]], stored: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Copies of stored tensors by part and name, on the devices of the known ones."""
    return {
        part: {name: stored[part][name].to(tensor.device).clone() for name, tensor in tensors.items()}
        for part, tensors in known.items()
    }


def _standardise(features: Tensor) -> Tensor:
    """Zero mean and unit variance of each column over all views of the batch."""
    variance, mean = torch.var_mean(features, dim=(0, 1), correction=0)
    return (features - mean) * torch.rsqrt(variance + _EPSILON)
