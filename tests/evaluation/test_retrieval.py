"""The retrieval script: a sequence model with random weights on the tiny set, and runs that have no gallery."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssl_equi import create_encoder
from ssl_equi.checkpoint import CheckpointError
from ssl_equi.errors import UserError
from ssl_equi.export import EncoderCard
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.probing.records import read_records
from ssl_equi.sequence_export import save_sequence_model

SCRIPT = Path(__file__).parent.parent.parent / "evaluation" / "retrieval.py"
RENDERED = {"source": "rendered", "actions": "rotation", "observed_views": 2}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("evaluation_retrieval", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
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


def test_every_context_is_tabled_beside_chance(
    script: ModuleType, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = save_run(tmp_path / "run", RENDERED)
    script.main(script.Config(run=run, data_dir=tiny_data))
    records = read_records(run / "results.json")
    by_name = {(record.part, record.metric): record for record in records}
    assert {part for part, _ in by_name} == {"pred@1", "pred@3"}
    assert by_name["pred@1", "mrr"].baseline == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert by_name["pred@1", "mrr"].n == 12 * 4 * 4
    assert by_name["pred@1", "mrr_without_source"].n == 12 * 4 * 3
    assert by_name["pred@3", "mrr"].n == 12 * 4
    assert by_name["pred@3", "mrr_without_source"].value == 1.0, "one view is left to ask for"
    assert 0.4 < by_name["pred@1", "retrieval_error"].baseline < 0.8
    assert all(record.num_objects == 12 and record.split == "test" for record in records)
    assert all("by the momentum encoder" in record.protocol for record in records)
    printed = capsys.readouterr().out
    for record in records:
        assert record.metric in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("added to")) <= 80


def test_without_a_momentum_target_the_gallery_is_the_encoders(
    script: ModuleType, tiny_data: Path, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", RENDERED | {"actions": "rotation_color"}, momentum_target=False, action_dim=6)
    config = script.Config(
        run=run, data_dir=tiny_data, contexts=(2,), contexts_per_object=1, split="val", whole_split=False, out=tmp_path
    )
    script.main(config)
    records = read_records(tmp_path / "results.json")
    assert {record.part for record in records} == {"pred@2"}
    assert {record.metric.removesuffix("_without_source") for record in records} == {"mrr", "hit_at_1", "hit_at_2"}
    assert {record.n for record in records} == {6 * 2}
    assert all(record.protocol.endswith("by the encoder") for record in records)
    assert not (run / "results.json").exists()


def test_views_of_objects_that_move_are_found_by_rigid_motions(
    script: ModuleType, tiny_moving_data: Path, tiny_data: Path, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", RENDERED | {"actions": "pose_object"}, action_dim=7)
    script.main(script.Config(run=run, dataset="3diebench-pt", data_dir=tiny_moving_data, contexts=(1, 2)))
    assert {record.part for record in read_records(run / "results.json")} == {"pred@1", "pred@2"}
    with pytest.raises(UserError, match=r"choose a set with translations \(--dataset 3diebench-pt or 3diebench-t\)"):
        script.main(script.Config(run=run, data_dir=tiny_data))


def test_only_rendered_views_have_a_gallery_of_known_poses(
    script: ModuleType, mixed_folder: Path, tmp_path: Path
) -> None:
    glimpses = save_run(tmp_path / "glimpses", {"source": "saccades", "observed_views": 4}, action_dim=2)
    with pytest.raises(UserError, match="source 'saccades': only rendered views have a gallery of known poses"):
        script.main(script.Config(run=glimpses))
    rendered = save_run(tmp_path / "rendered", RENDERED)
    with pytest.raises(UserError, match="--dataset is folder, whose views have no known poses"):
        script.main(script.Config(run=rendered, dataset="folder", data_dir=mixed_folder, split="val"))


def test_wrong_numbers_of_views_and_folders_are_named(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", RENDERED)
    with pytest.raises(UserError, match=r"--contexts is \(1, 4\) and the objects of 3diebench-p have 4 views"):
        script.main(script.Config(run=run, data_dir=tiny_data, contexts=(1, 4)))
    with pytest.raises(UserError, match="--contexts-per-object is 5: give a number from 1 to 4"):
        script.main(script.Config(run=run, data_dir=tiny_data, contexts_per_object=5))
    with pytest.raises(CheckpointError, match="sequence_model"):
        script.main(script.Config(run=tmp_path / "nowhere", data_dir=tiny_data))
    assert not (run / "results.json").exists()
