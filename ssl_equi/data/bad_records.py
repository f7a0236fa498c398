"""What a loader does with a record that can't be read: end, or put another of its batch in its place."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch

from ssl_equi.data.batch import ViewBatch
from ssl_equi.errors import DataError, LostShardError

OnBadRecord = Literal["raise", "skip"]

_LOG = logging.getLogger(__name__)


class BadRecords:
    """Counts, logs and replaces the bad records of one rank, at most `max_skipped` different ones.

    A record that is met again in a later epoch is counted and logged again, but doesn't come nearer to the limit.
    Raises ValueError for another choice than "raise" and "skip", or a negative limit.
    """

    def __init__(self, on_bad_record: OnBadRecord, max_skipped: int, rank: int) -> None:
        if on_bad_record not in ("raise", "skip") or max_skipped < 0:
            raise ValueError(
                f"on_bad_record is {on_bad_record!r} and max_skipped {max_skipped}: give 'raise' or 'skip', and at "
                f"least 0"
            )
        self.are_skipped = on_bad_record == "skip"
        self.skipped = 0
        self._max_skipped, self._rank = max_skipped, rank
        self._objects: set[int] = set()

    def count(self, object_index: int, problem: DataError) -> None:
        """Count and log one skipped record; DataError if it is one more than allowed."""
        self.skipped += 1
        self._objects.add(object_index)
        _LOG.warning("skipped a record (%d so far on rank %d): %s", self.skipped, self._rank, problem)
        if len(self._objects) > self._max_skipped:
            raise DataError(
                f"{len(self._objects)} bad records were skipped on rank {self._rank}, more than max_skipped = "
                f"{self._max_skipped}; the last one: {problem}"
            )

    def replaced(self, batch: ViewBatch, problems: Sequence[DataError | None], step: int) -> ViewBatch:
        """The batch with each row that has a problem overwritten by the next good one, in the images' buffer itself.

        Raises DataError if more were skipped than allowed, or no row is good.
        """
        bad = {row: problem for row, problem in enumerate(problems) if problem is not None}
        if not bad:
            return batch
        for row, problem in bad.items():
            self.count(int(batch.object_indices[row]), problem)
        if len(bad) == len(problems):
            raise DataError(
                f"none of the {len(problems)} records of step {step} on rank {self._rank} is good, so none can be "
                f"skipped; the last one: {problems[-1]}"
            )
        bad_rows = list(bad)
        sources = np.arange(len(problems))
        for row in bad_rows:
            following = ((row + distance) % len(problems) for distance in range(1, len(problems)))
            sources[row] = next(source for source in following if source not in bad)
        chosen = torch.from_numpy(sources)
        batch.images[bad_rows] = batch.images[chosen[bad_rows]]
        return dataclasses.replace(
            batch,
            latents=batch.latents[chosen],
            quat_xyzw=None if batch.quat_xyzw is None else batch.quat_xyzw[chosen],
            labels=batch.labels[chosen],
            object_indices=batch.object_indices[chosen],
            view_indices=batch.view_indices[chosen],
            content_sizes=None if batch.content_sizes is None else batch.content_sizes[chosen],
            records_skipped=len(bad),
        )


def problems_of_rows(
    read_row: Callable[[int], object], rows: Iterable[int], report: bool = True
) -> dict[int, DataError]:
    """Read rows one by one; of each that can't be read, what is wrong, raised unless it is to be reported.

    A lost shard raises in any case: it is never skipped.
    """
    problems: dict[int, DataError] = {}
    for row in rows:
        try:
            read_row(row)
        except DataError as error:
            if not report or isinstance(error, LostShardError):
                raise
            problems[row] = error
    return problems
