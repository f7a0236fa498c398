"""What a loader yields."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ssl_equi.data.stage_seconds import StageSeconds, Stopwatch


@dataclass(frozen=True)
class ViewBatch:
    """V views of each of B objects, with the latents that made them where these are known."""

    images: Tensor  # uint8 [B, V, H, W, 3]; a reused buffer, see ViewLoader.batches for how long it stays valid
    latents: Tensor  # float32 [B, V, L]; L is 0 where nothing is known about the views
    quat_xyzw: Tensor | None  # float32 [B, V, 4]; None where poses are unknown
    labels: Tensor  # int64 [B]; -1 for an object without a label
    object_indices: Tensor  # int64 [B]
    view_indices: Tensor  # int64 [B, V]
    seconds_waited: float = 0.0  # how long the consumer waited for this batch
    # int64 [B, V, 2] height, width of the picture in the top-left corner of a larger canvas; None: the whole image
    content_sizes: Tensor | None = None
    stage_seconds: StageSeconds = field(default_factory=StageSeconds)  # what this batch took the loader's threads
    augmenting: Stopwatch = field(default_factory=Stopwatch)  # runs while views are made of this batch
    records_skipped: int = 0  # rows that hold another object of the batch, because their own can't be read

    def to(self, device: torch.device | str) -> "ViewBatch":
        """The same batch on another device; copies are queued, not waited for. On its own device it stays as it is."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            latents=self.latents.to(device, non_blocking=True),
            quat_xyzw=None if self.quat_xyzw is None else self.quat_xyzw.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            object_indices=self.object_indices.to(device, non_blocking=True),
            view_indices=self.view_indices.to(device, non_blocking=True),
            content_sizes=None if self.content_sizes is None else self.content_sizes.to(device, non_blocking=True),
        )
