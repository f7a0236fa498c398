"""A run on data whose latents are its own: what is followed while it trains, and asked in the end."""

import json
from pathlib import Path

import pytest

from tests.fakes import SmallConfig, load_recipe, numbers
from tests.turntables import write_turntables


@pytest.mark.slow  # its parts: tests/evaluation/test_online.py and tests/evaluation_scripts/test_own_latents.py
def test_a_run_follows_and_asks_the_latents_of_its_data(
    small_config: SmallConfig, quick_probes: None, tmp_path: Path
) -> None:
    recipe, data = load_recipe("vicreg"), write_turntables(tmp_path / "data", train_objects=16)
    recipe.main(
        small_config(recipe, dataset="posed", data_dir=data, evaluation_split="val", out=tmp_path / "run", batch_size=4)
    )
    assert "all/absolute_azimuth_r2_uniform" in numbers(tmp_path / "run", "online_probe")[-1]
    records = json.loads((tmp_path / "run" / "results.json").read_text())["records"]
    assert {record["task"] for record in records} == {
        "classification", "relative_azimuth", "absolute_azimuth", "relative_elevation", "absolute_elevation",
        "absolute_tool", "augmentation_equivariance",
    }  # fmt: skip
    assert all(record["random_encoder"] is not None for record in records)
