"""`report.html` of any number of run and evaluation folders, made from what is on disk; one is a comparison of one."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ssl_equi.errors import CheckpointError, described
from ssl_equi.evaluation.report.compared_runs import ComparedRun, read_compared_runs
from ssl_equi.evaluation.report.comparison import Row, compare_runs
from ssl_equi.evaluation.report.feature_map import MapMethod
from ssl_equi.evaluation.report.page import Sections, drawn_sections, page_document
from ssl_equi.evaluation.report.rotation_distributions import distribution_section
from ssl_equi.evaluation.report.runs import (
    actions_section,
    page_header,
    runs_section,
    settings_sections,
    training_section,
)
from ssl_equi.evaluation.report.sections import (
    errors_section,
    maps_section,
    neighbours_section,
    orbits_section,
    overview_section,
    retrieval_section,
    spectrum_section,
    views_section,
)
from ssl_equi.evaluation.report.sequences import sequence_section
from ssl_equi.evaluation.report.symmetry import symmetry_section
from ssl_equi.evaluation.report.tables import headline_section, results_section
from ssl_equi.evaluation.results import RESULTS_FILE
from ssl_equi.files import write_atomically


def report_sections(runs: Sequence[ComparedRun], rows: Sequence[Row], title: str, map_method: MapMethod) -> Sections:
    """All sections of a page in their order. A section returns no text where the runs have nothing to show in it."""
    return {
        "header": partial(page_header, title, runs),
        "runs": partial(runs_section, runs),
        "headline": partial(headline_section, runs, rows),
        "overview": partial(overview_section, runs, rows),
        "actions": partial(actions_section, runs),
        "results": partial(results_section, runs, rows),
        "errors": partial(errors_section, runs),
        "retrieval": partial(retrieval_section, runs),
        "maps": partial(maps_section, runs, map_method),
        "spectrum": partial(spectrum_section, runs),
        "orbits": partial(orbits_section, runs),
        "distributions": partial(distribution_section, runs),
        "sequences": partial(sequence_section, runs),
        "symmetry": partial(symmetry_section, runs),
        "training": partial(training_section, runs),
        "views": partial(views_section, runs),
        "neighbours": partial(neighbours_section, runs),
        "settings": partial(settings_sections, runs),
    }


def write_evaluation_report(
    folders: Sequence[str | Path], out: Path, *, title: str | None = None, map_method: MapMethod = "pca"
) -> Path:
    """Write one self-contained page about the folders, atomically, and return its path.

    Raises UserError for folders without intact results, and for t-SNE without scikit-learn.

    Args:
        folders: as `read_compared_runs` takes them.
        title: made from the runs' names when None.
        map_method: how features are brought to two dimensions.
    """
    runs = read_compared_runs(folders)
    if title is None and len(runs) == 1:
        title = str(runs[0].folders[0].run.get("title", runs[0].name))
    elif title is None:
        title = " · ".join(run.name for run in runs) if len(runs) <= 4 else f"{len(runs)} runs compared"
    sections = report_sections(runs, compare_runs(runs), title, map_method)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page_document(title, drawn_sections(sections)), CheckpointError)
    return out


def write_report_or_warn(folders: Sequence[str | Path], out: Path, *, title: str | None = None) -> None:
    """What `write_evaluation_report` does, behind numbers that are on disk already: a failure is a warning."""
    try:
        write_evaluation_report(folders, out, title=title)
    except Exception as error:
        warnings.warn(f"{out} can't be written ({described(error)}): the numbers are in {RESULTS_FILE}", stacklevel=2)
