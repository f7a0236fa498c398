"""No option is taken and ignored: changing it alone changes what is learnt, or is refused with a sentence."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ssl_equi import options
from ssl_equi.errors import UserError
from ssl_equi.options import check_options
from ssl_equi.training.config import PretrainingOptions
from ssl_equi.training.run import Run
from tests.fakes import RECIPES, SmallConfig, forget_processes, load_recipe
from tests.recipes.conftest import with_changes

QUICK = ("equimod", "sie")  # the others take a minute together
# Options that say nothing to the objective: where the run is, what it costs, and what is done with its results.
ACT_ELSEWHERE = {
    "out", "data_dir", "dataset", "reading", "resume", "steps", "log_every", "save_every", "threads", "loader_threads",
    "loader_workers", "compile", "cuda_graph", "tracker", "on_bad_record", "cache_decoded", "cache_in", "decode_on",
    "evaluation_split", "probe_protocol", "compare_with_random", "image_size", "init", "encoder", "encoder_arguments",
    "collective_timeout", "checkpoint_activations", "sharding", "evaluate", "tasks",
    "verbose",
}  # fmt: skip
OTHER_VALUES: dict[str, Any] = {
    "equi_dim": 64, "elements": 2, "small_view.preset": "imagenet", "group": "horizontal_flip", "clip_norm": 1e-3,
    "saliency_file": Path("maps.npy"), "action_transforms": ("crop",), "preset": "mocov2",
    "optimizer": "sgd", "warmup_from": 1e-4, "mean_rgb": (0.4, 0.4, 0.4), "std_rgb": (0.3, 0.3, 0.3),
}  # fmt: skip


def other_value(option: options._Option) -> Any:
    """Another value of an option, in its range."""
    for name in (option.name, option.name.rpartition(".")[2]):
        if name in OTHER_VALUES:
            return OTHER_VALUES[name]
    value, choices = option.value, options._choices(option.hint)
    if choices:
        return next(choice for choice in choices if choice not in (value, "auto", "no"))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 or 3
    if isinstance(value, float):
        return value / 2 or 0.25
    assert isinstance(value, tuple) and value, f"give {option.name} another value in OTHER_VALUES"
    return tuple(2 * width for width in value)


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch, without_ending: None, tmp_path: Path) -> Callable[[ModuleType, Any], str]:
    """What a recipe does in three steps: loss and terms of each, and the statistics of batch norms, to the bit."""
    lines: list[str] = []
    folders: Iterator[Path] = (tmp_path / str(number) for number in range(1000))

    def note(run: Run, step: int, output: Any, **numbers: Any) -> None:
        lines.append(repr((output.loss.item(), {name: value.item() for name, value in output.terms.items()})))

    monkeypatch.setattr(Run, "log", note)

    def note_buffers(run: Run) -> None:
        lines.append(repr([(name, value.double().sum().item()) for name, value in run.objective.named_buffers()]))

    monkeypatch.setattr(Run, "save", note_buffers)

    def learn(recipe: ModuleType, config: Any) -> str:
        lines.clear()
        forget_processes()
        recipe.main(dataclasses.replace(config, out=next(folders)))
        return "\n".join(lines)

    return learn


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_an_option_acts_or_is_refused(
    name: str, small_config: SmallConfig, learnt: Callable[[ModuleType, Any], str]
) -> None:
    recipe = load_recipe(name)
    # The options that all recipes share are tried with sie: a warm-up and a cosine act within its first epoch, and the
    # fourth step is the second epoch's first one unless the 3 objects left over are kept.
    sizes = {"steps": 4, "batch_size": 7, "warmup_steps": 1} if name == "sie" else {"steps": 3, "warmup_steps": 0}
    config = small_config(recipe, mixed_precision="no", **sizes)
    before = learnt(recipe, config)
    assert learnt(recipe, config) == before, "the comparison would mean nothing"
    shared = {entry.name for entry in dataclasses.fields(PretrainingOptions)}
    ignored = []
    for option in options._options(config):
        if option.name in ACT_ELSEWHERE or (option.name in shared and name != "sie"):
            continue
        other = with_changes(config, {option.name: other_value(option)})
        try:
            check_options(other, config)
        except UserError as refused:
            # Of a switch that was turned off, its name follows "no-".
            assert option.flag.rpartition(".")[2].removeprefix("--") in str(refused)
            continue
        try:
            if learnt(recipe, other) == before:
                ignored.append(option.name)
        except (UserError, ValueError) as refused:
            assert ": " in str(refused)
    assert not ignored
