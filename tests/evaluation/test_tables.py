"""Tables of one seed and of several: their numbers, means and errors, their width, and their notes."""

import math
from dataclasses import replace

import pytest

from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.tables import headline, merged_notes, print_headline, print_records, print_seeds
from tests.fakes import RECORD


def record(value: float, seed: int, **changes: object) -> ProbeRecord:
    fields = {
        "task": "relative_rotation_matrix", "part": "all", "metric": "r2_pooled", "value": value, "baseline": 0.229,
        "baseline_name": "constant", "random_encoder": 0.25 + seed / 10, "n": 527600, "num_objects": 10552,
        "split": "val", "protocol": "sie_eval_mode", "seed": seed, "object_standard_error": None,
    }  # fmt: skip
    return ProbeRecord(**fields | changes)


def test_the_table_fits_80_columns_and_shows_every_number(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    top1 = replace(RECORD, task="classification", metric="balanced_top1", value=0.8125, baseline=1 / 24, n=123456)
    moved = replace(RECORD, task="translation_object", metric="distance_median", value=0.6401, baseline=0.66)
    longest = replace(RECORD, task="augmentation_equivariance", metric="composition_error", value=0.5)
    records = [replace(top1, baseline_name="1 / classes"), RECORD, moved, replace(longest, random_encoder=None)]
    print_records(records, ["why"])
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    for shown in ("classification", "equi", "angle_deg_median", "23.5°", "110.2°", "98.7°", "0.812", "0.042", "123456"):
        assert shown in text
    assert "ssl_equi_v1" in text and "why" in text and "0.640" in text and "0.640°" not in text
    assert "lower is better: angle_deg_median, distance_median, composition_error" in text
    assert "\x1b" not in text


def test_a_table_of_long_names_has_its_tasks_on_lines_of_their_own(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    task, metric = "corruption_relative_rotation", "angle_deg_median_mean_corruption"
    print_records([replace(RECORD, task=task, metric=metric), replace(RECORD, task=task, part="inv", metric=metric)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines.count(task) == 1
    assert ["equi", metric, "23.5°", "110.2°", "98.7°", "1920"] in [line.split() for line in lines]


def test_the_table_is_not_cut_in_a_narrow_log(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_records([RECORD])
    assert any("angle_deg_median" in line and "1920" in line for line in capsys.readouterr().out.splitlines())


def test_the_headline_has_class_change_and_error_in_four_lines(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [("classification", "top1"), ("classification", "balanced_top1"), ("relative_rotation", "r2_uniform")]
    asked += [("relative_rotation", "angle_deg_median"), ("absolute_rotation", "r2_uniform"), ("colour", "r2_uniform")]
    parts = ("all", "inv", "equi")
    records = [record(number, 0, task=task, metric=metric, part=part)
               for number, (task, metric) in enumerate(asked) for part in parts]  # fmt: skip
    shown = [(title, found.part, found.metric, found.value) for title, found in headline(records)]
    assert shown == [
        ("class", "all", "top1", 0), ("change of rotation", "equi", "r2_uniform", 2),
        ("error of rotation", "equi", "angle_deg_median", 3), ("change of colour", "equi", "r2_uniform", 5),
    ]  # fmt: skip
    print_headline(records)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and max(map(len, lines)) <= 80
    assert lines[0].split() == ["on", "10,552", "objects", "of", "val", "value", "random", "constant"]
    assert lines[3].startswith("error of rotation (angle_deg_median of equi)")
    assert lines[3].split()[-3:] == ["3.0°", "0.2°", "0.2°"]


def test_the_headline_follows_the_data() -> None:
    named = [("classification", "top1"), ("relative_azimuth", "r2_uniform"), ("relative_azimuth", "angle_deg_median"),
             ("relative_shape", "top1"), ("relative_polar", "r2_uniform")]  # fmt: skip
    titles = [title for title, _ in headline([record(1, 0, task=task, metric=metric) for task, metric in named])]
    assert titles == ["class", "change of azimuth", "error of azimuth", "change of shape"]
    photographs = [("classification", "top1"), ("augmentation_equivariance", "gamma_f")]
    titles = [title for title, _ in headline([record(1, 0, task=task, metric=metric) for task, metric in photographs])]
    assert titles == ["class", "equivariance error of augmentations"]
    print_headline([])


def test_what_must_be_known_of_any_number_stands_under_the_headline(capsys: pytest.CaptureFixture[str]) -> None:
    print_headline([record(1, 0, task="classification", metric="top1")], ["the heads were trained without 1 object"])
    assert capsys.readouterr().out.splitlines()[2:] == ["the heads were trained without 1 object"]
    print_headline([])
    assert capsys.readouterr().out == ""


def test_means_and_standard_errors_in_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    values = (0.5, 0.6, 0.9)
    records = []
    for seed, value in enumerate(values):
        records.append(record(value, seed))
        records.append(record(90 * value, seed, part="capsules", metric="angle_deg_median_floor_hue"))
        records.append(
            record(value / 2, seed, task="knn", metric="top1", object_standard_error=0.01, random_encoder=None)
        )
    print_seeds(records, ["a note " * 20], paper_metrics=("r2_pooled",))
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    error = math.sqrt(sum((value - 2 / 3) ** 2 for value in values) / 2 / 3)
    rows = [line.split() for line in printed.splitlines()]
    assert ["all", "r2_pooled*", "0.667", f"{error:.3f}", "-", "0.229", "0.350", "527600"] in rows
    assert ["all", "top1", "0.333", f"{error / 2:.3f}", "0.010", "0.229", "-", "527600"] in rows
    assert [
        "capsules",
        "angle_deg_median_floor_hue",
        "60.0°",
        f"{90 * error:.1f}°",
        "-",
        "0.2°",
        "0.4°",
        "527600",
    ] in rows
    assert "protocol sie_eval_mode, split val (10552 objects), mean of probe seeds 0, 1, 2" in printed
    assert "*: what the paper of this protocol reports" in printed


def test_one_seed_has_no_error_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    print_seeds([record(0.5, 0)])
    assert ["all", "r2_pooled", "0.500", "-", "-", "0.229", "0.250", "527600"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_notes_with_one_reason_share_a_line() -> None:
    notes = [
        "light, part all: the views have 0 latents", "light, part inv: the views have 0 latents",
        "colour, part all: the views have 0 latents", "part equi is constant: all are the same", "images: 3 of 4",
    ]  # fmt: skip
    assert merged_notes(notes) == [
        "light, colour (part all, inv): the views have 0 latents", "part equi is constant: all are the same",
        "images: 3 of 4",
    ]  # fmt: skip
