"""Tables of runs: Markdown, and means with standard deviations over seeds."""

import statistics
from collections.abc import Sequence

from ssl_equi.evaluation.metrics import fixed

LARGEST_SHARE = 5  # larger numbers are degrees, which have one decimal


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, the value alone where there is one, a dash for nothing."""
    if not values:
        return "-"
    decimals = 1 if max(values) > LARGEST_SHARE else 3
    mean = fixed(statistics.mean(values), decimals)
    return mean if len(values) == 1 else f"{mean} ± {fixed(statistics.stdev(values), decimals)}"
