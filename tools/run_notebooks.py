"""Runs notebooks from top to bottom and stores what their cells print and draw.

    uv run --group docs python tools/run_notebooks.py docs/tutorials/own_images.ipynb

Each runs in a process and an empty folder of its own. Nothing but code, text and outputs is stored: no times, no
versions.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError


@dataclass(frozen=True)
class Config:
    """Which notebooks."""

    notebooks: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files that end in .ipynb."""


def main(config: Config) -> None:
    # Of the group docs: --help does without.
    import nbformat
    from nbclient.exceptions import CellExecutionError

    for path in config.notebooks:
        try:
            notebook = executed(nbformat.read(path, as_version=4))
        except CellExecutionError as error:
            raise UserError(f"{path} does not run to its end, so it stays as it is: {error}") from error
        nbformat.write(notebook, path)
        print(f"ran {path}")


def executed(notebook: Any) -> Any:
    """The notebook, as nbformat reads it, with the outputs of all its cells; CellExecutionError for one that fails."""
    from nbclient import NotebookClient

    scripts = str(Path(sys.executable).parent)  # where the command ssl-equi is
    with tempfile.TemporaryDirectory() as folder:  # and with it, folders that cells make for what is temporary
        path = os.pathsep.join([scripts, os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "TMPDIR": folder}
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources)
        client.execute(env=environment)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = without_noise(cell.outputs)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def without_noise(outputs: list[Any]) -> list[Any]:
    """Outputs with what was printed piece by piece in one piece, and of pictures only the smallest form."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        if "data" in output:
            pictures = {kind: data for kind, data in output.data.items() if kind.startswith("image/")}
            smallest = min(pictures, key=lambda kind: len(pictures[kind]), default=None)
            output.data, output.metadata = output.data if smallest is None else {smallest: pictures[smallest]}, {}
        kept.append(output)
    return kept


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
