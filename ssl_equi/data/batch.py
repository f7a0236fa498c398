"""What a loader yields."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ssl_equi.data.stage_seconds import StageSeconds, Stopwatch
from ssl_equi.runtime.device_copies import copy_together


@dataclass(frozen=True)
class ViewBatch:
    """V views of each of B objects, with the latents that made them where these are known."""

    images: Tensor  # uint8 [B, V, H, W, 3]; a reused buffer, see stored_loader.batches for how long it stays valid
    latents: Tensor  # float32 [B, V, L]; L is 0 where nothing is known about the views
    quat_xyzw: Tensor | None  # float32 [B, V, 4]; None where poses are unknown
    labels: Tensor  # int64 [B]; -1 for an object without a label
    object_indices: Tensor  # int64 [B], always on the CPU
    view_indices: Tensor  # int64 [B, V], always on the CPU
    seconds_waited: float = 0.0  # how long the consumer waited for this batch
    # int64 [B, V, 2] height, width of the picture in the top-left corner of a larger canvas, always on the CPU; None:
    # the whole image
    content_sizes: Tensor | None = None
    stage_seconds: StageSeconds = field(default_factory=StageSeconds)  # what this batch took the loader's threads
    augmenting: Stopwatch = field(default_factory=Stopwatch)  # runs while views are made of this batch
    records_skipped: int = 0  # rows that hold another object of the batch, because their own can't be read
    # latents and quat_xyzw of a batch that came from the CPU, where a device would take launches for a few numbers
    known_on_cpu: tuple[Tensor, Tensor | None] | None = None

    def to(self, device: torch.device | str) -> "ViewBatch":
        """The batch on another device; copies are queued, not waited for. On its own device it stays as it is.

        Indices and sizes stay on the CPU: maps are looked up by the ones, and crops drawn by the others.
        """
        known = (self.latents, self.labels, *(() if self.quat_xyzw is None else (self.quat_xyzw,)))
        latents, labels, *quats_xyzw = copy_together(known, device)
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            latents=latents,
            quat_xyzw=quats_xyzw[0] if quats_xyzw else None,
            labels=labels,
            known_on_cpu=(self.latents, self.quat_xyzw) if self.latents.device.type == "cpu" else self.known_on_cpu,
        )
