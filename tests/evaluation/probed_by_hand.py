"""The end of a run in short: a module and two splits, probed by the suite without any file."""

from typing import Any

from torch import nn

from ssl_equi.data.sources import DataSource
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.suite import Evaluation, evaluate, tasks_for
from ssl_equi.runtime.frozen import state_sha256


def probed(
    encoder: nn.Module,
    parts: dict[str, slice],
    train: Any,
    test: Any,
    *,
    protocol: ProbeProtocol,
    random_encoder: nn.Module | None = None,
    mean_rgb: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std_rgb: tuple[float, float, float] = (0.2, 0.2, 0.2),
) -> Evaluation:
    untrained = None if random_encoder is None else (lambda: random_encoder)
    source = EncoderSource("by hand", encoder, parts, 8, None, None, state_sha256(encoder), "by hand", untrained)
    data = DataSource("by hand", train, train, test, mean_rgb, std_rgb)
    return evaluate(source, data, protocol, tasks=tasks_for(test, protocol.tasks))
