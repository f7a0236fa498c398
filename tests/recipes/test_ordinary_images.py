"""Recipes on a folder of pictures of all sizes and kinds: augmented views, class probes, errors that name the cure."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipes import simclr
from ssl_equi import load_encoder
from ssl_equi.views.options import ViewOptions
from tests.fakes import SmallConfig, load_recipe, numbers, refused

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
    assert {record["task"] for record in results["records"]} == {"classification", "augmentation_equivariance"}
    assert (out / "report.html").stat().st_size > 10_000
    assert load_encoder(out / "encoder").num_features == 512


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
