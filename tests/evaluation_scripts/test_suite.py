"""The evaluation scripts on the tiny set: one command for any encoder, and what it leaves behind."""

import importlib.util
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

from ssl_equi.encoders.catalogue import create_encoder
from ssl_equi.errors import EncoderError, UserError
from ssl_equi.evaluation import command as evaluation_command
from ssl_equi.evaluation import publish
from ssl_equi.evaluation.command import EvaluationConfig, evaluate_command
from ssl_equi.evaluation.encoders import open_encoder
from ssl_equi.evaluation.protocol import EquivarianceProtocol, ProbeProtocol
from ssl_equi.evaluation.results import read_evaluation
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import TASKS
from ssl_equi.export.encoder import EncoderCard, save_encoder

SCRIPTS = Path(__file__).parent.parent.parent / "evaluation"
QUICK = ProbeProtocol(
    name="quick", tasks=("classification", "relative_rotation", "translation_base", "augmentation_equivariance"),
    classification_epochs=1, rotation_epochs=1, rotation_hidden=(16,),
    augmentation_equivariance=EquivarianceProtocol(num_augmentations=2, num_compositions=1, max_images=8),
)  # fmt: skip


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tiny_data: Path, tmp_path: Path) -> EvaluationConfig:
    monkeypatch.setitem(evaluation_command.PROBE_PROTOCOLS, "ssl_equi", lambda: QUICK)
    return EvaluationConfig(
        encoder="random:resnet10t", data_dir=tiny_data, seeds=2, cache=tmp_path / "cache", out=tmp_path / "out"
    )


def test_an_encoder_with_random_weights(config: EvaluationConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """The size is that of the shards, every question has its records, and asking again needs fewer passes."""
    out = evaluate_command(config)
    found = read_evaluation(out)
    assert {(record.task, record.seed) for record in found.records} == {
        ("classification", 0), ("classification", 1), ("relative_rotation", 0), ("relative_rotation", 1),
        ("augmentation_equivariance", 0),
    }  # fmt: skip
    assert any(
        note.startswith("translation_base, part all: the views have no known translations") for note in found.notes
    )
    assert all(record.random_encoder is None and record.num_objects == 12 for record in found.records)
    assert found.run["name"] == "random-resnet10t" and found.run["image_size"] == 32 and found.run["seeds"] == 2
    views = (24 + 12) * 4
    augmented = found.run["encoder_passes"] - views
    assert 0 < augmented <= 8 * (1 + 2 + 1)
    assert found.arrays["angle_errors_deg/relative_rotation/all"].shape == (12 * 4 * 3,)
    assert (out / "report.html").is_file()
    printed = capsys.readouterr().out
    assert "encoded 96 of 96 views" in printed and "images/s" in printed
    assert max(len(line) for line in printed.splitlines() if str(out) not in line) <= 80
    evaluate_command(replace(config, tasks=("classification", "knn"), parts=("all",)))
    again = read_evaluation(out)
    assert again.run["encoder_passes"] == 0
    values = {(each.metric, each.seed): each.value for each in found.records if each.task == "classification"}
    assert values == {(each.metric, each.seed): each.value for each in again.records if each.task == "classification"}


def test_a_checkpoint_of_timm_goes_the_same_way(config: EvaluationConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("resnet10t"), str(tmp_path / "saved"), safe_serialization=True)
    weights = tmp_path / "saved" / "model.safetensors"
    by_file = replace(config, encoder="timm:resnet10t", weights=weights, tasks=("classification",))
    by_folder = replace(config, encoder=str(tmp_path / "saved"), tasks=("classification",), out=tmp_path / "other")
    first, second = (read_evaluation(evaluate_command(each)) for each in (by_file, by_folder))
    assert [record.value for record in first.records] == [record.value for record in second.records]
    assert all(record.random_encoder is not None for record in first.records)
    assert first.notes == ["timm-resnet10t was trained on images of 176 x 176 pixels and is given 32 x 32"]
    assert first.run["encoder_sha256"] == second.run["encoder_sha256"]


def test_an_encoder_of_fixed_size_is_given_resized_views(config: EvaluationConfig, tmp_path: Path) -> None:
    sizes = {"img_size": 48, "embed_dim": 48, "depth": 1, "num_heads": 3}
    card = EncoderCard(
        architecture="vit_tiny_patch16_224", model_args=sizes, image_size=48, mean_rgb=(0.5,) * 3, std_rgb=(0.5,) * 3,
        parts={"all": (0, 48)}, objective="simclr", trained_on="test", license="apache-2.0", tag="test",
    )  # fmt: skip
    save_encoder(create_encoder("vit_tiny_patch16_224", **{"image_size": 48} | sizes), tmp_path / "run/encoder", card)
    asked = replace(config, encoder=str(tmp_path / "run"), tasks=("classification",), seeds=1)
    with pytest.raises(EncoderError, match="give another --image-size 48"):
        evaluate_command(replace(asked, image_size=32))
    for cure in (48, None):
        found = read_evaluation(evaluate_command(replace(asked, image_size=cure, compare_with_random=False)))
        assert found.run["image_size"] == 48
        assert found.notes[0].startswith("the stored images of 3diebench-p have 32 x 32 pixels and are enlarged")


def test_classes_of_other_data_are_asked_by_an_option(config: EvaluationConfig, mixed_folder: Path) -> None:
    """Pictures of several sizes and formats; what is asked of the judged data is what --tasks says."""
    asked = replace(config, tasks=("transfer",), transfer=(f"folder:{mixed_folder}",), transfer_split="val", seeds=1)
    found = read_evaluation(evaluate_command(asked))
    label = f"folder_{mixed_folder.name}"
    assert {record.task for record in found.records} == {f"transfer_linear_{label}"}
    assert {record.split for record in found.records} == {f"{label}_val"}
    assert any(note.startswith(f"transfer_knn_{label}, part all: 20 neighbours can't be found") for note in found.notes)
    assert len(found.run["transfer_fingerprints"][label]) == 2
    with pytest.raises(UserError, match=f"--transfer names {label} 2 times: give each data set once"):
        evaluate_command(replace(asked, transfer=asked.transfer * 2))


def test_several_encoders_are_put_side_by_side(config: EvaluationConfig, tmp_path: Path) -> None:
    """One of random weights, and one by a file of them; on the page both columns have their numbers."""
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("resnet10t"), str(tmp_path / "saved"), safe_serialization=True)
    by_file = f"timm:resnet10t@{tmp_path / 'saved' / 'model.safetensors'}"
    out = evaluate_command(replace(
        config, beside=(by_file,), tasks=("classification",), seeds=1, compare_with_random=False,
    ))  # fmt: skip
    values = [read_evaluation(folder).records[0].value for folder in (out, out / "timm-resnet10t")]
    page = (out / "peers.html").read_text()
    assert "random-resnet10t" in page and "timm-resnet10t" in page
    assert all(f"{value:.3f}" in page for value in values)
    with pytest.raises(EncoderError, match="weights are given twice"):
        open_encoder(by_file, weights=tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="timm has no model named"):
        evaluate_command(replace(config, beside=("random:resnet11",)))


