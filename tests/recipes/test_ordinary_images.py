"""Recipes on a folder of pictures of all sizes and kinds: augmented views, class probes, errors that name the cure."""

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipes import sie, simclr
from ssl_equi import load_encoder
from ssl_equi.cli import run_recipe
from ssl_equi.errors import UserError
from ssl_equi.training.own_images import for_own_images
from ssl_equi.views.options import ViewOptions
from tests.fakes import RECIPES, SmallConfig, load_recipe, numbers, refused

NUM_IMAGES = 30
NUM_TRAINED = 28  # by the hashes of their names
# What is missing to these images.
NEED_MORE = {"equicaps": "choose a rotation of the data", "supervised": "number of classes of the data is 1"}
AUGMENTED = ViewOptions(source="augmented", preset="mocov2")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("embedded", {}),
    "essl": ("embedded", {}),
    "care": ("two_pass", {}),
    "sie": ("embedded", {"actions": ("augmentation",)}),
}

pytestmark = pytest.mark.usefixtures("quick_probes")


def folder_config(
    small_config: SmallConfig, recipe: ModuleType, folder: Path, name: str = "embedded", **changes: Any
) -> Any:
    sizes = {"dataset": "folder", "data_dir": folder, "evaluation_split": "val", "batch_size": 4, "views": AUGMENTED}
    return small_config(recipe, name, **(sizes | changes))


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_on_a_folder_and_is_probed_for_the_class(
    name: str, small_config: SmallConfig, mixed_folder: Path, tmp_path: Path
) -> None:
    recipe, (configuration, changes) = load_recipe(name), CASES[name]
    out = tmp_path / "run"
    recipe.main(folder_config(small_config, recipe, mixed_folder, configuration, out=out, steps=4, **changes))
    losses = numbers(out)
    assert [line["step"] for line in losses] == [1, 2, 3, 4]
    probes = numbers(out, "online_probe")
    assert all("absolute_rotation" not in name for line in probes for name in line)
    results = json.loads((out / "results.json").read_text())
    asked = {"classification", "augmentation_equivariance", "augmentation_parameters"}
    assert {record["task"] for record in results["records"]} == asked
    assert (out / "report.html").stat().st_size > 10_000
    assert load_encoder(out / "encoder").num_features == 256


@pytest.mark.parametrize(
    ("damage", "changes", "sentence"),
    [
        (None, {"views": ViewOptions()}, "folder holds one view of each image: choose --views.source augmented"),
        (None, {"views.preset": "none"}, "there are no views named 'none': use crop_flip"),
        (None, {"evaluation_split": "test"}, "test"),
        (b"", {}, "is empty"),
        (b"\xff\xd8\xff\xe0 cut", {}, "does not decode"),
    ],
)
def test_what_cannot_be_trained_on_is_said_in_one_sentence(
    damage: bytes | None,
    changes: dict[str, Any],
    sentence: str,
    small_config: SmallConfig,
    mixed_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage is not None:
        (mixed_folder / "train" / "dog" / "0.jpg").write_bytes(damage)
    config = folder_config(small_config, simclr, mixed_folder, out=tmp_path / "run", **changes)
    said = refused(lambda: simclr.main(config), capsys)
    assert sentence in said and ("0.jpg" in said) == (damage is not None)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_a_folder_of_images_or_says_why_not(name: str, flat_folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    config = for_own_images(recipe.CONFIGS["embedded"](), flat_folder)
    assert (config.dataset, config.data_dir, config.evaluation_split) == ("folder", flat_folder, "val")
    assert config.batch_size == 16 and config.epochs == 2400
    config.check()
    if name in NEED_MORE:
        with pytest.raises((UserError, ValueError), match=NEED_MORE[name]):
            recipe.main(dataclasses.replace(config, steps=1, out=tmp_path / "run"))


def test_a_folder_of_images_is_learned_from_by_one_option(
    flat_folder: Path, small_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sizes = small_options[2:]  # without --data-dir
    out = tmp_path / "run"
    arguments = ["--images", str(flat_folder), "--out", str(out), "--steps", "2", *sizes]
    monkeypatch.setattr(sys, "argv", ["sie.py", *arguments])
    run_recipe(sie.main, sie.CONFIGS, sie.__doc__)
    said = capsys.readouterr().out
    assert f"has no splits: {NUM_TRAINED} images to train on and {NUM_IMAGES - NUM_TRAINED} to judge on" in said
    assert "crop of an augmentation" in said and "class (" not in said
    records = json.loads((out / "results.json").read_text())["records"]
    assert {record["task"] for record in records} == {"augmentation_equivariance", "augmentation_parameters"}


def test_the_split_that_a_folder_has_is_judged(mixed_folder: Path) -> None:
    assert for_own_images(sie.embedded(), mixed_folder).evaluation_split == "val"
    (mixed_folder / "val").rename(mixed_folder / "test")
    assert for_own_images(sie.embedded(), mixed_folder).evaluation_split == "test"


def test_the_option_of_images_needs_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sie.py", "--images", "--steps", "2"])
    with pytest.raises(SystemExit, match="1"):
        run_recipe(sie.main, sie.CONFIGS, sie.__doc__)
    assert "--images has no value" in capsys.readouterr().err
