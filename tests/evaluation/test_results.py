"""What an evaluation leaves behind comes back, however it is written, and nothing else is taken for it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssl_equi.errors import UserError
from ssl_equi.evaluation.results import (
    ProbeRecord,
    append_records,
    read_evaluation,
    read_records,
    read_results,
    write_evaluation,
    write_records,
)
from tests.fakes import RECORD


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


# ---------------------------------------------------------------- an evaluation's folder

KNN = ProbeRecord("knn", "all", "top1", 0.5, 0.25, "majority class", None, 40, 10, "test", "quick", 0, 0.125)
ARRAYS = {"per_class_recall/knn/all": np.array([0.5, np.nan]), "map_features/all": np.arange(6, dtype=np.float32)}


def test_everything_comes_back_and_a_second_evaluation_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    write_evaluation(folder, [KNN], ["light, part all: no latents"], {"encoder": "timm:x"}, ARRAYS)
    found = read_evaluation(folder)
    assert found.records == [KNN] and found.notes == ["light, part all: no latents"]
    assert found.run["encoder"] == "timm:x"
    assert found.arrays.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[key], array)
    write_evaluation(folder, [KNN, KNN], [], {}, {})
    again = read_evaluation(folder)
    assert len(again.records) == 2 and again.notes == [] and again.arrays == {}


def test_arrays_of_another_evaluation_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "one", [KNN], [], {}, ARRAYS)
    write_evaluation(tmp_path / "two", [KNN], [], {}, {})
    arrays = tmp_path / "one" / "arrays.npz"
    content = arrays.read_bytes()
    arrays.write_bytes((tmp_path / "two" / "arrays.npz").read_bytes())
    with pytest.raises(UserError, match=r"arrays\.npz is not of the same evaluation"):
        read_evaluation(tmp_path / "one")
    arrays.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"arrays\.npz is no readable \.npz file"):
        read_evaluation(tmp_path / "one")
    arrays.unlink()
    with pytest.raises(UserError, match=r"arrays\.npz is missing: evaluate again"):
        read_evaluation(tmp_path / "one")


def test_a_runs_results_are_not_replaced(tmp_path: Path) -> None:
    append_records(tmp_path / "results.json", [KNN])
    with pytest.raises(UserError, match="of a run, which an evaluation would replace: give another --out"):
        write_evaluation(tmp_path, [KNN], [], {}, {})


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="array 'a' holds objects"):
        write_evaluation(tmp_path, [KNN], [], {}, {"a": np.array([None])})
    assert not (tmp_path / "arrays.npz").exists()


def test_records_of_earlier_versions_have_no_error_over_objects(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [KNN], [], {}, {})
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    for name in ("object_standard_error", "interval_low", "interval_high"):
        del content["records"][0][name]
    path.write_text(json.dumps(content))
    record = read_evaluation(tmp_path).records[0]
    assert (record.object_standard_error, record.interval_low, record.interval_high) == (None, None, None)