def test_wrong_options_are_named(config: EvaluationConfig) -> None:
    with pytest.raises(UserError, match="--seeds is 0: give 1 or more"):
        evaluate_command(replace(config, seeds=0))
    with pytest.raises(UserError, match="--turns is none: give --turns quarter or any"):
        evaluate_command(replace(config, turn_training_views=True))
    with pytest.raises(EncoderError, match="timm has no model named"):
        evaluate_command(replace(config, encoder="random:resnet11"))


def test_turned_views_are_another_split(config: EvaluationConfig, tmp_path: Path) -> None:
    turned = replace(config, turns="quarter", turn_training_views=True, tasks=("classification",), seeds=1, out=None)
    out = evaluate_command(replace(turned, out=tmp_path / "turned"))
    found = read_evaluation(out)
    assert {(record.split, record.protocol) for record in found.records} == {
        ("test_quarter_turns", "quick_quarter_turned_heads")
    }


@pytest.mark.parametrize("name", ["linear", "knn", "pose"])
def test_the_scripts_of_one_question_ask_for_tasks_that_exist(name: str) -> None:
    specification = importlib.util.spec_from_file_location(f"evaluation_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert set(module.TASKS) <= {*TASKS, "latents"}


def test_a_script_runs_as_from_the_command_line(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(SCRIPTS / "knn.py")
    command = [
        script, "--encoder", "random:resnet10t", "--data-dir", str(tiny_data), "--cache", str(tmp_path / "cache"),
        "--seeds", "1", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(script, run_name="__main__")
    found = read_evaluation(tmp_path / "out")
    assert {record.task for record in found.records} == {"knn"}
    assert found.notes[0].startswith("knn_weighted, part all: 200 neighbours can't be found among 96 training views")
    monkeypatch.setattr(sys, "argv", [*command, "--tasks", "kn"])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: there is no task 'kn': did you mean knn")


def test_orbits_that_cannot_be_drawn_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TaskSkipped("views lie in a buffer of 24 x 32 pixels: crop them first")

    monkeypatch.setattr(publish, "orbit_errors", refuse)
    results = SimpleNamespace(rotation_heads={}, records=[])
    data = SimpleNamespace(evaluation=None, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
    found = publish.pictures(SimpleNamespace(predictor=None), data, results, "cpu")
    assert found == ({}, ["orbits are not drawn: views lie in a buffer of 24 x 32 pixels: crop them first"])
