"""Notebooks as Markdown, and the files that their cells write; read as JSON, without Jupyter."""

import json
import re
from pathlib import Path
from typing import Any

CELL_MAGIC = re.compile(r"%%(?P<name>\w+)[ \t]*(?P<argument>.*)\n")


def cells_of(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, each with its `source` as one text."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def written_files(path: Path) -> dict[str, str]:
    """The text of each file that a cell `%%writefile NAME` writes, by its name."""
    magics = [(CELL_MAGIC.match(cell["source"]), cell["source"]) for cell in cells_of(path)]
    return {
        magic["argument"].strip(): source[magic.end() :] + "\n"
        for magic, source in magics
        if magic is not None and magic["name"] == "writefile"
    }


def as_markdown(path: Path, with_outputs: bool = True) -> str:
    """A notebook as Markdown: code in its language, and if asked behind it what it printed and drew."""
    blocks = []
    for cell in cells_of(path):
        if cell["cell_type"] == "markdown":
            blocks.append(cell["source"])
        elif cell["cell_type"] == "code":
            blocks.append(code_block(cell["source"]))
            outputs = cell["outputs"] if with_outputs else []
            blocks += [block for output in outputs for block in output_blocks(output)]
    return "\n\n".join(blocks) + "\n"


def code_block(source: str) -> str:
    """A cell in its language: shell behind `%%bash`, and Python; of a file that is written, its name above."""
    magic = CELL_MAGIC.match(source)
    if magic is None:
        return fenced(source, "python")
    body = source[magic.end() :]
    if magic["name"] == "writefile":
        return f"`{magic['argument'].strip()}`:\n\n{fenced(body, 'python')}"
    return fenced(body, magic["name"])


def output_blocks(output: dict[str, Any]) -> list[str]:
    """What a cell printed, as a block of text, or drew, as a picture inside the page."""
    data: dict[str, Any] = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return [f"![output of the cell above](data:{kind};base64,{''.join(''.join(data[kind]).split())})"]
    if "text/markdown" in data:
        return ["".join(data["text/markdown"])]
    text = "".join(output.get("text", data.get("text/plain", "")))
    return [fenced(text, "{.text .output}")] if text.strip() else []


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.strip(chr(10))}\n```"
