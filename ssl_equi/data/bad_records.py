"""What a loader does with a record that can't be read: end, or put another of its batch in its place."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.errors import DataError

OnBadRecord = Literal["raise", "skip"]

_LOG = logging.getLogger(__name__)


class BadRecords:
    """Counts, logs and replaces the bad records of one rank, at most `max_skipped` of them.

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

    def replaced(self, batch: ViewBatch, problems: Sequence[DataError | None], step: int) -> ViewBatch:
        """The batch with each bad row overwritten by the next good one, in the images' buffer itself.

        Args:
            problems: of each row, what is wrong with it; None for a good one.
            step: of the batch, for the error.

        Raises:
            DataError: more were skipped than allowed, or no row is good.
        """
        bad_rows = [row for row, problem in enumerate(problems) if problem is not None]
        if not bad_rows:
            return batch
        for row in bad_rows:
            self.skipped += 1
            _LOG.warning("skipped a record (%d so far on rank %d): %s", self.skipped, self._rank, problems[row])
        last_problem = problems[bad_rows[-1]]
        if self.skipped > self._max_skipped:
            raise DataError(
                f"{self.skipped} bad records were skipped on rank {self._rank}, more than max_skipped = "
                f"{self._max_skipped}; the last one: {last_problem}"
            )
        if len(bad_rows) == len(problems):
            raise DataError(
                f"none of the {len(problems)} records of step {step} on rank {self._rank} is good, so none can be "
                f"skipped; the last one: {last_problem}"
            )
        sources = np.arange(len(problems))
        for row in bad_rows:
            following = ((row + distance) % len(problems) for distance in range(1, len(problems)))
            sources[row] = next(source for source in following if problems[source] is None)
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
        )
