import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ssl_equi.errors import UserError
from ssl_equi.evaluation.metrics import format_value
from ssl_equi.evaluation.results import ProbeRecord, append_records, read_records, read_results, write_records
from ssl_equi.evaluation.tables import print_records

RECORD = ProbeRecord(
    task="relative_rotation",
    part="equi",
    metric="angle_deg_median",
    value=23.456,
    baseline=110.2,
    baseline_name="constant",
    random_encoder=98.7,
    n=1920,
    num_objects=192,
    split="test",
    protocol="ssl_equi_v1",
    seed=0,
)


def test_records_are_appended_and_come_back(tmp_path):
    path = tmp_path / "run" / "results.json"
    append_records(path, [RECORD], {"recipe": "sie", "steps": 10})
    append_records(path, [replace(RECORD, part="inv", random_encoder=None)], {"steps": 20})
    assert read_records(path) == [RECORD, replace(RECORD, part="inv", random_encoder=None)]
    content = json.loads(path.read_text())
    assert content["run"] == {"recipe": "sie", "steps": 20}
    assert {"task", "part", "metric", "value", "baseline", "n", "split", "protocol", "seed"} <= set(
        content["records"][0]
    )


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    append_records(path, [RECORD])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        append_records(path, [RECORD])
    assert read_records(path) == [RECORD]


def test_appending_at_the_same_time_loses_nothing(tmp_path):
    path = tmp_path / "results.json"
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda seed: append_records(path, [replace(RECORD, seed=seed)]), range(16)))
    assert sorted(record.seed for record in read_records(path)) == list(range(16))


@pytest.mark.parametrize("text", ["", '{"records": [', "[]", '{"records": {}, "run": {}}', '{"records": []}'])
def test_a_corrupt_file_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"results\.json .*: move it away") as error:
        append_records(path, [RECORD])
    assert "\n" not in str(error.value)
    assert path.read_text() == text


def test_a_record_without_a_field_is_named(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"records": [{"task": "colour"}], "run": {}}')
    with pytest.raises(UserError, match="lacks 'part'"):
        read_records(path)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run an evaluation"):
        read_records(tmp_path / "results.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("write", [append_records, write_records])
def test_an_undefined_number_costs_no_other(tmp_path, write, value):
    path = tmp_path / "results.json"
    write(path, [replace(RECORD, value=value), RECORD, replace(RECORD, seed=1, random_encoder=value)], {})
    assert read_records(path) == [RECORD, replace(RECORD, seed=1, random_encoder=None)]
    content = read_results(path)
    notes = content["run"].get("notes", []) + content.get("notes", [])
    assert notes == [
        f"relative_rotation, part equi: angle_deg_median is {value} and its baseline {RECORD.baseline}, "
        "so it is left out",
        f"relative_rotation, part equi: angle_deg_median of the random encoder is {value}, so it is left out",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("value", "high"), ("value", None), ("n", 2.5), ("task", 3), ("random_encoder", []), ("seed", True)],
)
def test_a_record_with_a_field_of_another_type_is_named(tmp_path, field, value):
    path = tmp_path / "results.json"
    append_records(path, [RECORD])
    content = json.loads(path.read_text())
    content["records"][0][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"'{field}' of a record is"):
        read_records(path)


def test_text_that_cannot_be_encoded_is_escaped(tmp_path):
    path = tmp_path / "results.json"
    append_records(path, [RECORD], {"data": "caf\udce9"}, ["class \x00"])
    assert read_results(path)["run"] == {"data": r"caf\xe9", "notes": [r"class \x00"]}


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


def test_the_table_is_not_cut_in_a_narrow_log(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_records([RECORD])
    assert any("angle_deg_median" in line and "1920" in line for line in capsys.readouterr().out.splitlines())


def test_values_are_shown_by_their_unit():
    assert format_value("angle_deg_mean", 12.34) == "12.3°"
    assert format_value("top1", 0.5) == "0.500"
    assert format_value("top1", None) == "-"


def test_what_rounds_to_zero_has_no_sign():
    assert format_value("r2_uniform", -0.0004) == format_value("r2_uniform", -0.0) == "0.000"
    assert format_value("r2_uniform", -0.0006) == "-0.001"
    assert format_value("angle_deg_median", -0.01) == "0.0°"
