"""Every recipe, stopped and resumed, goes on as if it had never stopped: the same lines to the bit, the same weights.

Momentum targets, queues, augmentations and drawn elements are what could differ.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.views.makers import ViewOptions

AUGMENTED = {"views": ViewOptions(source="augmented", preset="mocov2")}
CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "byol": ("byol", None, {}),
    "moco": ("moco", None, {}),
    "conditional_byol": ("conditional_byol", None, {}),
    "simsiam": ("simsiam", None, {}),
    "essl": ("essl", None, {}),
    "care": ("care", None, {}),
    "care_two_pass": ("care", "two_pass", {}),
    "care_moco": ("care", None, {"base": "moco"}),
    "equimod_vicreg": ("equimod", "vicreg", {}),
    "equicaps": ("equicaps", None, {}),
    "capsie": ("capsie", None, {}),
    # Dropout, too.
    "seq_jepa": ("seq_jepa", None, {}),
    "seq_jepa_augmented": ("seq_jepa", None, {**AUGMENTED, "actions": "augmentation", "observed_views": 2}),
    # Four steps an epoch, of which the last has 3 objects.
    "seq_jepa_by_epoch": ("seq_jepa", None, {"batch_size": 7, "keep_incomplete_batch": True, "schedule_by": "epoch"}),
    "vicreg_traj": ("vicreg_traj", None, {}),
    "conv_jepa": ("conv_jepa", None, {}),
    "seq_jepa_saccades": ("seq_jepa_saccades", None, {}),
    "simclr_augmented_lars": ("simclr", None, {**AUGMENTED, "optimizer": "lars", "decay_bias_and_norm": False}),
    "sie_augmented": ("sie", None, {**AUGMENTED, "actions": "augmentation"}),
    "sie_rendered": ("sie", None, {"render_views": True, "fresh_views": True}),
    "augself_augmented": ("augself", None, {**AUGMENTED, "actions": "augmentation"}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_as_never_stopped(
    case: str,
    load_recipe: Callable[[str], ModuleType],
    small_config: Callable[..., Any],
    without_ending: None,
    event_lines: Callable[[Path, str], list[str]],
    tmp_path: Path,
) -> None:
    name, configuration, changes = CASES[case]
    recipe = load_recipe(name)

    def run(folder: Path, **options: Any) -> None:
        recipe.main(small_config(recipe, configuration, out=folder, **changes, **options))
        AcceleratorState._reset_state(reset_partial_state=True)

    run(tmp_path / "whole", steps=5)
    run(tmp_path / "stopped", steps=2)
    run(tmp_path / "stopped", steps=5, resume=True)
    lines = event_lines(tmp_path / "whole", "loss")
    assert len(lines) == 5
    assert event_lines(tmp_path / "stopped", "loss") == lines
    states = [
        read_state(list_checkpoints(tmp_path / folder / "checkpoints")[-1], "objective")
        for folder in ("whole", "stopped")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
