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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.data.batch import ViewBatch
from ssl_equi.evaluation.metrics import exceeds_rounding
from ssl_equi.latents.schema import Latent, LatentSchema
from ssl_equi.runtime.cuda_graphs import CapturedFunction
from ssl_equi.runtime.device_copies import Unread, merged

UNLABELLED = -1
QUATERNION = 4
MEMORY = 0.95  # of earlier batches, each time that the heads are trained
STANDARD_ERRORS = 2  # that the agreement of earlier answers must exceed 0 by
_EPSILON = 1e-5
# Sums since metrics were last read: single numbers, and those with one number per target.
_COUNTS, _SUMS = ("labelled", "correct", "posed"), ("residual", "target", "target_squared")
# Sums over all earlier batches, of which older ones count less. An agreement is a product of the head's answer and the
# target, both as deviations from the mean.
_PAST_COUNTS, _PAST_SUMS = ("count",), ("target", "agreement", "agreement_squared", "deviation_squared")


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

    Each update first measures the heads on the batch, which they have not seen, and then trains them on it. Features
    are standardised by the batch's own statistics, so that the heads don't depend on their scale. Several processes
    each train their own copy on their own share; the first one's is logged.

    Args:
        feature_dim: columns D of the features.
        parts: named slices of the feature columns.
        num_classes: of the data set.
        followed: what the regressors are trained on; absolute rotations if not given.
        every: train on one of so many calls of `update`.
        seed: of the heads; the global random generator is not touched.
        captured: run on a GPU as one CUDA graph.
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
        captured: bool = False,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}: it must be 1 or more")
        self.parts, self.followed, self.every, self.calls = dict(parts), followed, every, 0
        generator = torch.Generator().manual_seed(seed)

        def heads(outputs: int) -> nn.ModuleDict:
            """One of each part, which starts at small weights and zero bias."""
            modules = nn.ModuleDict()
            for part, columns in self.parts.items():
                linear = nn.utils.skip_init(nn.Linear, len(range(*columns.indices(feature_dim))), outputs)
                nn.init.normal_(linear.weight, std=0.01, generator=generator)
                nn.init.zeros_(linear.bias)
                modules[part] = linear
            return modules

        self.classifiers, self.regressors = heads(num_classes), heads(followed.width)
        self.heads = nn.ModuleDict({"classifier": self.classifiers, "regressor": self.regressors}).to(device)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=learning_rate, fused=True)

        def zeros(counts: Sequence[str], sums: Sequence[str]) -> dict[str, dict[str, Tensor]]:
            shapes = dict.fromkeys(counts, ()) | dict.fromkeys(sums, (followed.width,))
            return {
                part: {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
                for part in self.parts
            }

        # They stay on the device, so that only reading metrics waits for it.
        self.sums, self.past = zeros(_COUNTS, _SUMS), zeros(_PAST_COUNTS, _PAST_SUMS)
        self._update = CapturedFunction(self._measure_and_train, device, [self.optimizer]) if captured else None

    @property
    def are_due(self) -> bool:
        """Whether the next call of `update` measures and trains."""
        return self.calls % self.every == 0

    def update(self, features: Tensor, labels: Tensor, targets: Tensor | None) -> None:
        """Measure the heads on a batch, then train them on it; does nothing on all but one of `every` calls.

        Args:
            features: `[B, V, D]`, V views of each object; detached here once more.
            labels: `[B]` int64; an object without a label (-1) is ignored by the classifiers.
            targets: `[B, V, K]` of each view, such as its absolute rotation, w > 0; None where they are unknown, and
                the regressors stay untrained.
        """
        due = self.are_due
        self.calls += 1
        if not due:
            return
        update = self._measure_and_train if self._update is None else self._update
        update(features, labels, targets)

    def _measure_and_train(self, features: Tensor, labels: Tensor, targets: Tensor | None) -> None:
        features = features.detach().float()
        variance, mean = torch.var_mean(features, dim=(0, 1), correction=0)
        features = (features - mean) * torch.rsqrt(variance + _EPSILON)
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
                self.sums[part]["labelled"] += (view_labels != UNLABELLED).sum()
                self.sums[part]["correct"] += (logits.detach().argmax(dim=1) == view_labels).sum()
                if targets is not None:
                    deviations = self.regressors[part](views)
                    target_mean = self._measure_and_remember(part, deviations.detach(), targets)
                    loss = loss + F.mse_loss(deviations, targets - target_mean)
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
            read = [tensor.clone() for tensor in sums.values()]
            unread.append(Unread(read, functools.partial(_metrics_of, part, self.followed.name, [*sums])))
            torch._foreach_zero_([*sums.values()])  # in their place, where a captured update finds them
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
        """Go on from a `state_dict`; every tensor is moved to the probes' device."""
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.calls = int(state["calls"])
        for name in ("sums", "past"):
            for part, tensors in getattr(self, name).items() if name in state else ():
                for key, tensor in tensors.items():
                    tensors[key] = state[name][part][key].to(tensor.device).clone()
        if "past" not in state:
            # Heads of earlier versions answered with whole quaternions: their bias is the mean that they have learnt.
            for regressor in self.regressors.values():
                assert isinstance(regressor, nn.Linear)
                nn.init.zeros_(regressor.bias)

    @torch.no_grad()
    def _measure_and_remember(self, part: str, deviations: Tensor, targets: Tensor) -> Tensor:
        """The mean of earlier targets (at first: of these) `[K]`, about which a head's answers `[n, K]` are judged."""
        sums, past = self.sums[part], self.past[part]
        mean = torch.where(past["count"] > 0, past["target"] / past["count"].clamp(min=1), targets.double().mean(dim=0))
        mean = mean.to(targets.dtype)
        certain = past["agreement"] - STANDARD_ERRORS * past["agreement_squared"].sqrt()
        slope = certain / past["deviation_squared"].clamp(min=torch.finfo(torch.float64).tiny)
        predictions = mean + slope.clamp(0, 1).to(targets.dtype) * deviations
        sums["posed"] += len(targets)
        sums["residual"] += (targets - predictions).double().square().sum(dim=0)
        sums["target"] += targets.double().sum(dim=0)
        sums["target_squared"] += targets.double().square().sum(dim=0)

        deviations, targets = deviations.double(), targets.double()
        agreement = deviations * (targets - mean)
        seen: dict[str, Tensor | float] = {
            "count": len(targets),
            "target": targets.sum(dim=0),
            "agreement": agreement.sum(dim=0),
            "agreement_squared": agreement.square().sum(dim=0),
            "deviation_squared": deviations.square().sum(dim=0),
        }
        for name, value in past.items():
            value.mul_(MEMORY).add_(seen[name])
        return mean


def _metrics_of(part: str, followed: str, names: list[str], sums: list[Any]) -> dict[str, float]:
    """The metrics of a part, from the values of its sums and their names."""
    values = dict(zip(names, sums, strict=True))
    metrics: dict[str, float] = {}
    if values["labelled"] > 0:
        metrics[f"{part}/top1"] = values["correct"] / values["labelled"]
    if values["posed"] == 0:
        return metrics
    of_targets = list(zip(values["residual"], values["target"], values["target_squared"], strict=True))
    totals = [squared - summed**2 / values["posed"] for _, summed, squared in of_targets]
    varying = exceeds_rounding(torch.tensor(totals), torch.tensor(values["target_squared"])).tolist()
    ratios = [
        residual / total for (residual, _, _), total, varies in zip(of_targets, totals, varying, strict=True) if varies
    ]
    if ratios:
        metrics[f"{part}/{followed}_r2_uniform"] = 1 - math.fsum(ratios) / len(ratios)
    return metrics
