"""Every recipe trains on what is left over at the end of an epoch, and counts it right."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# moco and care refuse incomplete batches, see test_combinations.py.
RECIPES = sorted({path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.py")} - {"moco", "care"})
VIEWS = {"seq_jepa": 4, "vicreg_traj": 3, "seq_jepa_saccades": 1, "conv_jepa": 1}  # stored ones of each object


@pytest.mark.parametrize("name", RECIPES)
def test_two_objects_left_over_are_a_step_of_each_epoch(
    name: str,
    load_recipe: Callable[[str], ModuleType],
    small_config: Callable[..., Any],
    without_ending: None,
    event_lines: Callable[[Path, str], list[str]],
    tmp_path: Path,
) -> None:
    """24 objects in batches of 11; the run would end at numbers that are not finite."""
    recipe = load_recipe(name)
    recipe.main(small_config(recipe, out=tmp_path / "run", batch_size=11, keep_incomplete_batch=True))
    speeds = [json.loads(line) for line in event_lines(tmp_path / "run", "speed")]
    images = [line["images_per_second"] * line["window_seconds"] for line in speeds]
    assert images == pytest.approx([VIEWS.get(name, 2) * size for size in (11, 11, 2, 11, 11, 2)])
