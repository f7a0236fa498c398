"""The page of a comparison: what is on it, that it is safe and self-contained, and that it fits phone and paper."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ssl_equi.errors import UserError
from ssl_equi.evaluation.report import feature_map
from ssl_equi.evaluation.report.write import write_evaluation_report
from ssl_equi.evaluation.results import ProbeRecord
from tests.evaluation.report_pages import (
    made_arrays,
    make_evaluation,
    make_older_run,
    read_page,
    record,
    records_on,
)

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECTIONS = (
    "runs", "headline", "overview", "results", "errors", "retrieval", "maps", "spectrum", "orbits", "training", "views",
    "neighbours", "settings", "differences", "configuration",
)  # fmt: skip
HOSTILE = '<script>alert("1")</script>$x_$&\n'


def load_script(name: str) -> ModuleType:
    """A script of `evaluation/` as a module."""
    specification = importlib.util.spec_from_file_location(
        f"evaluation_{name}_script", ROOT / "evaluation" / f"{name}.py"
    )
    script = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = script
    specification.loader.exec_module(script)
    return script


def records_of(value: float) -> list[ProbeRecord]:
    rotation = {"task": "relative_rotation", "baseline": 0.0, "baseline_name": "constant"}
    return [
        record(part=part, seed=seed, value=value + 0.01 * seed - 0.05 * (part == "equi"), **of_task)
        for part in ("all", "inv", "equi")
        for seed in (0, 1, 2)
        for of_task in ({}, {"metric": "r2_uniform", **rotation}, {"metric": "angle_deg_median", **rotation})
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two evaluations with all arrays, and an older run with hostile texts and nothing but numbers."""
    parent = tmp_path_factory.mktemp("runs")
    made = [
        make_evaluation(parent / name, records_of(value), made_arrays(seed), name=name, notes=[f"{name}: {HOSTILE}"])
        for seed, (name, value) in enumerate((("sie", 0.7), ("a_rather_long_name_of_a_run-seed0", 0.6)))
    ]
    made.append(make_older_run(parent / "older", [record(task=HOSTILE, part="<b>", metric=HOSTILE), *records_of(0.5)]))
    for index, folder in enumerate(made):
        (folder / "config.json").write_text(json.dumps({"encoder": HOSTILE, "lr": index, "evaluation_split": "test"}))
        lines = [{"event": "loss", "step": step, "loss": 10 / step, "variance": 0.1} for step in range(1, 50)]
        lines += [{"event": "online_probe", "step": step, "inv/top1": step / 50} for step in range(1, 50)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


@pytest.fixture(scope="module")
def page_path(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [str(folders[0]), str(folders[1]), f"{HOSTILE}={folders[2]}"]
    return write_evaluation_report(texts, tmp_path_factory.mktemp("page") / "report.html", title=f"T {HOSTILE}")


def test_the_page_has_every_section_once_and_in_order(page_path):
    page = read_page(page_path.read_text())
    assert [identity for identity in page.ids if identity in SECTIONS] == list(SECTIONS)


def test_text_from_outside_is_text(page_path):
    page = read_page(page_path.read_text())
    assert "b" not in page.tags
    assert 'alert("1")' in page.text


def test_every_drawing_is_named_for_those_who_hear_it(page_path):
    text = page_path.read_text()
    assert text.count("<svg") == text.count('role="img" aria-label="') - len(re.findall(r'class="mark"', text)) + len(
        re.findall(r'aria-hidden="true"', text)
    )
    assert not re.search(r'aria-label="\s*"', text)


def test_the_best_is_marked_with_a_sign_and_the_reasons_are_in_words(page_path):
    text = page_path.read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", text[text.index('id="results"') : text.index('id="errors"')])
    (top1,) = [row for row in rows if "top1" in row and "<td>all" in row]
    assert re.search(r'aria-label="best">★</span><strong>0.710</strong> <small title="[^"]*">± 0.006', top1)
    of_pose_in_inv = [row for row in rows if "<td>inv <a" in row and "part inv is not meant to know this" in row]
    assert len(of_pose_in_inv) == 2
    assert "★" not in "".join(of_pose_in_inv)
    shown = read_page(text).text
    assert "not ranked: part inv is not meant to know this" in shown
    assert "± standard error over 3 seeds: sie, a_rather_long_name_of_a_run-seed0" in shown


def test_one_run_has_the_page_of_a_run_and_older_folders_have_numbers_and_curves(folders, tmp_path):
    single = make_evaluation(tmp_path / "one", [record()], made_arrays(0, parts=("equi",)))
    page = read_page(write_evaluation_report([single], tmp_path / "one.html").read_text())
    assert {"headline", "results", "errors", "retrieval", "maps", "orbits", "neighbours"} <= set(page.ids)
    assert page.text.count("where from") == 1
    older = read_page(write_evaluation_report([folders[2]], tmp_path / "older.html").read_text())
    assert {"results", "training"} <= set(older.ids)
    assert not {"errors", "maps", "views"} & set(older.ids)


def test_constant_parts_have_no_map_and_say_so(tmp_path):
    arrays = made_arrays(0, parts=("all",)) | {
        "map_features/all": np.zeros((600, 0)),
        "singular_values/all": np.zeros(8),
    }
    folder = make_evaluation(tmp_path / "run", [record()], arrays)
    text = read_page(write_evaluation_report([folder], tmp_path / "r.html").read_text()).text
    assert "part all: the features are constant, there is no map" in text
    assert "(constant)" in text


def test_a_spectrum_of_features_that_are_not_centred_is_not_drawn_as_one_of_centred_features(tmp_path):
    spectrum = {"singular_values/collapse/all": np.arange(8.0, 0, -1)}
    alone = make_evaluation(tmp_path / "alone", [record()], spectrum)
    assert "spectrum" not in read_page(write_evaluation_report([alone], tmp_path / "r.html").read_text()).ids
    both = make_evaluation(tmp_path / "both", [record()], spectrum | {"singular_values/all": np.ones(6)})
    assert "(6.0 of 6)" in read_page(write_evaluation_report([both], tmp_path / "b.html").read_text()).text


def test_ten_runs_stay_small_and_legible(tmp_path):
    kept = ("map_", "view_sheet", "neighbour", "class_names")
    arrays = {name: array for name, array in made_arrays(0, parts=("inv", "equi")).items() if name.startswith(kept)}
    folders = [make_evaluation(tmp_path / f"run{i}", records_of(0.05 * i), arrays) for i in range(10)]
    path = write_evaluation_report(folders, tmp_path / "r.html")
    read_page(path.read_text())
    assert path.read_text().count('<table class="comparison">') == 2  # six beside each other, then four


def test_pages_are_the_same_in_every_call(folders, tmp_path):
    first, second = (write_evaluation_report([folders[2]], tmp_path / f"{number}.html") for number in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_tsne_without_scikit_learn_names_the_cure(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'ssl-equi\[maps\]'"):
        write_evaluation_report([folders[0]], tmp_path / "r.html", map_method="tsne")
    assert feature_map.map_coordinates(np.zeros((9, 3)), "pca").shape == (9, 2)


def test_records_of_a_made_up_task_are_in_every_table_and_export(tmp_path):
    """Nobody lists the names of tasks and metrics."""
    made_up = {"task": "dreams", "metric": "vividness", "baseline": 0.125, "baseline_name": "sleep"}
    folders = [
        make_evaluation(tmp_path / name, [record(value=value, seed=seed, **made_up) for seed in (0, 1)], name=name)
        for name, value in (("a_b", 0.5), ("owl", 0.7))
    ]
    page = write_evaluation_report(folders, tmp_path / "r.html").read_text()
    cards = page[page.index('id="headline"') : page.index('id="results"')]
    assert ">Dreams<" in cards and "vividness, part inv" in cards and "sleep 0.125" in cards
    assert '<code>vividness</code></td><td>inv</td><td class="number" title="sleep"' in page
    assert {run: len(records) for run, records in records_on(page).items()} == {"a_b": 2, "owl": 2}
    assert records_on(page)["owl"][0]["task"] == "dreams"
    markdown, latex = re.findall(r'<pre data-format="\w+">(.*?)</pre>', page, re.DOTALL)[::-1]
    assert "| dreams | vividness | inv | 0.125 | 0.500 ± 0.000 | **0.700 ± 0.000** |" in markdown
    assert r"dreams &amp; vividness &amp; inv &amp; $0.125$ &amp; $0.500 \pm 0.000$" in latex


def test_tables_for_papers_are_bold_only_where_numbers_are_ranked(tmp_path, capsys):
    angle = {"task": "relative_rotation", "metric": "angle_deg_median", "baseline": 90.0, "part": "equi"}
    first = [record(value=0.6, seed=0), record(value=0.8, seed=1), record(**angle, value=40.0)]
    second = [record(value=0.9, baseline=0.3), record(**angle, value=50.0, n=7)]
    folders = [str(make_evaluation(tmp_path / name, found)) for name, found in (("x_$1", first), ("y|z", second))]
    script = load_script("report")
    script.main(script.Config(folders=tuple(folders), table="markdown"))
    assert capsys.readouterr().out == (
        "| task | metric | part | baseline | x\\_$1 | y\\|z |\n| --- | --- | --- | ---: | ---: | ---: |\n"
        "| classification | top1 | inv | 0.250 to 0.300 | 0.700 ± 0.100 | **0.900** |\n"
        "| relative\\_rotation | angle\\_deg\\_median | equi | 90.0° | 40.0° | 50.0° |\n"
    )
    script.main(script.Config(folders=tuple(folders), table="latex"))
    assert capsys.readouterr().out == (
        "\\begin{tabular}{lllrrr}\n\\toprule\ntask & metric & part & baseline & x\\_\\$1 & y|z \\\\\n\\midrule\n"
        "classification & top1 & inv & $0.250$ to $0.300$ & $0.700 \\pm 0.100$ & \\textbf{$0.900$} \\\\\n"
        "\\addlinespace\n"
        "relative\\_rotation & angle\\_deg\\_median & equi & $90.0^{\\circ}$ & $40.0^{\\circ}$ & $50.0^{\\circ}$ \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def test_the_script_writes_where_it_is_told(folders, tmp_path, capsys):
    script = load_script("report")
    script.main(script.Config(folders=(str(folders[2]),), out=tmp_path / "sub" / "r.html", title="mine"))
    assert "<title>mine</title>" in (tmp_path / "sub" / "r.html").read_text()
    assert "sub/r.html" in capsys.readouterr().out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: layout and print are not checked")
def test_nothing_is_wider_than_a_phone_or_a_desktop_and_it_prints(page_path, tmp_path):
    """The page in frames of both widths; a script beside it asks how wide their contents are, and uses the page."""
    frames = "".join(
        f'<iframe src="{page_path.as_uri()}" width="{width}" height="800"></iframe>' for width in (360, 1100)
    )
    asking = """onload = () => { document.title = [...document.querySelectorAll('iframe')].map(frame => {
        const page = frame.contentDocument, root = page.documentElement;
        const column = [...page.querySelectorAll('table.comparison th')].find(head => head.textContent === 'sie');
        const values = () => [...page.querySelectorAll('table.comparison tbody')].map(body =>
            [...body.rows].slice(1).map(row => row.cells[3].dataset.value).filter(value => value !== undefined));
        const before = values();
        const ordered = (list, sign) => list.every((value, i) => !i || sign * (value - list[i - 1]) >= 0);
        const found = [root.clientWidth, root.scrollWidth, page.querySelectorAll('svg').length];
        for (const sign of [1, -1]) {
            column.querySelector('button').click();
            found.push(Number(values().every(list => ordered(list, sign))));
        }
        column.querySelector('button').click();
        found.push(Number(String(values()) === String(before) && !before.every(list => ordered(list, 1))));
        const place = page.querySelector('#errors [data-tip]'), tip = page.querySelector('.tip');
        place.dispatchEvent(new frame.contentWindow.PointerEvent('pointermove', { bubbles: true }));
        found.push(Number(!tip.hidden && tip.textContent.startsWith('0° to 5°\\nsie, equi: ')));
        return [...found, page.querySelectorAll('.exports button').length].join(' ') }).join(';') }"""
    outer = tmp_path / "frames.html"
    outer.write_text(f"<!doctype html><body>{frames}<script>{asking}</script></body>")
    browser = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--allow-file-access-from-files", "--hide-scrollbars",
    ]  # fmt: skip
    asked = subprocess.run(
        [*browser, "--virtual-time-budget=20000", "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(.*?)</title>", asked.stdout)
    assert found, asked.stdout[-2000:]
    for width, measured in zip((360, 1100), found[1].split(";"), strict=True):
        client_width, scroll_width, drawings, *used, buttons = map(int, measured.split())
        assert client_width == width
        assert scroll_width <= width, f"at {width} pixels the page is {scroll_width} wide"
        assert drawings > 20
        assert used == [1, 1, 1, 1], "up, down, as it was, the values of a figure"
        assert buttons == 2

    pdf = tmp_path / "report.pdf"
    subprocess.run([*browser, f"--print-to-pdf={pdf}", page_path.as_uri()], capture_output=True, check=True)
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 1
