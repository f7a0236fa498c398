"""The probing script: an exported encoder and a timm model with random weights, on the tiny set."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ssl_equi import create_encoder
from ssl_equi.errors import CheckpointError, DataError
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, CORE_TASKS, PROBE_PROTOCOLS, ProbeProtocol
from ssl_equi.evaluation.records import read_records
from ssl_equi.export.encoder import EncoderCard, save_encoder
from tests.fakes import NEEDS_TRANSLATIONS

SCRIPT = Path(__file__).parent.parent.parent / "evaluation" / "probe.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """evaluation/probe.py with heads that train for one epoch."""
    specification = importlib.util.spec_from_file_location("evaluation_probe", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    quick = ProbeProtocol(name="quick", classification_epochs=1, rotation_epochs=1, rotation_hidden=(16,))
    monkeypatch.setitem(PROBE_PROTOCOLS, "embedded", lambda: quick)
    return module


def test_an_exported_encoder_is_probed_part_by_part(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    card = EncoderCard(
        architecture="strided_cnn_tiny", image_size=32, mean_rgb=(0.5, 0.5, 0.5), std_rgb=(0.1, 0.1, 0.1),
        parts={"all": (0, 512), "equi": (256, 512)}, objective="sie", trained_on="test", license="apache-2.0",
        tag="test",
    )  # fmt: skip
    save_encoder(create_encoder("strided_cnn_tiny", 32), tmp_path / "run" / "encoder", card)
    script.main(script.Config(encoder=str(tmp_path / "run" / "encoder"), data_dir=tiny_data, image_size=32))
    records = read_records(tmp_path / "run" / "results.json")
    assert {record.part for record in records} == {"all", "equi"}
    assert {record.task for record in records} == {*CORE_TASKS, AUGMENTATION_EQUIVARIANCE} - {*NEEDS_TRANSLATIONS}
    assert all(record.random_encoder is not None and record.num_objects == 12 for record in records)


@pytest.mark.parametrize("protocol", ["essl", "sie"])
def test_a_protocol_is_asked_what_it_states(
    script: ModuleType, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    stated = PROBE_PROTOCOLS[protocol]()
    quick = replace(
        stated, classification_epochs=1, rotation_epochs=1, colour_epochs=1, rotation_hidden=(16,), colour_hidden=(16,),
        colour_solver="adam", knn_weighted_neighbours=5,
    )  # fmt: skip
    monkeypatch.setitem(PROBE_PROTOCOLS, protocol, lambda: quick)
    config = script.Config(
        encoder="random:strided_cnn_tiny", data_dir=tiny_data, image_size=32, protocol=protocol, out=tmp_path
    )
    script.main(config)
    records = read_records(tmp_path / "results.json")
    assert {record.task for record in records} == set(stated.tasks)
    assert {record.protocol for record in records} == {stated.name}


def test_a_capsule_network_is_compared_with_one_of_its_own_sizes(
    script: ModuleType, tiny_data: Path, tmp_path: Path
) -> None:
    sizes = {"backbone": "strided_cnn_pooled", "num_capsules": 3, "pose_side": 2, "img_size": 32}
    card = EncoderCard(
        architecture="capsule_network", model_args=sizes, image_size=32, mean_rgb=(0.5, 0.5, 0.5),
        std_rgb=(0.1, 0.1, 0.1), parts={"capsules": (0, 15), "inv": (0, 3), "equi": (3, 15)}, objective="equicaps",
        trained_on="test", license="apache-2.0", tag="test",
    )  # fmt: skip
    save_encoder(create_encoder("capsule_network", 32, **sizes), tmp_path / "run" / "capsule_network", card)
    folder = str(tmp_path / "run" / "capsule_network")
    for compared in (True, False):
        config = script.Config(encoder=folder, data_dir=tiny_data, image_size=32, compare_with_random=compared)
        script.main(config)
        records = read_records(tmp_path / "run" / "results.json")
        assert {record.part for record in records} == {"capsules", "equi"}, "fresh activations are all the same"
        assert all((record.random_encoder is not None) == compared for record in records)
        (tmp_path / "run" / "results.json").unlink()


def test_a_timm_model_with_random_weights_is_its_own_baseline(
    script: ModuleType, tiny_data: Path, tmp_path: Path
) -> None:
    config = script.Config(encoder="random:resnet10t", data_dir=tiny_data, image_size=32, split="val", out=tmp_path)
    script.main(config)
    records = read_records(tmp_path / "results.json")
    assert {record.part for record in records} == {"all"}
    assert {(record.random_encoder, record.split) for record in records} == {(None, "val")}


def test_turned_views_leave_the_class_that_a_symmetric_encoder_knows_and_are_labelled(
    script: ModuleType, tiny_data: Path, tmp_path: Path
) -> None:
    """The mean over quarter turns is the same for a turned view, so its head gives the same answers."""

    def top1(encoder: str, folder: str, **options: object) -> dict[tuple[str, str], float]:
        config = script.Config(
            encoder=f"random:{encoder}", data_dir=tiny_data, image_size=32, out=tmp_path / folder, **options
        )
        script.main(config)
        records = read_records(tmp_path / folder / "results.json")
        found = {(record.task, record.metric): record.value for record in records}
        labels.update((record.split, record.protocol) for record in records)
        return found

    labels: set[tuple[str, str]] = set()
    upright = top1("group_averaged", "upright")
    turned = top1("group_averaged", "turned", turns="quarter")
    assert labels == {("test", "quick"), ("test_quarter_turns", "quick")}
    assert turned["classification", "top1"] == upright["classification", "top1"]
    assert turned["relative_rotation", "r2_uniform"] != upright["relative_rotation", "r2_uniform"]
    backbone = {"encoder_arguments": {"backbone": "strided_cnn_pooled"}}
    top1("group_averaged", "any", turns="any", turn_training_views=True, **backbone)
    assert ("test_any_turns", "quick_any_turned_heads") in labels


def test_turning_the_training_views_alone_is_refused(script: ModuleType, tiny_data: Path) -> None:
    config = script.Config(encoder="random:resnet10t", data_dir=tiny_data, image_size=32, turn_training_views=True)
    with pytest.raises(DataError, match="--turns is none: give --turns quarter or any"):
        script.main(config)


def test_a_folder_without_an_encoder_is_named(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no exported encoder"):
        script.main(script.Config(encoder=str(tmp_path), data_dir=tiny_data, image_size=32))


def test_ordinary_images_are_probed_for_their_class(script: ModuleType, mixed_folder: Path, tmp_path: Path) -> None:
    config = script.Config(
        encoder="random:resnet10t", dataset="folder", data_dir=mixed_folder, image_size=32, split="val", out=tmp_path
    )
    script.main(config)
    records = read_records(tmp_path / "results.json")
    assert {record.task for record in records} == {"classification", AUGMENTATION_EQUIVARIANCE}
    assert all(record.n == record.num_objects == 4 for record in records)
