"""Tables from CSV, JSON lines or Parquet files, whose errors name file, line and column."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.errors import DataError
from ssl_equi.files import parse_json_object, size_of_regular_file

_CURE = "save the table as .csv, .jsonl or .parquet and pass it with --table"
_Rows = Iterator[tuple[int, Sequence[Any]]]  # where a row begins, and its cells in the order that was asked for


@dataclass(frozen=True)
class Table:
    """Some columns of a table, as text without spaces around it."""

    path: Path
    lines: list[int]
    """In which line of the file each row begins, from 1; of Parquet, which has no lines, the number of the row."""
    cells: dict[str, list[str]]
    """By column; empty where there is nothing."""

    @property
    def num_rows(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """As messages call it."""
        return f"{'row' if self.path.suffix.lower() == '.parquet' else 'line'} {self.lines[row]}"

    def error(self, row: int, column: str, problem: str) -> DataError:
        """The error of a cell: file, line, column, and what is wrong and helps."""
        return DataError(f"{self.path}, {self.place(row)}, column '{column}': {problem}")

    def words(self, column: str) -> list[str]:
        """The cells of a column; DataError for the first that is empty."""
        cells = self.cells[column]
        if "" in cells:
            raise self.error(cells.index(""), column, "the cell is empty: fill it in, or take the row out")
        return cells

    def numbers(self, columns: Sequence[str]) -> np.ndarray:
        """float64 [rows, columns]; DataError for the first cell that holds no finite number."""
        values = np.empty((self.num_rows, len(columns)))
        for place, column in enumerate(columns):
            for row, text in enumerate(self.words(column)):
                try:
                    values[row, place] = float(text)
                except ValueError:
                    values[row, place] = math.nan
            bad = np.flatnonzero(~np.isfinite(values[:, place]))
            if len(bad):
                text = self.cells[column][bad[0]][:40]
                raise self.error(int(bad[0]), column, f"'{text}' is no finite number: write it like -22.5, no unit")
        return values


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """The named columns of a table; others are passed over, as are rows without any text.

    CSV is read as spreadsheets write it: UTF-8 with or without a byte order mark, commas, cells in double quotes, lines
    that end in any way. JSON lines hold an object each, of text and numbers.

    Raises DataError for a file that can't be read as what its suffix says, lacks a column or has no row.
    """
    readers: dict[str, Callable[[Path, Sequence[str]], _Rows]] = {
        ".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows,
    }  # fmt: skip
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(f"table {path} ends in '{suffix}': {_CURE}")
    size_of_regular_file(path, f"table {path}", DataError, _CURE)
    lines: list[int] = []
    cells: dict[str, list[str]] = {column: [] for column in columns}
    for line, row in readers[suffix](path, columns):
        lines.append(line)
        for column, cell in zip(columns, row):
            cells[column].append(_text(cell, path, line, column))
    if not lines:
        raise DataError(f"table {path} has no row: write one row for each view")
    return Table(path, lines, cells)


def _csv_rows(path: Path, columns: Sequence[str]) -> _Rows:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}, is not text in UTF-8: save the table as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, columns)
        places = [header.index(column) for column in columns]
        line = reader.line_num + 1
        for row in reader:
            if any(cell.strip() for cell in row):
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {line}, has {len(row)} cells and the header {len(header)}: put cells that hold "
                        f"a comma in double quotes"
                    )
                yield line, [row[place] for place in places]
            # A quoted cell may go over several lines, so the next row begins behind all that were read.
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}, is no CSV ({error}): mend its double quotes") from error


def _json_rows(path: Path, columns: Sequence[str]) -> _Rows:
    for line, content in enumerate(path.read_bytes().split(b"\n"), start=1):
        if content.strip(b" \t\r\xef\xbb\xbf"):
            row = parse_json_object(content, f"{path}, line {line},", DataError, "write one JSON object a line")
            if missing := [column for column in columns if column not in row]:
                raise DataError(f"{path}, line {line}, has no '{missing[0]}': write all of {', '.join(columns)}")
            yield line, [row[column] for column in columns]


def _parquet_rows(path: Path, columns: Sequence[str]) -> _Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path} is Parquet, which needs pyarrow: pip install 'ssl-equi[tables]', or save it as .csv"
        ) from None
    try:
        header = pyarrow.parquet.read_schema(path).names
        _check_header(path, header, columns)
        table = pyarrow.parquet.read_table(path, columns=list(dict.fromkeys(columns)))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no readable Parquet file ({error}): write it again") from error
    read = [table.column(column).to_pylist() for column in columns]
    yield from enumerate(zip(*read), start=1)


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            named = ", ".join(header) or "none"
            cure = "separate columns by commas" if any(mark in named for mark in ";\t") else "name one of these"
            raise DataError(f"{path} has no column '{column}', its columns are {named[:300]}: {cure}")
        if header.count(column) > 1:
            raise DataError(f"{path} has {header.count(column)} columns '{column}': give one of them another name")


def _text(cell: Any, path: Path, line: int, column: str) -> str:
    if isinstance(cell, str):
        return cell.strip()
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int | float):
        return repr(cell)
    raise DataError(f"{path}, line {line}, column '{column}': a {type(cell).__name__} is no text or number: write one")
