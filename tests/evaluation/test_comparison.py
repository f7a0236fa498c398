"""Which numbers may be ranked, row by row; means and standard errors by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from ssl_equi.errors import UserError
from ssl_equi.evaluation.report.compared_runs import read_compared_runs
from ssl_equi.evaluation.report.comparison import Row, compare_runs
from ssl_equi.evaluation.report.write import write_evaluation_report
from ssl_equi.evaluation.results import ProbeRecord
from tests.evaluation.report_pages import make_evaluation, make_older_run, read_page, record

ANGLE = {"task": "relative_rotation", "metric": "angle_deg_median", "part": "equi"}


def only_row(folder: Path, first: list[ProbeRecord], second: list[ProbeRecord], **of_second: object) -> Row:
    texts = [make_evaluation(folder / "a", first), make_evaluation(folder / "b", second, **of_second)]
    (row,) = compare_runs(read_compared_runs(texts))
    return row


@pytest.mark.parametrize(
    ("changes", "best", "reason"),
    [
        ({}, 1, ""),
        ({"split": "val"}, None, "not ranked: split is test (a) and val (b)"),
        ({"protocol": "sie_eval_mode"}, None, "not ranked: protocol is ssl_equi_v1 (a) and sie_eval_mode (b)"),
        ({"n": 50}, None, "not ranked: n is 100 (a) and 50 (b)"),
        ({"num_objects": 10}, None, "not ranked: the number of objects is 20 (a) and 10 (b)"),
        ({"baseline": 0.3, "seed": 7}, 1, ""),
    ],
)
def test_numbers_are_ranked_only_if_they_can_be_compared(tmp_path, changes, best, reason):
    row = only_row(tmp_path, [record(value=0.6)], [record(value=0.7, **changes)])
    assert (row.best, row.why_not_ranked) == (best, reason)


@pytest.mark.parametrize(
    ("question", "values", "randoms", "best", "near"),
    [
        ({"metric": "top1"}, (0.6, 0.7), (0.65, 0.65), 1, set()),
        ({"metric": "top1"}, (0.6, 0.7), (0.65, 0.75), None, set()),
        ({"metric": "top1"}, (0.7, 0.7), (0.65, 0.75), 0, set()),
        ({"metric": "top1"}, (0.7, 0.7), (0.65, None), 0, {1}),
        (ANGLE, (50.0, 60.0), (55.0, 55.0), 0, set()),
        (ANGLE, (50.0, 60.0), (45.0, 70.0), None, set()),
    ],
)
def test_what_is_no_better_than_the_random_encoder_has_no_star(tmp_path, question, values, randoms, best, near):
    cells = [
        [record(**question, value=value, random_encoder=random, baseline=0.1 if value < 1 else 100.0)]
        for value, random in zip(values, randoms, strict=True)
    ]
    row = only_row(tmp_path, *cells)
    assert (row.best, set(row.near)) == (best, near)
    assert (best is None) == ("is no better than its random encoder" in row.why_not_ranked)


def test_other_data_and_unknown_data_are_not_ranked(tmp_path):
    row = only_row(tmp_path / "other", [record()], [record()], evaluation_fingerprint="b52fa4e75a894df5")
    assert row.why_not_ranked == "not ranked: the data's fingerprint is ba5a282b (a) and b52fa4e7 (b)"
    row = only_row(tmp_path / "unknown", [record()], [record()], evaluation_fingerprint=None)
    assert (row.best, row.why_not_ranked) == (None, "not ranked: b does not say which data")


def test_a_fingerprint_is_of_the_split_that_the_run_was_evaluated_on(tmp_path):
    folders = []
    for name in ("a", "b"):
        folder = make_older_run(tmp_path / name, [record(), record(split="ood_rotation")])
        (folder / "config.json").write_text('{"evaluation_split": "test"}')
        folders.append(folder)
    on_test, out_of_range = compare_runs(read_compared_runs(folders))
    assert on_test.setting == ("ssl_equi_v1", "test")
    assert on_test.why_not_ranked == ""
    assert out_of_range.why_not_ranked == "not ranked: a and b do not say which data"


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ({"metric": "top1"}, 1),
        ({"task": "relative_rotation", "metric": "angle_deg_median", "part": "equi"}, 0),
        ({"task": "retrieval", "metric": "retrieval_error", "part": "all"}, 0),
        ({"task": "relative_rotation", "metric": "r2_uniform", "part": "inv"}, None),
        ({"task": "relative_azimuth", "metric": "distance_mean", "part": "all"}, 0),
        ({"task": "relative_azimuth", "metric": "angle_deg_median", "part": "inv"}, None),
        ({"task": "classification", "metric": "top1", "part": "equi"}, None),
        ({"task": "leakage_rotation", "metric": "r2_uniform", "part": "agg@3"}, None),
        ({"task": "collapse", "metric": "rankme", "part": "all"}, None),
        ({"metric": "top1", "baseline": 0.4}, None),
    ],
)
def test_the_best_follows_the_metric_and_the_part(tmp_path, question, best):
    row = only_row(tmp_path, [record(value=0.2, **question)], [record(value=0.4, **question)])
    assert row.best == best
    assert (best is None) == bool(row.why_not_ranked)


def test_seeds_give_a_mean_and_its_standard_error(tmp_path):
    values = (0.50, 0.60, 0.58)
    row = only_row(tmp_path, [record(value=value, seed=seed) for seed, value in enumerate(values)], [record(value=0.9)])
    cell = row.cells[0]
    mean = sum(values) / 3
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert cell.mean == pytest.approx(mean)
    assert cell.standard_error == pytest.approx(spread / math.sqrt(3))
    assert cell.over == "3 seeds"
    assert (row.cells[1].standard_error, row.cells[1].over) == (None, "")


def test_training_runs_count_once_each_however_many_seeds_their_heads_have(tmp_path):
    first = make_evaluation(tmp_path / "r0", [record(value=0.4, seed=0), record(value=0.6, seed=1)])
    second = make_evaluation(tmp_path / "r1", [record(value=0.7)])
    runs = read_compared_runs([f"sie={first},{second}"])
    (row,) = compare_runs(runs)
    assert row.cells[0].mean == pytest.approx(0.6)
    assert row.cells[0].standard_error == pytest.approx(0.1)
    assert (row.cells[0].over, runs[0].name) == ("2 runs", "sie")


def test_a_lead_within_two_standard_errors_is_shown_as_such(tmp_path):
    near = only_row(
        tmp_path / "near", [record(value=0.80, object_standard_error=0.02)],
        [record(value=0.75, object_standard_error=0.02)],
    )  # fmt: skip
    assert (near.best, near.near, near.cells[0].over) == (0, {1}, "objects")  # 0.05 <= 2 * 0.0283
    far = only_row(
        tmp_path / "far", [record(value=0.80, object_standard_error=0.02)],
        [record(value=0.74, object_standard_error=0.02)],
    )  # fmt: skip
    assert (far.best, far.near) == (0, frozenset())
    equal = only_row(tmp_path / "equal", [record(value=0.8)], [record(value=0.8)])
    assert (equal.best, equal.near) == (0, {1})


SCORES = "object_scores.top1/classification/inv"
HARDNESS = np.linspace(0.3, 0.9, 20)


def folders_of(folder: Path, key: str, arrays: list[np.ndarray], records: list[ProbeRecord]) -> list[Path]:
    return [
        make_evaluation(folder / name, [each], {key: array})
        for name, each, array in zip("abc", records, arrays, strict=False)
    ]


def compared(scores: list[np.ndarray], folder: Path, **changes: object) -> Row:
    """Runs whose objects have these scores, and standard errors over objects."""
    records = [
        record(value=float(each.mean()), object_standard_error=float(each.std() / np.sqrt(20)), **changes)
        for each in scores
    ]
    (row,) = compare_runs(read_compared_runs(folders_of(folder, SCORES, scores, records)))
    return row


def test_a_lead_on_the_same_objects_is_judged_by_its_own_interval(tmp_path):
    wave = 0.02 * np.cos(np.arange(20))
    sure = compared([HARDNESS, HARDNESS - 0.03 + wave], tmp_path / "sure")
    assert (sure.best, sure.near) == (0, frozenset())  # though 0.03 is below one of the two standard errors
    assert sure.differences[0] is None and sure.cells[0].standard_error > 0.03
    assert sure.differences[1].low < sure.differences[1].value < sure.differences[1].high < 0
    assert sure.differences[1].value == pytest.approx(sure.cells[1].mean - sure.cells[0].mean)
    chance = compared([HARDNESS, HARDNESS - 0.003 + wave, HARDNESS], tmp_path / "chance")
    assert (chance.best, chance.near) == (0, {1, 2})
    assert chance.differences[1].low < 0 < chance.differences[1].high
    assert (chance.differences[2].low, chance.differences[2].high) == (0, 0)


def test_of_errors_the_lower_one_leads(tmp_path):
    # 20 objects with three errors each; the second run's are one degree worse, all of them.
    errors = np.add.outer(np.linspace(20, 60, 20), np.array([-1.0, 0.0, 1.0])).astype(np.float32)
    records = [record(**ANGLE, value=value, baseline=90.0) for value in (40.0, 41.0)]
    key = "object_values.angle_deg_median/relative_rotation/equi"
    (row,) = compare_runs(read_compared_runs(folders_of(tmp_path, key, [errors, errors + 1], records)))
    assert (row.best, row.near) == (0, frozenset())
    assert row.differences[1].low == pytest.approx(1, abs=1e-4) == row.differences[1].high


@pytest.mark.parametrize(
    ("second", "changes"),
    [
        (HARDNESS[:-1], {}),  # fewer objects
        (np.append(HARDNESS[:-1], np.nan), {}),  # other ones
        (HARDNESS - 0.2, {}),  # arrays of another protocol or split than the record's
        (HARDNESS, {"evaluation_fingerprint": "b52fa4e75a894df5"}),
        (HARDNESS.astype(str), {}),
    ],
)
def test_other_objects_are_not_paired(tmp_path, second, changes):
    texts = [
        make_evaluation(tmp_path / "a", [record(value=0.6)], {SCORES: HARDNESS}),
        make_evaluation(tmp_path / "b", [record(value=0.6)], {SCORES: second}, **changes),
    ]
    (row,) = compare_runs(read_compared_runs(texts))
    assert row.differences == (None, None)


def test_several_training_runs_are_compared_by_their_spread(tmp_path):
    texts = folders_of(tmp_path, SCORES, [HARDNESS] * 3, [record(value=0.6)] * 3)
    (row,) = compare_runs(read_compared_runs([f"two={texts[0]},{texts[1]}", f"one={texts[2]}"]))
    assert row.differences == (None, None) and row.near == {1}


def test_the_page_shows_differences_from_the_best(tmp_path):
    scores = [HARDNESS, HARDNESS - 0.03]
    records = [record(value=float(each.mean())) for each in scores]
    page = write_evaluation_report(folders_of(tmp_path, SCORES, scores, records), tmp_path / "r.html").read_text()
    text = read_page(page).text
    assert "Δ -0.030 [-0.030, -0.030]" in text and text.count("Δ -") == 1
    assert "its 95 % interval over objects that are resampled for both runs" in text


def test_the_newest_record_of_a_seed_counts(tmp_path):
    row = only_row(tmp_path, [record(value=0.1), record(value=0.5)], [record(value=0.4)])
    assert (row.cells[0].mean, row.best) == (0.5, 0)


def test_a_question_that_one_run_answers_alone_is_neither_ranked_nor_excused(tmp_path):
    texts = [make_evaluation(tmp_path / "a", [record()]), make_evaluation(tmp_path / "b", [record(part="all")])]
    rows = compare_runs(read_compared_runs(texts))
    assert [(row.part, row.best, row.why_not_ranked) for row in rows] == [("all", None, ""), ("inv", None, "")]
    assert [cell is None for cell in rows[0].cells] == [True, False]


def test_columns_are_named_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    for name in ("sie/evaluation", "byol/evaluation"):
        make_evaluation(tmp_path / name, [record()])
    runs = read_compared_runs([tmp_path / "sie" / "evaluation", tmp_path / "byol" / "evaluation"])
    assert [run.name for run in runs] == ["sie/evaluation", "byol/evaluation"]
    with pytest.raises(UserError, match="two columns are named 'x'"):
        read_compared_runs([f"x={tmp_path / 'sie' / 'evaluation'}", f"x={tmp_path / 'byol' / 'evaluation'}"])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "results.json").unlink(), "there is no results file"),
        (lambda folder: (folder / "results.json").write_text("{"), r"results\.json is not valid JSON .*: move it away"),
        (lambda folder: (folder / "results.json").write_text("[" * 100_000), r"results\.json is nested over"),
        (
            lambda folder: (folder / "arrays.npz").write_bytes(b"PK\3\4"),
            r"arrays\.npz is no readable .*: evaluate again",
        ),
        (lambda folder: (folder / "config.json").write_text("[1]"), "holds a JSON array, not an object: restore it"),
        (lambda folder: (folder / "versions.json").write_text("{"), r"versions\.json is not valid JSON"),
    ],
)
def test_damaged_folders_are_named(tmp_path, break_it, message):
    folder = make_evaluation(tmp_path / "run", [record()])
    break_it(folder)
    with pytest.raises(UserError, match=message):
        read_compared_runs([folder])


def test_nothing_to_compare_is_an_error():
    with pytest.raises(UserError, match="no folder was given"):
        read_compared_runs([])
    with pytest.raises(UserError, match="'sie=,' names no folder"):
        read_compared_runs(["sie=,"])


def test_evaluations_are_named_after_their_encoders_and_know_the_run_around_them(tmp_path):
    folders = [
        make_evaluation(tmp_path / run / "evaluation" / "suite-test", [record(split="ood")], encoder="x", name=run)
        for run in ("sie", "byol")
    ]
    (tmp_path / "sie" / "config.json").write_text('{"evaluation_split": "test", "lr": 1}')
    (tmp_path / "sie" / "metrics.jsonl").write_text("")
    runs = read_compared_runs(folders)
    assert [run.name for run in runs] == ["sie", "byol"]
    assert runs[0].folders[0].config["lr"] == 1
    assert runs[0].folders[0].metrics_path == tmp_path / "sie" / "metrics.jsonl"
    assert compare_runs(runs)[0].why_not_ranked == ""
