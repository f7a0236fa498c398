"""Every recipe, stopped and resumed, goes on as if it had never stopped: the same lines to the bit, the same weights.

Momentum targets, queues, augmentations and drawn elements are what could differ. Where a recipe takes what is left over
at the end of an epoch, 24 objects come in batches of 11, 11 and 2, which are counted right.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import sie
from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.views.options import ViewOptions
from tests.fakes import RECIPES, SmallConfig, event_lines, forget_processes, load_recipe, numbers

WHOLE_BATCHES = ("moco", "care")  # they refuse incomplete ones, see test_combinations.py
VIEWS = {"seq_jepa": 4, "vicreg_traj": 3, "seq_jepa_saccades": 1, "conv_jepa": 1}  # stored ones of each object
AUGMENTED = {"views": ViewOptions(source="augmented", preset="mocov2")}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (name, "embedded", {}) for name in RECIPES},
    "care_two_pass": ("care", "two_pass", {}),
    "care_moco": ("care", "embedded", {"base": "moco"}),
    "equimod_vicreg": ("equimod", "vicreg", {}),
    "seq_jepa_augmented": ("seq_jepa", "embedded", {**AUGMENTED, "actions": ("augmentation",), "observed_views": 2}),
    # Four steps an epoch, of which the last has 3 objects.
    "seq_jepa_by_epoch": ("seq_jepa", "embedded", {"batch_size": 7, "schedule_by": "epoch"}),
    "simclr_augmented_lars": ("simclr", "embedded", {**AUGMENTED, "optimizer": "lars", "decay_bias_and_norm": False}),
    "sie_augmented": ("sie", "embedded", {**AUGMENTED, "actions": ("augmentation",)}),
    "byol_frozen": ("byol", "embedded", {"frozen_layers": 2, "layer_decay": 0.5}),
    "sie_rendered": ("sie", "embedded", {"render_views": True, "fresh_views": True}),
    "augself_augmented": ("augself", "embedded", {**AUGMENTED, "actions": ("augmentation",)}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_as_never_stopped(
    case: str, small_config: SmallConfig, without_ending: None, tmp_path: Path
) -> None:
    name, configuration, changes = CASES[case]
    if name not in WHOLE_BATCHES:
        changes = {"batch_size": 11, "keep_incomplete_batch": True} | changes
    recipe = load_recipe(name)

    def run(folder: Path, **options: Any) -> None:
        recipe.main(small_config(recipe, configuration, out=folder, **changes, **options))
        forget_processes()

    run(tmp_path / "whole", steps=5)
    run(tmp_path / "stopped", steps=2)
    run(tmp_path / "stopped", steps=5, resume=True)
    if case in RECIPES and case not in WHOLE_BATCHES:
        speeds = numbers(tmp_path / "whole", "speed")
        images = [line["images_per_second"] * line["window_seconds"] for line in speeds]
        assert images == pytest.approx([VIEWS.get(name, 2) * size for size in (11, 11, 2, 11, 11)])
    lines, probe_lines = (event_lines(tmp_path / "whole", event) for event in ("loss", "online_probe"))
    assert len(lines) == 5 and probe_lines
    assert event_lines(tmp_path / "stopped") == lines
    assert event_lines(tmp_path / "stopped", "online_probe") == probe_lines
    states = [
        read_state(list_checkpoints(tmp_path / folder / "checkpoints")[-1], "objective")
        for folder in ("whole", "stopped")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.slow
@pytest.mark.usefixtures("quick_probes")
def test_results_of_a_run_that_goes_on_are_set_aside(small_config: SmallConfig, tmp_path: Path) -> None:
    sie.main(small_config(sie, out=tmp_path, steps=4))
    forget_processes()
    sie.main(small_config(sie, out=tmp_path, resume=True))
    results = [json.loads((tmp_path / name).read_text()) for name in ("results-earlier-1.json", "results.json")]
    assert [result["run"]["steps"] for result in results] == [4, 6]
    assert len(results[0]["records"]) == len(results[1]["records"]), "numbers of two encoders are in one file"
