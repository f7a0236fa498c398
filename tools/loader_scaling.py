"""Images a second of our loader by the number of its threads, and of its processes: where more of them stop helping."""

import time
from dataclasses import dataclass
from typing import Any

from benchmarks import Row, print_rows, row_of

from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.runtime.system import usable_cores

WARM_UP_BATCHES = 8  # more than the loader decodes ahead
KINDS = {"threads": "threads", "processes": "workers"}  # by what the table calls them: the loader's option


@dataclass(frozen=True)
class ScalingConfig:
    """How many threads and processes take their turns, and at what."""

    most: int | None = None
    """The largest number of threads, and of processes; as many as there are cores by default."""
    image_size: int = 64
    """Side of the stored views in pixels."""
    batches: int = 100
    """Measured batches in a round."""
    rounds: int = 3
    """Rounds, in each of which every number takes its turn."""


def measure_scaling(config: ScalingConfig, dataset: ShardDataset, batch_size: int) -> list[Row]:
    """Images a second, and how many times those of one thread or process; each round has every loader by itself."""
    counts = counts_up_to(config.most or usable_cores())
    speeds: dict[tuple[str, int], list[float]] = {(kind, count): [] for kind in KINDS for count in counts}
    for round_number in range(config.rounds):
        for kind, count in list(speeds) if round_number % 2 == 0 else list(reversed(speeds)):
            options: dict[str, Any] = {KINDS[kind]: count}
            with stored_loader(dataset, global_batch_size=batch_size, seed=0, pin_memory=False, **options) as loader:
                speeds[kind, count].append(images_per_second(loader, config.batches))
    rows = [row_of(f"images per second, {named(kind, count)}", values) for (kind, count), values in speeds.items()]
    for (kind, count), values in speeds.items():
        if count > 1:
            of_one = zip(values, speeds[kind, 1], strict=True)
            rows.append(row_of(f"{named(kind, count)} / {named(kind, 1)}", [many / one for many, one in of_one]))
    return rows


def print_scaling(config: ScalingConfig, rows: list[Row]) -> None:
    """The table of `measure_scaling`."""
    title = f"our loader, views of {config.image_size} pixels, {usable_cores()} cores"
    print_rows(title, rows, ["{:.2f}" if "/" in row["name"] else "{:,.0f}" for row in rows])


def counts_up_to(most: int) -> list[int]:
    """1, 2, 4 and so on, and the largest number itself."""
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    return [*doubled, most]


def named(kind: str, count: int) -> str:
    """Such as 1 thread, 4 processes."""
    one = {"threads": "thread", "processes": "process"}
    return f"{count} {kind if count > 1 else one[kind]}"


def images_per_second(loader: Loader, batches: int) -> float:
    """From one batch to a later one, while the loader runs on before and after."""
    stream = loader.batches(0)
    for _ in range(WARM_UP_BATCHES):
        next(stream)
    started, images = time.perf_counter(), 0
    for _ in range(batches):
        batch = next(stream)
        images += batch.images.shape[0] * batch.images.shape[1]
    return images / (time.perf_counter() - started)
