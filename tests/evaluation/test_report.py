import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.publish import publish_results
from ssl_equi.evaluation.report.drawings import pictures_of_run
from ssl_equi.evaluation.report.figures import curve_figure, to_svg
from ssl_equi.evaluation.report.pictures import nearest_neighbours, shrink, tile
from ssl_equi.evaluation.report.runs import read_curves
from ssl_equi.evaluation.report.write import write_evaluation_report
from ssl_equi.evaluation.results import read_records
from tests.evaluation.conftest import make_fake_dataset
from tests.evaluation.probed_by_hand import probed
from tests.evaluation.report_pages import made_arrays, make_evaluation, make_older_run, read_page, record

SECTIONS = (
    "runs", "headline", "results", "errors", "maps", "spectrum", "training", "views", "neighbours", "settings",
    "probe-protocol", "configuration", "versions",
)  # fmt: skip


class PixelEncoder(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, :4].flatten(1)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> str:
    tmp_path = tmp_path_factory.mktemp("run")
    train, test = make_fake_dataset(), make_fake_dataset(num_objects=9, seed=1)
    train.class_names = test.class_names = ("chair", "<script>alert(1)</script>", 'a "quoted" & b: $x_$')
    results = probed(
        PixelEncoder(),
        {"all": slice(0, 12), "inv": slice(0, 6), "equi": slice(6, 12)},
        train,
        test,
        random_encoder=PixelEncoder(),
        protocol=ProbeProtocol(rotation_hidden=(8,), rotation_epochs=1, classification_epochs=1),
    )
    lines = []
    for step in range(1, 900):
        lines.append({"event": "loss", "step": step, "loss": 1000 / step, "invariance": 1.0 / step})
        lines.append({"event": "online_probe", "step": step, "inv/top1": 0.5, "equi/top1": 0.4})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "lo')
    config = {"encoder": "resnet18", "note": "<script>alert(3)</script>", "objective": {"equi_dim": 256}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "versions.json").write_text(json.dumps({"torch": "2.15.0"}))
    path = publish_results(
        tmp_path,
        results,
        test,
        title="SIE <script>alert(2)</script>",
        command="accelerate launch recipes/sie.py --note '<b>'",
        run={"recipe": "sie"},
    )
    assert len(read_records(tmp_path / "results.json")) == len(results.records)
    return path.read_text()


def test_the_page_has_every_section(published):
    page = read_page(published)
    assert set(SECTIONS) <= set(page.ids)
    for shown in ("r2_pooled", "ssl_equi_v1", "rotation_epochs", "resnet18", "2.15.0", "recipes/sie.py", "invariance"):
        assert shown in page.text


def test_text_is_shown_as_it_is(published):
    text = read_page(published).text
    for shown in ("alert(1)", "alert(2)", "alert(3)", 'a "quoted" & b: $x_$'):
        assert shown in text


def test_colours_follow_the_page(published):
    assert "var(--series-1)" in published
    assert "#0a0b0" not in published
    assert "prefers-color-scheme: dark" in published
    assert 'name="viewport"' in published


def test_a_page_without_anything_is_still_a_page(tmp_path):
    path = write_evaluation_report([make_older_run(tmp_path / "run", [])], tmp_path / "report.html")
    page = read_page(path.read_text())
    assert "no probes were run" in page.text
    assert "training" not in page.ids


def test_translations_have_tiles_and_are_explained(tmp_path):
    base = record(task="translation_base", part="all", metric="r2_uniform", value=0.9125, baseline=0.0)
    object_frame = replace(base, task="translation_object", value=0.6213)
    records = [base, replace(base, metric="distance_median", value=0.1234, baseline=0.66), object_frame]
    page = write_evaluation_report([make_older_run(tmp_path / "run", records)], tmp_path / "report.html").read_text()
    headline = page[page.index('id="headline"') : page.index('id="results"')]
    for shown in ("Translation base", "r2_<wbr>uniform, part all", "0.912", "Translation object", "0.621"):
        assert shown in headline
    text = read_page(page).text
    for shown in ("0.123", "R2 t2 - R1 t1", "t2 - t1", "world units", "lower is better: distance_median"):
        assert shown in text


def test_large_images_do_not_make_a_large_page(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 256, 256, 3), dtype=np.uint8)
    folder = make_evaluation(tmp_path / "run", [], {"view_sheet": images})
    assert "img" in read_page(write_evaluation_report([folder], tmp_path / "report.html").read_text()).tags


def test_neighbours_equal_a_loop():
    features = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))
    queries = torch.tensor([[0, 1], [4, 2]])
    found = nearest_neighbours(features, queries, k=3)
    for (query_object, query_view), neighbours in zip(queries.tolist(), found.tolist(), strict=True):
        best = []
        for other in range(6):
            if other != query_object:
                cosines = [
                    float(torch.cosine_similarity(features[query_object, query_view], features[other, view], dim=0))
                    for view in range(3)
                ]
                best.append((max(cosines), other, int(np.argmax(cosines))))
        assert neighbours == [[other, view] for _, other, view in sorted(best, reverse=True)[:3]]


def test_curves_pass_over_broken_and_foreign_lines(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"event": "loss", "step": 1, "loss": 2.0, "note": "text"}\n[1]\nnot json\n'
        '{"event": "loss", "step": 2, "loss": NaN}\n{"event": "speed", "step": 2, "loss": 9}\n'
        '{"event": "loss", "step": 3, "loss": 1.5}\n'
    )
    curves = read_curves(path, "loss")
    assert list(curves) == ["loss"]
    assert curves["loss"][0].tolist() == [1, 3]
    assert curves["loss"][1].tolist() == [2.0, 1.5]


def test_a_figure_is_the_same_in_every_run():
    curve = {"loss": (np.arange(5.0), np.arange(5.0) ** 2)}
    first, again = (to_svg(curve_figure(curve, y_label="loss"), "loss") for _ in range(2))
    assert first == again


def test_trackers_are_shown_figures_of_the_page(tmp_path: Path) -> None:
    arrays = made_arrays(0)
    pictures = pictures_of_run(make_evaluation(tmp_path, [record()], arrays))
    assert list(pictures) == [
        "views", "nearest_neighbours/inv", "angle_errors/relative_rotation", "recall/classification", "singular_values",
    ]  # fmt: skip
    np.testing.assert_array_equal(pictures["views"].pixels, tile(arrays["view_sheet"]))
    page = write_evaluation_report([tmp_path], tmp_path / "report.html").read_text()
    for name, picture in pictures.items():
        assert picture.pixels.dtype == np.uint8 and picture.pixels.shape[2] == 3 and picture.pixels.std() > 5
        assert picture.caption in page or name.startswith("nearest_neighbours")


def test_shrinking_averages_blocks_and_tiling_keeps_pixels():
    images = np.zeros((2, 3, 200, 100, 3), dtype=np.uint8)
    images[1, 2, 0:3, 0:3] = 90
    small = shrink(images, max_side=67)
    assert small.shape == (2, 3, 66, 33, 3)
    assert small[1, 2, 0, 0].tolist() == [90, 90, 90]
    assert small[1, 2, 0, 1].tolist() == [0, 0, 0]
    sheet = tile(small, gap=2)
    assert sheet.shape == (2 * 68 - 2, 3 * 35 - 2, 3)
    np.testing.assert_array_equal(sheet[68:, 70:], small[1, 2])
    assert (sheet[66:68] == 128).all()
