"""The script for sequence models: stored views, augmented images and saccades, by models with random weights."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssl_equi import create_encoder
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, ProbeProtocol
from ssl_equi.evaluation.report.compared_runs import read_compared_runs
from ssl_equi.evaluation.report.sequences import print_summary, sequence_section, summary_tables
from ssl_equi.evaluation.results import ProbeRecord, read_records
from ssl_equi.export.encoder import EncoderCard
from ssl_equi.export.sequence_model import save_sequence_model
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.views.glimpses import SaccadeOptions, describe_saccades
from tests.evaluation.report_pages import make_older_run

SCRIPT = Path(__file__).parent.parent.parent / "evaluation" / "sequences.py"
RENDERED = {"source": "rendered", "actions": "rotation", "observed_views": 2}
AUGMENTED = {
    "source": "augmented", "actions": "augmentation", "observed_views": 2, "preset": "seq_jepa",
    "action_encoding": "standard", "action_transforms": ["crop", "blur"],
}  # fmt: skip
SACCADES = describe_saccades(SaccadeOptions(saliency="uniform", glimpse_size=16, inhibition_radius_px=4), 2)
QUICK = ProbeProtocol(
    name="quick", classification_epochs=1, rotation_epochs=1, rotation_hidden=(16,), rotation_pairs_per_object=4
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """evaluation/sequences.py with heads that train for one epoch, in 80 columns."""
    specification = importlib.util.spec_from_file_location("evaluation_sequences", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    monkeypatch.setitem(PROBE_PROTOCOLS, "embedded", lambda: QUICK)
    monkeypatch.setenv("COLUMNS", "80")
    return module


def save_run(folder: Path, sequences: dict[str, Any], **changes: Any) -> Path:
    torch.manual_seed(0)
    config = SeqJEPAConfig(
        action_width=16, layers=1, heads=2, feedforward_width=16, predictor_hidden_width=16, **changes
    )
    objective = SeqJEPA(create_encoder("strided_cnn_tiny", 32), config)
    card = EncoderCard(
        architecture="strided_cnn_tiny", image_size=32, mean_rgb=(0.5, 0.5, 0.5), std_rgb=(0.1, 0.1, 0.1),
        parts={"all": (0, 512)}, objective="seq_jepa", trained_on="test", license="apache-2.0", tag="test",
    )  # fmt: skip
    save_sequence_model(objective, folder / "sequence_model", card, sequences)
    return folder


def test_stored_views_are_asked_everything(
    script: ModuleType, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", RENDERED)
    script.main(script.Config(run=run, data_dir=tiny_data))
    records = read_records(run / "results.json")
    assert {record.task for record in records} == {
        "classification", "pair_rotation", "pair_hues", "leakage_rotation", "leakage_hues", "path_rotation",
    }  # fmt: skip
    assert {record.part for record in records if record.task == "classification"} >= {"all@1", "agg@1", "agg@4"}
    assert {(record.protocol, record.num_objects) for record in records} == {("ssl_equi_sequences_v1", 12)}
    oracle = [record.value for record in records if record.part == "oracle@3" and record.metric == "r2_uniform"]
    assert oracle == pytest.approx([1.0])
    printed = capsys.readouterr().out
    # Paths may be longer than a line.
    assert all(len(line) <= 80 for line in printed.splitlines() if str(tmp_path) not in line)
    assert "what is where, M = 1" in printed and "M = 5, 6, 7, 8 is left out" in printed.replace("\n  ", " ")


@pytest.mark.parametrize("kind", ["pose_base", "pose_object"])
def test_objects_that_move_are_asked_for_rigid_motions(
    script: ModuleType, tiny_moving_data: Path, tiny_data: Path, tmp_path: Path, kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = save_run(tmp_path / "run", RENDERED | {"actions": kind}, action_dim=7)
    sizes = {"lengths": (1, 3), "leakage_lengths": (1,), "sequences_per_object": 1}
    script.main(script.Config(run=run, dataset="3diebench-pt", data_dir=tiny_moving_data, **sizes))
    records = read_records(run / "results.json")
    translation = f"{kind.removeprefix('pose_')}_translation"
    assert {record.task for record in records} == {
        "classification", "pair_hues", "leakage_hues",
        *(f"{question}_{part}" for question in ("pair", "leakage", "path") for part in ("rotation", translation)),
    }  # fmt: skip
    oracle = [record.value for record in records if record.part == "oracle@3" and record.metric == "r2_uniform"]
    assert oracle == pytest.approx([1.0, 1.0])
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if str(tmp_path) not in line)
    with pytest.raises(UserError, match=f"told actions {kind} and these views have no latents for {kind}"):
        script.main(script.Config(run=run, data_dir=tiny_data, **sizes))


def test_the_page_stands_alone_and_shows_the_numbers(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", RENDERED)
    script.main(script.Config(run=run, data_dir=tiny_data, lengths=(1, 2), out=tmp_path / "elsewhere"))
    page = (tmp_path / "elsewhere" / "report.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page) and page.count("<script") == 1
    assert page.count("<svg") == 1 + 2 + 2  # class, two leakages, path by two metrics
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert ">trivial<" in page and "--series-1" in page
    records = read_records(tmp_path / "elsewhere" / "results.json")
    class_table = summary_tables(records)[0]
    assert class_table.columns == ("M=1", "M=2")
    assert class_table.rows[0][0] == "aggregate"
    for cell in class_table.rows[0][1:]:
        assert f">{cell}</td>" in page


def test_the_same_model_gives_the_same_numbers(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", RENDERED)
    config = script.Config(
        run=run, data_dir=tiny_data, questions=("classification",), lengths=(1, 2), sequences_per_object=1,
        split="val",
    )  # fmt: skip
    script.main(config)
    script.main(config)
    records = read_records(run / "results.json")
    half = len(records) // 2
    assert records[:half] == records[half:]
    assert {(record.protocol, record.split) for record in records} == {("ssl_equi_sequences_v1, 1 x 20 views", "val")}


def test_augmented_images_are_asked_for_each_augmentation(
    script: ModuleType, mixed_folder: Path, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", AUGMENTED, action_dim=5)
    config = script.Config(
        run=run, dataset="folder", data_dir=mixed_folder, split="val", lengths=(1, 2), leakage_lengths=(1,)
    )
    script.main(config)
    records = read_records(run / "results.json")
    assert {record.task for record in records} == {
        "classification", "pair_crop", "pair_jitter", "pair_blur", "leakage_crop", "leakage_jitter", "leakage_blur",
    }  # fmt: skip
    assert {(record.protocol, record.num_objects) for record in records} == {("ssl_equi_sequences_v1_augmented", 4)}


def test_saccades_are_asked_for_positions(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", SACCADES, action_dim=2)
    script.main(script.Config(run=run, data_dir=tiny_data, lengths=(1, 2), leakage_lengths=(1,)))
    records = read_records(run / "results.json")
    assert {record.task for record in records} == {
        "classification", "pair_position", "leakage_position", "path_position",
    }  # fmt: skip
    oracle = [record.value for record in records if record.part.startswith("oracle") and record.metric == "r2_uniform"]
    assert oracle == pytest.approx([1.0, 1.0])


def test_faults_are_named(script: ModuleType, tiny_data: Path, mixed_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sequence_model"):
        script.main(script.Config(run=tmp_path / "none", data_dir=tiny_data))
    run = save_run(tmp_path / "run", RENDERED)
    with pytest.raises(UserError, match="stored views of known latents, and folder has none"):
        script.main(script.Config(run=run, dataset="folder", data_dir=mixed_folder, split="val"))
    with pytest.raises(UserError, match="saliency-file"):
        file = replace(SaccadeOptions(saliency="file"), saliency_file=tmp_path / "maps.npy")
        gaze = save_run(tmp_path / "gaze", describe_saccades(file, 2), action_dim=2)
        script.main(script.Config(run=gaze, data_dir=tiny_data))


def test_a_section_shows_what_each_run_was_asked_last(tmp_path: Path) -> None:
    def asked(protocol: str, value: float, lengths: tuple[int, ...]) -> list[ProbeRecord]:
        return [
            ProbeRecord("classification", f"agg@{length}", "top1", value, 0.1, "majority class", None, 9, 9, "test",
                        protocol, 0) for length in lengths
        ]  # fmt: skip

    quick, full = asked("ssl_equi_sequences_quick", 0.25, (1, 8)), asked("ssl_equi_sequences_v1", 0.75, (1, 2))
    for name, records in (("both", quick + full), ("quick", quick), ("none", asked("ssl_equi_v1", 0.5, (1,)))):
        make_older_run(tmp_path / name, records)
    runs = read_compared_runs([tmp_path / name for name in ("both", "quick", "none")])
    section = sequence_section(runs)
    assert section.count("<svg") == 2 and "none" not in re.findall(r"<h3>(\w+):", section)
    first, second = section.split("<h3>")[1:]
    assert "M=2" in first and "0.750" in first and "M=8" not in first and "0.250" not in first
    assert "M=8" in second and "0.250" in second
    assert sequence_section(runs[2:]) == ""


def test_long_curves_are_tabled_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        ProbeRecord(task, f"agg@{length}", metric, value, 0.1, baseline_name, None, 9, 9, "test", "p", 0)
        for length in range(1, 13)
        for task, metric, value, baseline_name in (
            ("classification", "top1", 0.5, "majority class"),
            ("path_position", "r2_uniform", -123.4567, "constant"),
        )
    ]
    tables = summary_tables(records)
    assert [len(table.columns) for table in tables] == [8, 4, 8, 4]
    assert tables[2].rows[0] == ("images and actions", *["-123"] * 8)
    print_summary(records)
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80
    assert tables[1].rows == (
        ("aggregate", *["0.500"] * 4), ("encoder, one view", *["-"] * 4), ("majority class", *["0.100"] * 4),
    )  # fmt: skip
