"""What an evaluation leaves behind comes back, and nothing else is taken for it."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_equi.errors import UserError
from ssl_equi.evaluation.results import ProbeRecord, append_records, read_evaluation, write_evaluation

RECORD = ProbeRecord("knn", "all", "top1", 0.5, 0.25, "majority class", None, 40, 10, "test", "quick", 0, 0.125)
ARRAYS = {"per_class_recall/knn/all": np.array([0.5, np.nan]), "map_features/all": np.arange(6, dtype=np.float32)}


def test_everything_comes_back_and_a_second_evaluation_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    write_evaluation(folder, [RECORD], ["light, part all: no latents"], {"encoder": "timm:x"}, ARRAYS)
    found = read_evaluation(folder)
    assert found.records == [RECORD] and found.notes == ["light, part all: no latents"]
    assert found.run["encoder"] == "timm:x"
    assert found.arrays.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[key], array)
    write_evaluation(folder, [RECORD, RECORD], [], {}, {})
    again = read_evaluation(folder)
    assert len(again.records) == 2 and again.notes == [] and again.arrays == {}


def test_arrays_of_another_evaluation_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "one", [RECORD], [], {}, ARRAYS)
    write_evaluation(tmp_path / "two", [RECORD], [], {}, {})
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
    append_records(tmp_path / "results.json", [RECORD])
    with pytest.raises(UserError, match="of a run, which an evaluation would replace: give another --out"):
        write_evaluation(tmp_path, [RECORD], [], {}, {})


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="array 'a' holds objects: give numbers or text"):
        write_evaluation(tmp_path / "x", [RECORD], [], {}, {"a": np.array([None])})
    assert not (tmp_path / "x").exists()


def test_records_of_earlier_versions_have_no_error_over_objects(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [RECORD], [], {}, {})
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    for name in ("object_standard_error", "interval_low", "interval_high"):
        del content["records"][0][name]
    path.write_text(json.dumps(content))
    record = read_evaluation(tmp_path).records[0]
    assert (record.object_standard_error, record.interval_low, record.interval_high) == (None, None, None)
