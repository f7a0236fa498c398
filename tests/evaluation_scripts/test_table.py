"""evaluation/table.py: means and standard deviations over seeds, as Markdown, LaTeX and CSV."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from evaluation import table
from ssl_equi.errors import UserError
from ssl_equi.evaluation.results import ProbeRecord, append_records


def record(value: float, part: str, random_encoder: float, split: str = "test") -> ProbeRecord:
    return ProbeRecord(
        task="relative_rotation", part=part, metric="r2_uniform", value=value, baseline=0.0, baseline_name="constant",
        random_encoder=random_encoder, n=100, num_objects=10, split=split, protocol="ssl_equi_v1", seed=0,
    )  # fmt: skip


def test_runs_are_summarised_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, value in enumerate([0.4, 0.5, 0.6]):
        append_records(
            tmp_path / f"sie-seed{seed}" / "results.json",
            [record(value, "equi", 0.1)],
            {"name": "sie", "command": f"sie.py --seed {seed}"},
        )
        append_records(
            tmp_path / f"vicreg-seed{seed}" / "results.json",
            [record(0.3, "all", 0.1)],
            {"name": "vicreg", "command": "vicreg.py"},
        )
    runs = tuple(tmp_path / f"{name}-seed{seed}" for name in ("sie", "vicreg") for seed in range(3))
    table.main(table.Config(runs=runs))
    printed = capsys.readouterr().out
    assert "sie: 3 seeds, vicreg: 3 seeds" in printed
    assert "| relative_rotation | `r2_uniform` | `equi` | 0.000 | 0.100 ± 0.000 | 0.500 ± 0.100 | - |" in printed
    assert "| relative_rotation | `r2_uniform` | `all` | 0.000 | 0.100 ± 0.000 | - | 0.300 ± 0.000 |" in printed
    table.main(table.Config(runs=runs, layout="methods"))
    printed = capsys.readouterr().out
    assert "| random encoder | `all` | - | 0.100 ± 0.000 | - | - | - |" in printed
    assert "| sie | `equi` | - | 0.500 ± 0.100 | - | - | - |" in printed
    assert "| vicreg | `all` | - | 0.300 ± 0.000 | - | - | - |" in printed
    assert "- sie: `sie.py --seed 0`\n- vicreg: `vicreg.py`" in printed


def test_tables_for_papers_in_latex_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, value in enumerate([0.4, 0.5, 0.6]):
        file = tmp_path / f"sie_pooled-seed{seed}" / "results.json"
        append_records(file, [record(value, "equi", 0.1)], {"command": "sie.py --seed 0"})
    runs = tuple(tmp_path / f"sie_pooled-seed{seed}" for seed in range(3))
    columns = ("relative_rotation:r2_uniform",)
    table.main(table.Config(runs=runs, layout="methods", columns=columns, format="latex"))
    lines = capsys.readouterr().out.splitlines()
    assert r"\begin{tabular}{lll}" in lines and lines[-3:-1] == [r"\end{tabular}", "%"]
    assert r"method & part & relative\_rotation \texttt{r2\_uniform} \\" in lines
    assert r"sie\_pooled & \texttt{equi} & 0.500 $\pm$ 0.100 \\" in lines
    assert all(line.startswith("%") for line in lines if "Protocol" in line or "sie.py" in line)
    table.main(table.Config(runs=runs, layout="methods", columns=columns, format="csv"))
    printed = capsys.readouterr()
    rows = list(csv.reader(printed.out.splitlines()))
    assert rows[0] == ["method", "part", "relative_rotation r2_uniform"] and rows[-1][2] == "0.500 ± 0.100"
    assert "mean ± standard deviation" in printed.err, "what must be known of it is no part of the table"


def test_runs_that_differ_in_more_than_their_seed_are_no_method(tmp_path: Path) -> None:
    for seed, encoder in enumerate(["resnet18", "vit_tiny"]):
        folder = tmp_path / f"sie-seed{seed}"
        append_records(folder / "results.json", [record(0.5, "all", 0.1)], {})
        config = {"encoder": encoder, "seed": seed, "threads": 1 + seed, "objective": {"equi_weight": 4.5}}
        (folder / "config.json").write_text(json.dumps(config))
    runs = (tmp_path / "sie-seed0", tmp_path / "sie-seed1")
    with pytest.raises(
        UserError, match=r"sie-seed0 has encoder 'resnet18' and .*sie-seed1 'vit_tiny', which are no seeds"
    ):
        table.main(table.Config(runs=runs))


def test_random_encoders_of_other_architectures_stand_apart_and_probe_seeds_are_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, encoder, random in (("sie", "resnet18", 0.1), ("wide", "resnet18", 0.1), ("vit", "vit_tiny", 0.3)):
        folder = tmp_path / name
        first = record(0.2, "all", random)
        append_records(
            folder / "results.json", [first, dataclasses.replace(first, seed=1, value=0.6, random_encoder=random + 0.1)]
        )
        arguments = {"width": 2} if name == "wide" else {}
        (folder / "config.json").write_text(json.dumps({"encoder": encoder, "encoder_arguments": arguments}))
    append_records(  # what an evaluation leaves, of the architecture of the first; nothing but rounding of 0
        tmp_path / "evaluated" / "results.json", [record(-1e-9, "all", 0.35)],
        {"architecture": json.dumps(["resnet18", {}])},
    )  # fmt: skip
    runs = tuple(tmp_path / name for name in ("sie", "wide", "vit", "evaluated"))
    table.main(table.Config(runs=runs, layout="poses"))
    printed = capsys.readouterr().out
    assert "| random resnet18 | `all` | 0.250 ± 0.141 |" in printed
    assert "| random resnet18 width=2 | `all` | 0.150 |" in printed
    assert "| random vit_tiny | `all` | 0.350 |" in printed
    assert "| sie | `all` | 0.400 |" in printed and "| evaluated | `all` | 0.000 |" in printed
    table.main(table.Config(runs=runs))
    printed = capsys.readouterr().out
    heads = "| random resnet18 | random resnet18 width=2 | random vit_tiny | sie | wide | vit | evaluated |"
    assert heads in printed
    assert "| 0.000 | 0.250 ± 0.141 | 0.150 | 0.350 | 0.400 | 0.400 | 0.400 | 0.000 |" in printed


def test_intervals_are_averaged_over_runs_and_left_out_where_one_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        measured = record(0.5, "equi", 0.1)
        with_interval = dataclasses.replace(measured, interval_low=0.1 + 0.2 * seed, interval_high=0.6 + 0.2 * seed)
        without = dataclasses.replace(with_interval if seed else measured, part="all")
        append_records(tmp_path / f"sie-seed{seed}" / "results.json", [with_interval, without])
    table.main(table.Config(runs=(tmp_path / "sie-seed0", tmp_path / "sie-seed1"), intervals=True))
    printed = capsys.readouterr().out
    assert "| `equi` | 0.000 | 0.100 ± 0.000 | 0.500 ± 0.000 [0.200, 0.700] |" in printed
    assert "| `all` | 0.000 | 0.100 ± 0.000 | 0.500 ± 0.000 |" in printed


def test_runs_on_moving_objects_are_summarised_in_both_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tuple(tmp_path / f"equicaps-seed{seed}" for seed in range(2))
    for folder, value in zip(runs, (0.5, 0.7), strict=True):
        rotation = record(0.25, "all", 0.1)
        records = [
            rotation,
            dataclasses.replace(rotation, metric="angle_deg_median", value=60.0, baseline=110.0, random_encoder=100.0),
            dataclasses.replace(rotation, task="translation_base", value=value),
            dataclasses.replace(rotation, task="translation_object", value=value / 2),
        ]
        append_records(folder / "results.json", records, {"command": "equicaps.py"})
    table.main(table.Config(runs=runs, layout="poses"))
    lines = capsys.readouterr().out.splitlines()
    assert (
        "| method | part | relative_rotation `r2_uniform` | relative_rotation `angle_deg_median` "
        "| translation_object `r2_uniform` | translation_base `r2_uniform` |"
    ) in lines
    assert "| without an image | - | 0.000 | 110.0 | 0.000 | 0.000 |" in lines
    assert "| equicaps | `all` | 0.250 ± 0.000 | 60.0 ± 0.0 | 0.300 ± 0.071 | 0.600 ± 0.141 |" in lines
    table.main(table.Config(runs=runs, layout="methods", columns=("translation_base:r2_uniform",)))
    lines = capsys.readouterr().out.splitlines()
    assert (
        "| method | part | translation_base `r2_uniform` |" in lines and "| equicaps | `all` | 0.600 ± 0.141 |" in lines
    )
    for columns, message in (
        (("translation",), "give TASK:METRIC"),
        (("knn:top1",), "no run has a record of .* knn:top1"),
    ):
        with pytest.raises(UserError, match=message):
            table.main(table.Config(runs=runs, layout="methods", columns=columns))


def test_the_layout_of_poses_leaves_out_what_no_run_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_records(tmp_path / "sie" / "results.json", [record(0.4, "equi", 0.1)], {"command": "sie.py"})
    append_records(tmp_path / "only-probed" / "results.json", [record(0.2, "all", 0.1)])
    table.main(table.Config(runs=(tmp_path / "sie", tmp_path / "only-probed"), layout="poses"))
    printed = capsys.readouterr().out
    assert printed.endswith("| only-probed | `all` | 0.200 |\n\n- sie: `sie.py`\n")
    assert "| method | part | relative_rotation `r2_uniform` |\n" in printed
    assert "translation" not in printed


def test_runs_judged_on_different_splits_are_not_averaged(tmp_path: Path) -> None:
    append_records(tmp_path / "a" / "results.json", [record(0.4, "equi", 0.1)], {"name": "sie"})
    append_records(tmp_path / "b" / "results.json", [record(0.4, "equi", 0.1, split="val")], {"name": "sie"})
    with pytest.raises(UserError, match=r"on test \(10 objects\) and by ssl_equi_v1 on val"):
        table.main(table.Config(runs=(tmp_path / "a", tmp_path / "b")))
    with pytest.raises(UserError, match=r"c has no results\.json"):
        table.main(table.Config(runs=(tmp_path / "c",)))
