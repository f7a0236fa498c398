"""Recipes on posed views of a schema of their own, told of latents by name; runs whose actions were one word."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from accelerate.state import AcceleratorState
from scipy.spatial.transform import Rotation as ScipyRotation

from recipes import sie
from ssl_equi.checkpoint import list_checkpoints
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.writer import write_split
from ssl_equi.errors import RunError
from ssl_equi.evaluation.results import read_records
from ssl_equi.export.predictor import load_predictor
from ssl_equi.export.sequence_model import load_sequence_model
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.schema import Latent, LatentSchema
from tests.fakes import SmallConfig, load_recipe, numbers

SCHEMA = LatentSchema(
    (
        Latent("azimuth", Angle(), 0),
        Latent("elevation", Number((0, 90), "deg"), 1),
        Latent("pose", Rotation("quat_xyzw"), 2),
    )
)


def write(folder: Path, split: str, records: list[ObjectRecord]) -> None:
    colours = {"mean_rgb": (0.5, 0.5, 0.5), "std_rgb": (0.3, 0.3, 0.3)}
    write_split(folder, split, records, ("a", "b", "c"), source="x", seed=0, license="x", schema=SCHEMA, **colours)


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 objects of 3 classes to learn from and 6 to judge on, seen from 4 sides, as pictures of noise."""
    folder, generator = tmp_path_factory.mktemp("posed"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 6)):
        records = []
        for number in range(count):
            views = SCHEMA.sample(generator, 4).numpy()
            assert np.allclose(np.linalg.norm(views[:, 2:], axis=1), 1)
            pixels = generator.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
            images = [simplejpeg.encode_jpeg(picture, colorsubsampling="420") for picture in pixels]
            records.append(ObjectRecord(f"{split}_{number}", number % 3, views, images))
        write(folder, split, records)
    return folder


@pytest.fixture
def train(posed: Path, small_config: SmallConfig, tmp_path: Path) -> Callable[..., Path]:
    """train(recipe, **changes): a run of five steps."""

    def run(name: str, folder: Path = tmp_path / "run", **changes: Any) -> Path:
        recipe = load_recipe(name)
        config = small_config(recipe, out=folder, compare_with_random=False, dataset="posed", data_dir=posed, **changes)
        recipe.main(dataclasses.replace(config, steps=5))
        lines = numbers(folder)
        assert len(lines) == 5 and all(math.isfinite(line["loss"]) for line in lines)
        return folder

    return run


TURNTABLE = ("azimuth", "elevation")
TOLD_OF_THEM = {"names": list(TURNTABLE), "kinds": ["angle", "number"], "widths": [2, 1]}


@pytest.mark.usefixtures("quick_probes")
def test_sie_learns_from_a_turntable(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("sie", actions=TURNTABLE)
    assert json.loads((folder / "config.json").read_text())["actions"] == list(TURNTABLE)
    predictor = load_predictor(folder / "predictor")
    assert predictor.action_dim == 3 and predictor.actions.describe() == TOLD_OF_THEM
    assert json.loads((folder / "predictor" / "config.json").read_text())["actions"] == TOLD_OF_THEM
    assert "both signs" not in capsys.readouterr().err


@pytest.mark.usefixtures("quick_probes")
def test_seq_jepa_is_asked_for_what_it_is_told_and_for_the_pose(train: Callable[..., Path]) -> None:
    folder = train("seq_jepa", actions=TURNTABLE)
    model = load_sequence_model(folder / "sequence_model")
    assert model.objective.config.action_dim == 3 and model.told.describe() == TOLD_OF_THEM
    tasks = {record.task for record in read_records(folder / "results.json")}
    assert {"leakage_azimuth", "leakage_elevation", "leakage_pose"} <= tasks


@pytest.mark.usefixtures("quick_probes")
def test_equicaps_multiplies_poses_by_any_rotation(train: Callable[..., Path], tmp_path: Path) -> None:
    folder = train("equicaps", actions=("pose",))
    assert load_predictor(folder / "predictor").actions.quaternion_columns == (0, 1, 2, 3)
    assert "capsule_rotation" in {record.task for record in read_records(folder / "results.json")}
    for actions in (TURNTABLE, ("pose_6d",), ("azimuth",)):
        with pytest.raises(RuntimeError, match="poses are multiplied with one matrix: choose a rotation of the data"):
            train("equicaps", tmp_path / "refused", actions=actions)


@pytest.mark.usefixtures("without_ending")
@pytest.mark.parametrize("name", ["vicreg", "supervised"])
def test_who_is_told_nothing_needs_no_latents(name: str, train: Callable[..., Path]) -> None:
    folder = train(name, **({"objective.action_weight": 0.0} if name == "supervised" else {}))
    assert '"event": "loss"' in (folder / "metrics.jsonl").read_text()


def test_quaternions_that_come_with_both_signs_are_warned_of(
    posed: Path, small_config: SmallConfig, without_ending: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = ScipyRotation.from_rotvec([[0, 0, math.pi - 0.01]]).as_quat()
    records = [
        ObjectRecord(f"{number}", number % 3, np.hstack([np.zeros((4, 2)), np.repeat(turned, 4, 0)]), [picture] * 4)
        for number, picture in enumerate([simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))] * 12)
    ]
    for split in ("train", "test"):
        write(tmp_path / "set", split, records)
    for actions, warned in ((("pose",), True), (("pose_6d",), False), (TURNTABLE, False)):
        config = small_config(
            sie, out=tmp_path / "run" / actions[0], dataset="posed", data_dir=tmp_path / "set", steps=1, actions=actions
        )
        sie.main(config)
        AcceleratorState._reset_state(reset_partial_state=True)
        found = capsys.readouterr().err
        assert ("turn by up to 179 degrees: at half turns" in found) == warned
        assert not warned or "so prefer actions pose_6d or pose_matrix" in found


def test_a_run_whose_actions_were_one_word_goes_on(
    small_config: SmallConfig, without_ending: None, tmp_path: Path
) -> None:
    """As earlier versions wrote config.json."""
    config = small_config(sie, out=tmp_path / "run", save_every=1)
    sie.main(dataclasses.replace(config, steps=2))
    file = tmp_path / "run" / "config.json"
    written = json.loads(file.read_text())
    assert written["actions"] == ["rotation"]
    for theirs, mine, goes_on in (("rotation", "rotation", True), ("rotation_color", "rotation", False)):
        AcceleratorState._reset_state(reset_partial_state=True)
        file.write_text(json.dumps(written | {"actions": theirs}))
        resumed = dataclasses.replace(config, steps=4, resume=True, actions=(mine,))
        if goes_on:
            sie.main(resumed)
            assert [line["step"] for line in numbers(tmp_path / "run")] == [1, 2, 3, 4]
            assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 2
        else:
            with pytest.raises(RunError, match=r"was made with actions = 'rotation_color' .* asks for \['rotation'\]"):
                sie.main(resumed)
