"""Recipes on a folder of pictures of all sizes and kinds: augmented views, class probes, errors that name the cure."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ssl_equi import load_encoder
from ssl_equi.views.makers import ViewOptions
from tests.fakes import SmallConfig, load_recipe, numbers, refused

AUGMENTED = ViewOptions(source="augmented", preset="mocov2")
CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "simclr": (None, {}),
    "essl": (None, {}),
    "care": ("two_pass", {}),
    "sie": (None, {"actions": "augmentation"}),
}

pytestmark = pytest.mark.usefixtures("quick_probes")


def folder_config(small_config: SmallConfig, recipe: ModuleType, folder: Path, **changes: Any) -> Any:
    name = changes.pop("configuration", None)
    sizes = {"dataset": "folder", "data_dir": folder, "evaluation_split": "val", "batch_size": 4, "views": AUGMENTED}
    return small_config(recipe, name, **(sizes | changes))


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_on_a_folder_and_is_probed_for_the_class(
    name: str, small_config: SmallConfig, mixed_folder: Path, tmp_path: Path
) -> None:
    recipe, (configuration, changes) = load_recipe(name), CASES[name]
    out = tmp_path / "run"
    recipe.main(
        folder_config(small_config, recipe, mixed_folder, configuration=configuration, out=out, steps=4, **changes)
    )
    losses = numbers(out)
    assert [line["step"] for line in losses] == [1, 2, 3, 4]
    probes = numbers(out, "online_probe")
    assert all("absolute_rotation" not in name for line in probes for name in line)
    results = json.loads((out / "results.json").read_text())
    assert {record["task"] for record in results["records"]} == {"classification", "augmentation_equivariance"}
    assert (out / "report.html").stat().st_size > 10_000
    assert load_encoder(out / "encoder").num_features == 512


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"views": ViewOptions()}, "folder holds one view of each image: choose --views.source augmented"),
        ({"views": ViewOptions(source="augmented", preset="none")}, "there are no views named 'none': use crop_flip"),
        ({"evaluation_split": "test"}, "test"),
    ],
)
def test_what_cannot_be_trained_on_a_folder_is_said_in_one_sentence(
    changes: dict[str, Any],
    sentence: str,
    small_config: SmallConfig,
    mixed_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe("simclr")
    config = folder_config(small_config, recipe, mixed_folder, out=tmp_path / "run", **changes)
    assert sentence in refused(lambda: recipe.main(config), capsys)


@pytest.mark.parametrize(("damage", "sentence"), [(b"", "is empty"), (b"\xff\xd8\xff\xe0 cut", "does not decode")])
def test_a_damaged_picture_ends_the_run_and_is_named(
    damage: bytes,
    sentence: str,
    small_config: SmallConfig,
    mixed_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (mixed_folder / "train" / "dog" / "0.jpg").write_bytes(damage)
    recipe = load_recipe("simclr")
    errors = refused(
        lambda: recipe.main(folder_config(small_config, recipe, mixed_folder, out=tmp_path / "run")), capsys
    )
    assert sentence in errors and "0.jpg" in errors
