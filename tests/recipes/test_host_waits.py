"""No step of a recipe lets the host wait for a GPU, and a line of the log lets it wait once.

Waiting, the host queues nothing, and the GPU soon has nothing to do. The device is simulated, so this needs none. Left
out is the backward pass, in which two functions of our own run: those of `gather_batch` and of `gated_product`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_equi.training.ending import Ending
from ssl_equi.training.log import FiniteWatch
from ssl_equi.training.run import Run
from ssl_equi.views.groups import GROUPS
from ssl_equi.views.presets import PRESETS
from tests.fakes import RECIPES, SmallConfig, load_recipe
from tests.simulated_device import DEVICE, SimulatedDevice, Wait

STEPS, LOG_EVERY = 3, 2  # the first line of the log follows the second step


@dataclasses.dataclass(frozen=True)
class Variant:
    """A recipe with other options than its embedded ones."""

    recipe: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """by OPTION or GROUP.OPTION"""
    name: str = "embedded"


def augmented(recipe: str, **changes: Any) -> Variant:
    return Variant(recipe, {"views.source": "augmented"} | changes)


TOLD_NOTHING = ("barlow_twins", "byol", "care", "essl", "moco", "simclr", "simsiam", "vicreg", "vicreg_traj")
TOLD_ACTIONS = ("augself", "capsie", "conditional_byol", "equimod", "sen", "seq_jepa", "sie", "supervised")
MOVING = ("pose_base", "pose_object")
VARIANTS = (
    {name: Variant(name) for name in RECIPES}
    | {f"{name} augmented": augmented(name) for name in TOLD_NOTHING}
    | {f"{name} augmented": augmented(name, actions=("augmentation",)) for name in TOLD_ACTIONS}
    | {f"sie {kind}": Variant("sie", {"actions": (kind,)}) for kind in ("rotation_color", "rotation_6d", *MOVING)}
    | {f"simclr {preset}": augmented("simclr", **{"views.preset": preset}) for preset in PRESETS}
    | {f"essl {group}": Variant("essl", {"small_view.group": group}) for group in GROUPS}
    | {
        "equicaps pose_base": Variant("equicaps", {"actions": ("pose_base",)}),
        "essl relative": Variant("essl", {"objective.relative": True}),
        "essl of 2 elements": Variant("essl", {"small_view.elements": 2}),
        "care moco": Variant("care", {"base": "moco"}),
        "care moco augmented": augmented("care", base="moco"),
        "care of two passes": Variant("care", name="two_pass"),
        "seq_jepa_saccades crop_flip": Variant("seq_jepa_saccades", {"saccades.augmentation": "crop_flip"}),
        "conv_jepa uniform": Variant("conv_jepa", {"saccades.saliency": "uniform"}),
        "vicreg lars": Variant("vicreg", {"optimizer": "lars", "clip_norm": 1.0}),
        "sie that skips": Variant("sie", {"on_bad_record": "skip"}),
        "sie kept on the device": Variant("sie", {"cache_decoded": True, "cache_in": "device"}),
        "sie with its own choice": Variant("sie", {"loader_threads": None}),
        "sie rendered": Variant("sie", {"render_views": True}),
    }
)


class WatchedRuns:
    """Lets runs take the simulated device, and notes what they wait for: in steps, and while they log."""

    def __init__(self, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_step: dict[int, list[Wait]] = {}
        self.in_log: dict[int, list[Wait]] = {}
        start, seed_step, log = Run.__init__, Run._seed_step, Run.log

        def start_on_device(run: Run, *arguments: Any) -> None:
            start(run, *arguments)
            run.device = run.processes.device = run.accelerator.state._shared_state["device"] = DEVICE
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

        def begin_step(run: Run, step: int) -> None:
            seed_step(run, step)
            if step == 0:
                device.waits.clear()  # of what moved the weights

        def note_step_and_log(run: Run, step: int, *arguments: Any, **keywords: Any) -> None:
            self.in_step[step + 1] = [*device.waits]
            with device.noted() as self.in_log[step + 1]:
                log(run, step, *arguments, **keywords)
            device.waits.clear()

        monkeypatch.setattr(Run, "__init__", start_on_device)
        monkeypatch.setattr(Run, "_seed_step", begin_step)
        monkeypatch.setattr(Run, "log", note_step_and_log)
        monkeypatch.setattr(Run, "save", lambda run: None)


@pytest.fixture
def waits_of(
    small_config: SmallConfig,
    tiny_moving_data: Path,
    tmp_path: Path,
    device: SimulatedDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Variant], WatchedRuns]:
    """Runs a few steps of a variant, from its beginning but without its ending."""

    def run(variant: Variant) -> WatchedRuns:
        recipe = load_recipe(variant.recipe)
        for method in ("check", "finish"):
            monkeypatch.setattr(Ending, method, lambda ending: None)
        moving = {"dataset": "3diebench-pt", "data_dir": tiny_moving_data}
        data = moving if set(variant.changes.get("actions", ())) & set(MOVING) else {}
        sizes = {"out": tmp_path / "run", "steps": STEPS, "log_every": LOG_EVERY}
        sizes |= {"loader_threads": 2}  # whose batches are copied to the device
        watched = WatchedRuns(device, monkeypatch)
        recipe.main(small_config(recipe, variant.name, **sizes | data | variant.changes))
        return watched

    return run


@pytest.mark.parametrize("name", VARIANTS)
def test_no_step_waits_and_a_line_of_the_log_waits_once(name: str, waits_of: Callable[[Variant], WatchedRuns]) -> None:
    watched = waits_of(VARIANTS[name])
    assert set(watched.in_step) == {*range(1, STEPS + 1)}
    waits = [wait for waits in watched.in_step.values() for wait in waits]
    if name == "sie rendered":  # how many pixels a face covers decides on the sizes of what follows
        assert {wait.operation for wait in waits} <= {"nonzero", "_local_scalar_dense"}
        assert len(waits) <= 9 * STEPS
        waits = [wait for wait in waits if not wait.place.startswith("ssl_equi/scenes/")]
    assert waits == []
    assert [len(waits) for waits in watched.in_log.values()] == [0, 1, 1]


def test_a_wait_in_a_step_is_found(waits_of: Callable[[Variant], WatchedRuns], monkeypatch: pytest.MonkeyPatch) -> None:
    def look(watch: FiniteWatch, output: Any, step: int) -> None:
        output.loss.item()

    monkeypatch.setattr(FiniteWatch, "look", look)
    watched = waits_of(Variant("simclr"))
    line = look.__code__.co_firstlineno + 1
    wait = Wait("_local_scalar_dense", f"tests/recipes/test_host_waits.py:{line}")
    assert watched.in_step == {step: [wait] for step in range(1, STEPS + 1)}
