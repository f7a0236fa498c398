"""Puts runs or evaluations side by side on one page, `report.html`, that needs no network.

    python evaluation/report.py runs/sie                                         one run, from what is on disk
    python evaluation/report.py runs/sie runs/vicreg --out sie_and_vicreg.html   two of them, compared
    python evaluation/report.py sie=runs/sie-0,runs/sie-1 byol=runs/byol-0,runs/byol-1      two methods, two seeds each
    python evaluation/report.py runs/sie runs/vicreg --map tsne                  maps of the features by t-SNE
    python evaluation/report.py runs/sie runs/vicreg --table latex               the table alone, printed for a paper

A folder is a run's or an evaluation's: anything with a results.json. The table gives each number's mean and standard
error with the baseline beside it, and marks the best where numbers can be compared: same protocol, split, number of
samples and data. Where they can't, the page says why. Pictures come from arrays.npz; of folders without one, numbers
and curves are shown. The page sorts its tables, copies them as LaTeX and Markdown, and has all records as JSON.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.evaluation.report.compared_runs import read_compared_runs
from ssl_equi.evaluation.report.comparison import compare_runs
from ssl_equi.evaluation.report.feature_map import MapMethod
from ssl_equi.evaluation.report.tables import TableFormat, text_table
from ssl_equi.evaluation.report.write import write_evaluation_report


@dataclass(frozen=True)
class Config:
    """What is put on the page."""

    folders: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders with a results.json; or NAME=FOLDER,FOLDER for one method trained from several seeds."""
    out: Path = Path("report.html")
    """File to write."""
    title: str | None = None
    """Title of the page; made from the names when not given."""
    map: MapMethod = "pca"
    """How features are brought to two dimensions; tsne needs scikit-learn (pip install 'ssl-equi[maps]')."""
    table: TableFormat | None = None
    """Print the table of results in this format, and write no page; LaTeX needs the package booktabs."""


def main(config: Config) -> None:
    if config.table is not None:
        runs = read_compared_runs(config.folders)
        print(text_table(runs, compare_runs(runs), config.table), end="")
        return
    page = write_evaluation_report(config.folders, config.out, title=config.title, map_method=config.map)
    print(f"open {page} in a browser")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
