"""What a question that needs images is given: the encoder, the data, cached features, and ways to encode more.

Questions are asked part by part and seed by seed; what they share, such as features of corrupted views or a trained
head, is made once and remembered.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DataSource
from ssl_equi.evaluation.features import FeatureCache, FeatureStore, ImageChange, OnProgress
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.task_results import TaskResult

Made = TypeVar("Made")


@dataclass
class ImageContext:
    """One encoder, its data, and what questions found out so far.

    Attributes:
        module: images [N, 3, H, W] -> features [N, D]; on `device`, in evaluation mode.
        name: of the encoder, for errors and progress.
        architecture: name and arguments of the encoder.
        encoder_sha256: of its parameters and buffers.
        parts: columns of the features by name.
        mean_rgb, std_rgb: with which images are normalised.
        data: what heads are trained on (`probe_train`) and judged on (`evaluation`).
        train, test: features of every view of these, on the CPU.
        store: encodes, and counts the encoder's passes.
        protocol: how heads are trained and judged.
        device: where the encoder and the heads run.
        batch_size: images in one forward pass.
        progress_of: of a line of text: what is told how far an encoding is.
    """

    module: nn.Module
    name: str
    architecture: str
    encoder_sha256: str
    parts: dict[str, slice]
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    data: DataSource
    train: FeatureCache
    test: FeatureCache
    store: FeatureStore
    protocol: ProbeProtocol
    device: torch.device | str = "cpu"
    batch_size: int = 512
    progress_of: Callable[[str], OnProgress] = lambda label: lambda done, total: None
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False)

    @property
    def num_classes(self) -> int:
        """Of the data."""
        return len(self.data.evaluation.class_names)

    def encode(self, views: ViewCollection, change: ImageChange | None = None) -> FeatureCache:
        """Features of every view of a split, changed or as they are; each such split is encoded once.

        Raises:
            FeatureError: a feature is not finite.
            RuntimeError: encoding changed the encoder.
        """
        label = views.split if change is None else f"{views.split}, {change.label}"
        key = ("features", views.content_key, views.split, None if change is None else change.fingerprint)
        return self.once(
            key,
            lambda: self.store.encode(
                self.module, views, self.mean_rgb, self.std_rgb, name=self.name, architecture=self.architecture,
                encoder_sha256=self.encoder_sha256, device=self.device, batch_size=self.batch_size, change=change,
                on_progress=self.progress_of(f"{self.name}: {label}"),
            ),
        )  # fmt: skip

    def part(self, cache: FeatureCache, part: str) -> FeatureCache:
        """A part of some features, on the device."""
        return cache.part(self.parts[part]).to(self.device)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made at the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made


ImageQuestion = Callable[[ImageContext, str, int], TaskResult]
"""Of the context, the part and the seed. Raises TaskSkipped where these images or features can't be asked."""
