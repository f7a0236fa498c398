"""The end of a run in short: a module and two splits, probed by the suite without any file."""

from typing import Any

from torch import nn

from ssl_equi.data.sources import DataSource
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.evaluation_suite import Suite
from ssl_equi.evaluation.features import FeatureStore, state_sha256
from ssl_equi.evaluation.known_tasks import tasks_for
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.suite import ProbeResults


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
) -> ProbeResults:
    untrained = None if random_encoder is None else (lambda: random_encoder)
    source = EncoderSource("by hand", encoder, parts, 8, None, None, state_sha256(encoder), "by hand", untrained)
    suite = Suite(protocol, tasks_for(test, protocol.tasks), seeds=(0,), say=lambda line: None)
    data = DataSource("by hand", train, train, test, mean_rgb, std_rgb)
    return suite.evaluate(source, data, FeatureStore(None)).first_seed
