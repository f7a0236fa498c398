"""What tests of report pages share: a reader that checks the page, and folders with made results."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.evaluation.report.compared_runs import ComparedRun, EvaluatedFolder
from ssl_equi.evaluation.report.comparison import compare_runs
from ssl_equi.evaluation.report.tables import results_section
from ssl_equi.evaluation.results import ProbeRecord, write_evaluation

VOID_TAGS = {"meta", "img", "br", "link", "input", "hr", "wbr"}
PICTURE, DOWNLOAD = "data:image/jpeg;base64,", "data:application/json;base64,"
FINGERPRINT = "ba5a282b87da6213"


class PageReader(HTMLParser):
    """Checks that tags nest, and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.images_without_alt = 0
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.references += [attributes[name] for name in ("href", "src") if name in attributes]
        self.handlers += [name for name in attributes if name.startswith("on")]
        self.images_without_alt += tag == "img" and not attributes.get("alt")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID_TAGS:
            self.open_tags.pop()

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if self.open_tags[-1:] == ["script"]:
            self.scripts.append(data)
        else:
            self.text += data


def read_page(page: str) -> PageReader:
    """The page, which must be one safe and small file that needs no network, and whose parts have names.

    Its only script is the library's own: text that was not escaped would add others, or cut it short.
    """
    reader = PageReader()
    reader.feed(page)
    reader.close()
    assert reader.open_tags == []
    assert reader.scripts == [(files("ssl_equi.evaluation.report") / "page.js").read_text().strip()]
    digest = base64.b64encode(hashlib.sha256(reader.scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert page.count("<script") == 1 and reader.handlers == []
    assert all(reference.startswith((PICTURE, DOWNLOAD, "#")) for reference in reader.references)
    assert not re.search(r"https?://|//cdn|@import|url\((?!#)", page)
    assert {reference[1:] for reference in reader.references if reference.startswith("#")} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.images_without_alt == 0
    assert len(page) < 3_000_000
    return reader


def records_on(page: str) -> dict[str, list[dict[str, Any]]]:
    """The records that a page offers to download, by the run's name."""
    (reference,) = (each for each in read_page(page).references if each.startswith(DOWNLOAD))
    content = json.loads(base64.b64decode(reference.removeprefix(DOWNLOAD)))
    return {run["name"]: run["records"] for run in content["runs"]}


def results_of(records: Sequence[ProbeRecord], notes: Sequence[str] = ()) -> str:
    """The section of results of one run with these records."""
    folder = EvaluatedFolder(Path("run"), records, notes, {}, {}, {}, {}, None)
    runs = [ComparedRun("run", (folder,))]
    return results_section(runs, compare_runs(runs))


def record(**changes: Any) -> ProbeRecord:
    values: dict[str, Any] = {
        "task": "classification", "part": "inv", "metric": "top1", "value": 0.8, "baseline": 0.25,
        "baseline_name": "majority class", "random_encoder": None, "n": 100, "num_objects": 20, "split": "test",
        "protocol": "ssl_equi_v1", "seed": 0,
    }  # fmt: skip
    return ProbeRecord(**values | changes)


def make_evaluation(
    folder: Path, records: list[ProbeRecord], arrays: dict[str, np.ndarray] | None = None, **run: Any
) -> Path:
    """An evaluation folder."""
    run = {"evaluation_fingerprint": FINGERPRINT} | run
    write_evaluation(folder, records, run.pop("notes", []), run, arrays or {})
    return folder


def make_older_run(folder: Path, records: list[ProbeRecord], **run: Any) -> Path:
    """A run folder without arrays."""
    folder.mkdir(parents=True)
    content = {"records": [asdict(each) for each in records], "run": {"evaluation_fingerprint": FINGERPRINT} | run}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def made_arrays(
    seed: int, num_classes: int = 5, parts: tuple[str, ...] = ("all", "inv", "equi")
) -> dict[str, np.ndarray]:
    """Every array that a page can draw, from random numbers."""
    generator = np.random.default_rng(seed)
    labels = np.arange(600) % num_classes
    arrays = {
        "class_names": np.array([f"kind {index}" for index in range(num_classes)]),
        "map_labels": labels,
        "map_angle_deg": generator.uniform(0, 180, 600),
        "orbit_angles_deg": np.arange(0, 360, 30.0),
        "view_sheet": generator.integers(0, 255, (4, 6, 24, 24, 3), dtype=np.uint8),
    }
    for part in parts:
        arrays |= {
            f"angle_errors_deg/relative_rotation/{part}": 90 * generator.beta(2, 4, 300) * (1 + seed),
            f"constant_angle_errors_deg/relative_rotation/{part}": 180 * generator.beta(4, 3, 300),
            f"per_class_recall/classification/{part}": generator.uniform(0.3, 1, num_classes),
            f"map_features/{part}": generator.standard_normal((600, 4)) + labels[:, None],
            f"singular_values/{part}": 0.9 ** np.arange(32),
            f"object_scores.top1/classification/{part}": generator.uniform(0, 1, 20),
            f"object_values.angle_deg_median/relative_rotation/{part}": generator.uniform(0, 90, (20, 3)),
            f"object_moments.r2_uniform/relative_rotation/{part}": generator.uniform(0, 1, (20, 13)),
            f"orbit/{part}": generator.uniform(0, 0.4, (5, 12)),
            f"orbit_rotation_deg/{part}": generator.uniform(0, 60, (5, 12)),
        }
    pictures = generator.integers(0, 255, (3, 7, 24, 24, 3), dtype=np.uint8)
    return arrays | {
        "retrieval_ranks/retrieval/equi": generator.integers(1, 21, 200),
        "retrieval_gallery_size/retrieval/equi": np.array(20),
        "retrieval_images/retrieval/equi": pictures,
        "retrieval_hits/retrieval/equi": np.eye(3, 5, dtype=bool),
        "retrieval_strip_ranks/retrieval/equi": np.array([1, 2, 3]),
        "rotation_density/absolute_rotation_distribution/equi": generator.standard_normal((2, 50, 4)),
        "rotation_truth/absolute_rotation_distribution/equi": np.eye(4)[:2],
        "neighbour_images/inv": pictures,
        "neighbour_captions/inv": np.array([["kind 1", *["✓ 20°"] * 6]] * 3),
    }
