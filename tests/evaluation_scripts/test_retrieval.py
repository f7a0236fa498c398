"""The retrieval script: models and predictors with random weights on the tiny set, and runs that have no gallery."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssl_equi import create_encoder
from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.evaluation.results import read_records
from ssl_equi.export.encoder import EncoderCard, save_encoder
from ssl_equi.export.predictor import PredictorCard, save_predictor
from ssl_equi.export.sequence_model import save_sequence_model
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.equicaps import EquiCaps
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.objectives.sie import SIE, SIEConfig

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
    assert all("by the momentum encoder" in record.protocol for record in records if record.task == "retrieval")
    assert {record.part for record in records if record.task == "action_gain"} == {"pred@1", "pred@3"}
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
    metrics = {record.metric.removesuffix("_without_source") for record in records}
    assert metrics == {"mrr", "hit_at_1", "hit_at_2", "action_gain"}
    assert {record.n for record in records if record.task == "retrieval"} == {6 * 2}
    assert all(record.protocol.endswith("by the encoder") for record in records if record.task == "retrieval")
    assert not (run / "results.json").exists()


def test_views_of_objects_that_move_are_found_by_rigid_motions(
    script: ModuleType, tiny_moving_data: Path, tiny_data: Path, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", RENDERED | {"actions": "pose_object"}, action_dim=7)
    script.main(script.Config(run=run, dataset="3diebench-pt", data_dir=tiny_moving_data, contexts=(1, 2)))
    assert {record.part for record in read_records(run / "results.json")} == {"pred@1", "pred@2"}
    with pytest.raises(
        UserError, match="told actions pose_object and these views have no latents for pose_object: take data with"
    ):
        script.main(script.Config(run=run, data_dir=tiny_data))


def test_only_rendered_views_have_a_gallery_of_known_poses(
    script: ModuleType, mixed_folder: Path, tmp_path: Path
) -> None:
    glimpses = save_run(
        tmp_path / "glimpses", {"source": "saccades", "observed_views": 4, "glimpses": {}}, action_dim=2
    )
    with pytest.raises(UserError, match="source 'saccades': only rendered views have a gallery of known poses"):
        script.main(script.Config(run=glimpses))
    rendered = save_run(tmp_path / "rendered", RENDERED)
    with pytest.raises(UserError, match="--dataset is folder, whose views have no known poses"):
        script.main(script.Config(run=rendered, dataset="folder", data_dir=mixed_folder, split="val"))


def test_galleries_of_different_sizes_are_refused(script: ModuleType, uneven_data: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", RENDERED)
    with pytest.raises(UserError, match="objects have 3 to 6 views, and ranks among so many can't be averaged"):
        script.main(script.Config(run=run, dataset="3diebench", data_dir=uneven_data))


def test_wrong_numbers_of_views_and_folders_are_named(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", RENDERED)
    with pytest.raises(UserError, match="--contexts is 1, 4: give a number from 1 to 3"):
        script.main(script.Config(run=run, data_dir=tiny_data, contexts=(1, 4)))
    with pytest.raises(UserError, match="--contexts-per-object is 5: give a number from 1 to 4"):
        script.main(script.Config(run=run, data_dir=tiny_data, contexts_per_object=5))
    with pytest.raises(UserError, match="--sources belongs to predictors from one view"):
        script.main(script.Config(run=run, data_dir=tiny_data, sources=2))
    with pytest.raises(CheckpointError, match="nowhere/predictor holds no exported predictor"):
        script.main(script.Config(run=tmp_path / "nowhere", data_dir=tiny_data))
    assert not (run / "results.json").exists()


CARD = EncoderCard(
    architecture="strided_cnn_tiny", image_size=32, mean_rgb=(0.5, 0.5, 0.5), std_rgb=(0.1, 0.1, 0.1),
    parts={"all": (0, 512)}, objective="sie", trained_on="test", license="apache-2.0", tag="test",
)  # fmt: skip


def save_two_view_run(folder: Path, actions: str = "rotation", action_dim: int = 4) -> Path:
    torch.manual_seed(0)
    objective = SIE(create_encoder("strided_cnn_tiny", 32), SIEConfig(projector=(32, 32, 32), action_dim=action_dim))
    save_encoder(objective.encoder, folder / "encoder", CARD)
    save_predictor(
        objective.latent_predictor(),
        folder / "predictor",
        PredictorCard("sie", ToldActions.of(actions, action_dim), "test"),
    )
    return folder


def test_a_two_view_predictor_is_asked_from_one_view(
    script: ModuleType, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = save_two_view_run(tmp_path / "run")
    script.main(script.Config(run=run, data_dir=tiny_data))
    records = read_records(run / "results.json")
    by_name = {record.metric: record for record in records}
    assert {(record.task, record.part) for record in records} == {
        ("retrieval", "pred@1"), ("predictor_consistency", "pred@1"), ("action_gain", "pred@1"),
    }  # fmt: skip
    assert by_name["mrr"].baseline == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert [by_name[f"mrr{suffix}"].n for suffix in ("", "_without_identity", "_without_source")] == [48, 36, 36]
    assert by_name["hit_at_2"].protocol == "retrieval_v1, 4 views of the object by the encoder"
    assert 0.4 < by_name["retrieval_error"].baseline < 0.8
    assert (by_name["composition_error"].baseline, by_name["composition_error"].n) == (1.0, 48)
    assert {"identity_error", "inverse_error", "sign_flip_error"} <= set(by_name)
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("added to")) <= 80
    script.main(script.Config(run=run, data_dir=tiny_data, sources=4, whole_split=False, out=tmp_path / "more"))
    samples = {record.task: record.n for record in read_records(tmp_path / "more" / "results.json")}
    assert samples["action_gain"] == 12 * 10, "ten draws of views an object"
    of_others = [record for record in read_records(tmp_path / "more" / "results.json") if record.task != "action_gain"]
    assert {record.n for record in of_others} == {192, 144, 48}


def test_the_capsules_features_are_those_of_the_capsule_network(
    script: ModuleType, tiny_data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = CapsuleNetwork(create_encoder("strided_cnn_pooled", 32), 32, 4, 3, routing_std=0.3)
    arguments = {"backbone": "strided_cnn_pooled", "num_capsules": 4, "pose_side": 3, "img_size": 32}
    card = replace(CARD, architecture="capsule_network", model_args=arguments, parts={"capsules": (0, 40)})
    save_encoder(network, tmp_path / "capsule_network", card)
    save_predictor(
        EquiCaps(network).latent_predictor(),
        tmp_path / "predictor",
        PredictorCard("equicaps", ToldActions.of("rotation"), ""),
    )
    script.main(script.Config(run=tmp_path, data_dir=tiny_data, whole_split=False))
    records = {record.metric: record for record in read_records(tmp_path / "results.json")}
    assert records["mrr"].protocol.endswith("by the capsule network")
    assert records["composition_error"].value < 1e-4, "products of matrices are associative"


def test_what_a_two_view_predictor_can_not_be_asked_is_named(
    script: ModuleType, tiny_data: Path, mixed_folder: Path, tmp_path: Path
) -> None:
    run = save_two_view_run(tmp_path / "run")
    with pytest.raises(UserError, match="--contexts and --contexts-per-object belong to sequence models"):
        script.main(script.Config(run=run, data_dir=tiny_data, contexts=(1,)))
    with pytest.raises(UserError, match="--sources is 5: give a number from 1 to 4"):
        script.main(script.Config(run=run, data_dir=tiny_data, sources=5))
    with pytest.raises(UserError, match="--dataset is folder, whose views have no known poses"):
        script.main(script.Config(run=run, dataset="folder", data_dir=mixed_folder, split="val"))
    moving = save_two_view_run(tmp_path / "moving", "pose_base", 7)
    with pytest.raises(UserError, match="told actions pose_base and these views have no latents for pose_base"):
        script.main(script.Config(run=moving, data_dir=tiny_data))
    told_of_crops = save_two_view_run(tmp_path / "crops", "augmentation", 9)
    with pytest.raises(UserError, match="told actions 'augmentation'"):
        script.main(script.Config(run=told_of_crops, data_dir=tiny_data))
    assert not list(tmp_path.glob("*/results.json"))
