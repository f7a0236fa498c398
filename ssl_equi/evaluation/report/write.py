"""`report.html` of any number of run and evaluation folders, made from what is on disk.

One folder gives the page of a run; several give a comparison. Either is one file that needs no network.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from ssl_equi.errors import CheckpointError
from ssl_equi.evaluation.report.compared_runs import ComparedRun, read_compared_runs
from ssl_equi.evaluation.report.comparison import Row, compare_runs
from ssl_equi.evaluation.report.comparison_page import (
    comparison_header,
    comparison_section,
    differences_section,
    overview_section,
    runs_section,
    training_overlays,
)
from ssl_equi.evaluation.report.feature_map import MapMethod
from ssl_equi.evaluation.report.page import Sections, drawn_sections, page_document
from ssl_equi.evaluation.report.run_page import neighbours_section, run_details, run_sections, views_section
from ssl_equi.evaluation.report.sections import (
    errors_section,
    maps_section,
    orbits_section,
    retrieval_section,
    spectrum_section,
)
from ssl_equi.evaluation.report.sequences import sequence_section
from ssl_equi.evaluation.report.symmetry import symmetry_section
from ssl_equi.evaluation.results import RESULTS_FILE
from ssl_equi.evaluation.skipping import described
from ssl_equi.files import write_atomically

STRIPS_OF_A_RUN = 3  # of each part, where several runs are compared


def write_evaluation_report(
    folders: Sequence[str | Path], out: Path, *, title: str | None = None, map_method: MapMethod = "pca"
) -> Path:
    """Write one self-contained page about the folders, atomically, and return its path.

    Args:
        folders: run or evaluation folders; as text also NAME=FOLDER,FOLDER,... for one method trained from several
            seeds.
        out: file to write.
        title: of the page; made from the runs' names when None.
        map_method: how features are brought to two dimensions.

    Raises:
        UserError: a folder has no results, or damaged ones.
        CheckpointError: the file can't be written.
        UserError: t-SNE is asked for and scikit-learn is not installed.
    """
    runs = read_compared_runs(folders)
    rows = compare_runs(runs)
    shown_title = title or _title(runs)
    further: Sections = {
        "retrieval": lambda: retrieval_section(runs),
        "maps": lambda: maps_section(runs, map_method),
        "spectrum": lambda: spectrum_section(runs),
        "orbits": lambda: orbits_section(runs),
        "sequences": lambda: sequence_section(runs),
        "symmetry": lambda: symmetry_section(runs),
    }
    if _is_plain(runs, rows):
        sections = run_sections(runs[0].folders[0], shown_title, further)
    else:
        sections = _comparison_sections(runs, rows, shown_title, further)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page_document(shown_title, drawn_sections(sections)), CheckpointError)
    return out


def write_report_or_warn(folders: Sequence[str | Path], out: Path, *, title: str | None = None) -> None:
    """What `write_evaluation_report` does, behind numbers that are on disk already: a failure is a warning."""
    try:
        write_evaluation_report(folders, out, title=title)
    except Exception as error:
        warnings.warn(f"{out} can't be written ({described(error)}): the numbers are in {RESULTS_FILE}", stacklevel=2)


def _comparison_sections(runs: Sequence[ComparedRun], rows: Sequence[Row], title: str, further: Sections) -> Sections:
    notes = [
        f"{run.name}: {note}"
        for run in runs
        for note in dict.fromkeys(n for folder in run.folders for n in folder.notes)
    ]
    pictures = next((run for run in runs if "view_sheet" in run.arrays), runs[0])
    sections: Sections = {
        "header": lambda: comparison_header(title, runs),
        "runs": lambda: runs_section(runs),
        "overview": lambda: overview_section(runs, rows),
        "results": lambda: comparison_section(runs, rows, notes),
        "errors": lambda: errors_section(runs),
        **further,
        "training": lambda: training_overlays(runs),
        "views": lambda: views_section(pictures.arrays, pictures.name),
        "neighbours": lambda: neighbours_section({run.name: run.arrays for run in runs}, STRIPS_OF_A_RUN),
        "differences": lambda: differences_section(runs),
    }
    return sections | (run_details(runs[0].folders[0]) if len(runs) == 1 else {})


def _is_plain(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> bool:
    """Whether every question has one answer: one run, one seed, one protocol and split."""
    if len(runs) > 1 or len(runs[0].folders) > 1:
        return False
    seeds = {record.seed for record in runs[0].folders[0].records}
    return len(seeds) <= 1 and all(row.setting is None for row in rows)


def _title(runs: Sequence[ComparedRun]) -> str:
    if len(runs) > 1:
        return " · ".join(run.name for run in runs) if len(runs) <= 4 else f"{len(runs)} runs compared"
    return str(runs[0].folders[0].run.get("title", runs[0].name))
