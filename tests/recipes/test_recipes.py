"""Every recipe, from its configurations to its report, on a tiny rendered set."""

import dataclasses
import inspect
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from recipes import sie
from ssl_equi import load_encoder
from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.cli import parse_command_line
from ssl_equi.data.images import normalise_images
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, CORE_TASKS
from ssl_equi.export.encoder import read_encoder_config
from ssl_equi.export.predictor import load_predictor
from ssl_equi.latents.actions import ToldActions
from tests.fakes import (
    NEEDS_TRANSLATIONS,
    RECIPES,
    SmallConfig,
    event_lines,
    forget_processes,
    load_recipe,
    losses,
    numbers,
    train_only,
)

STEPS = 3
# Recipes whose objectives predict with an action, and the part whose gain is judged: none of glimpses.
PARTS_OF_GAINS = dict.fromkeys(("sie", "equimod", "sen", "conditional_byol"), "all") | {
    "capsie": "capsules", "equicaps": "capsules", "seq_jepa": "pred@3", "conv_jepa": None, "seq_jepa_saccades": None,
}  # fmt: skip


class FinishedRun(NamedTuple):
    recipe: ModuleType
    config: Any
    folder: Path


@pytest.fixture(scope="module")
def finished(small_config: SmallConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FinishedRun]:
    """Trains a recipe for three steps when it is first asked for."""
    runs: dict[str, FinishedRun] = {}

    def run(name: str) -> FinishedRun:
        if name not in runs:
            recipe, folder = load_recipe(name), tmp_path_factory.mktemp(name) / "run"
            config = small_config(recipe, out=folder, steps=STEPS, save_every=2)
            recipe.main(config)
            runs[name] = FinishedRun(recipe, config, folder)
        return runs[name]

    return run


def test_recipes_are_found() -> None:
    assert len(RECIPES) >= 14 and {"sie", "vicreg", "simclr", "essl", "care", "supervised"} <= set(RECIPES)


def process_state() -> tuple[object, ...]:
    """What a function without side effects leaves alone (it may draw from the random generator)."""
    # Older releases of lightly note in the environment that they were imported.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTLY_")}
    return (
        environment, dict(AcceleratorState._shared_state), torch.get_default_dtype(), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_build_has_no_side_effects_and_follows_the_seed(
    name: str, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    config = small_config(recipe)
    before = process_state()
    first, second = recipe.build(config), recipe.build(config)
    other = recipe.build(dataclasses.replace(config, seed=1))
    assert process_state() == before
    assert list(tmp_path.iterdir()) == []
    weights = [torch.cat([value.flatten() for value in module.parameters()]) for module in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", RECIPES)
def test_the_named_configurations_build_objectives_with_the_part_all(name: str) -> None:
    recipe = load_recipe(name)
    assert next(iter(recipe.CONFIGS)) == "embedded"
    for configure in recipe.CONFIGS.values():
        with torch.device("meta"):  # the papers' sizes, without their memory
            objective = recipe.build(configure())
        assert objective.parts["all"] == slice(0, objective.encoder.num_features)
        assert all(0 <= part.start < part.stop <= objective.parts["all"].stop for part in objective.parts.values())


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sie_has_the_sizes_of_the_paper() -> None:
    objective = sie.build(sie.paper())
    assert objective.encoder.num_features == 512
    assert objective.parts == {"all": slice(0, 512), "inv": slice(0, 256), "equi": slice(256, 512)}
    assert count(objective.predictor) == 4_194_304
    assert [count(objective.projectors[part]) for part in ("inv", "equi")] == [2_365_440, 2_365_440]


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_leaves_its_files_and_finite_losses(name: str, finished: Callable[[str], FinishedRun]) -> None:
    run = finished(name)
    files = {"config.json", "versions.json", "metrics.jsonl", "checkpoints", "encoder", "results.json", "report.html"}
    assert files <= {path.name for path in run.folder.iterdir()}
    assert not list(run.folder.rglob(".writing-*"))
    predicts = name in ("sie", "sen", "equimod", "conditional_byol", "equicaps", "capsie")
    assert (run.folder / "predictor").exists() == predicts
    if predicts:
        predictor = load_predictor(run.folder / "predictor")
        assert (predictor.name, predictor.actions) == (name, ToldActions.of("rotation"))
        assert read_encoder_config(run.folder / predictor.features_from)["num_features"] == predictor.num_features
    assert json.loads((run.folder / "config.json").read_text())["image_size"] == 32
    assert "torch" in json.loads((run.folder / "versions.json").read_text())
    lines = numbers(run.folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        values = {key: value for key, value in line.items() if key not in ("event", "step")}
        assert "loss" in values and len(values) > 2
        assert all(math.isfinite(value) for value in values.values()), line
    assert event_lines(run.folder, "online_probe") and event_lines(run.folder, "speed")
    assert [path.name for path in list_checkpoints(run.folder / "checkpoints")] == ["step-00000002", "step-00000003"]


def tiny_images(data_dir: Path) -> Tensor:
    dataset = ShardDataset(data_dir, "test")
    pixels = np.empty((6, 2, 32, 32, 3), dtype=np.uint8)
    dataset.read_views(np.arange(6), np.tile([0, 3], (6, 1)), pixels)
    assert dataset.manifest.mean_rgb is not None and dataset.manifest.std_rgb is not None
    return normalise_images(torch.from_numpy(pixels).flatten(0, 1), dataset.manifest.mean_rgb, dataset.manifest.std_rgb)


def built(run: FinishedRun) -> Any:
    """The objective anew; some depend on the data."""
    needs_data = "data" in inspect.signature(run.recipe.build).parameters
    return run.recipe.build(run.config, run.config.open_data()) if needs_data else run.recipe.build(run.config)


@pytest.mark.parametrize("name", RECIPES)
def test_the_exported_encoder_is_that_of_the_checkpoint(
    name: str, finished: Callable[[str], FinishedRun], tiny_data: Path
) -> None:
    run = finished(name)
    state = read_state(list_checkpoints(run.folder / "checkpoints")[-1], "objective")
    objective = built(run)
    encoder, images = objective.encoder.eval(), tiny_images(tiny_data)
    with torch.inference_mode():
        untrained = encoder(images)
        objective.load_state_dict(state)
        expected = encoder(images)
        ours = load_encoder(run.folder / "encoder")(images)
        theirs = timm.create_model(f"local-dir:{run.folder / 'encoder'}", pretrained=True).eval()(images)
    assert (ours - expected).abs().max() <= 1e-6
    assert (theirs - expected).abs().max() <= 1e-6
    assert (ours - untrained).abs().max() > 1e-4, "the training left no trace in the exported encoder"


@pytest.mark.parametrize("name", RECIPES)
def test_results_have_every_task_on_every_part_beside_its_baselines(
    name: str, finished: Callable[[str], FinishedRun], tiny_data: Path
) -> None:
    run = finished(name)
    results = json.loads((run.folder / "results.json").read_text())
    parts = built(run).parts
    names = [(record["task"], record["part"], record["metric"]) for record in results["records"]]
    assert len(set(names)) == len(names)
    # What is asked of sequences of M views (parts PART@M) and of capsules has no random encoder beside it.
    of_single_views = [
        record
        for record in results["records"]
        if "@" not in record["part"] and record["part"] != "capsules" and record["task"] != "action_gain"
    ]
    assert {(record["task"], record["part"]) for record in of_single_views} == {
        (task, part) for task in {*CORE_TASKS, AUGMENTATION_EQUIVARIANCE} - {*NEEDS_TRANSLATIONS} for part in parts
    }
    for record in of_single_views:
        assert all(math.isfinite(record[field]) for field in ("value", "baseline", "random_encoder")), record
        assert record["baseline_name"] and record["protocol"] == "ssl_equi_v1"
        assert (record["split"], record["num_objects"]) == ("test", 12)
    assert results["run"]["name"] == name
    assert results["run"]["steps"] == STEPS
    assert results["run"]["train_fingerprint"] == ShardDataset(tiny_data, "train").fingerprint


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_predict_with_actions_say_whether_they_use_them(
    name: str, finished: Callable[[str], FinishedRun]
) -> None:
    """At every line of the log and, between stored views, on the judged split with its interval."""
    folder = finished(name).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gains = [line["action_gain"] for line in lines if line["event"] == "loss" and "action_gain" in line]
    judged = [record for record in json.loads((folder / "results.json").read_text())["records"]
              if record["task"] == "action_gain"]  # fmt: skip
    assert len(gains) == (sum(line["event"] == "loss" for line in lines) if name in PARTS_OF_GAINS else 0)
    assert [record["part"] for record in judged] == ([PARTS_OF_GAINS[name]] if PARTS_OF_GAINS.get(name) else [])
    assert all(record["interval_low"] <= record["value"] <= record["interval_high"] for record in judged)
    assert ("Are the actions used?" in (folder / "report.html").read_text()) == (name in PARTS_OF_GAINS)


@pytest.mark.parametrize("name", RECIPES)
def test_the_report_is_one_file_that_asks_the_network_for_nothing(
    name: str, finished: Callable[[str], FinishedRun]
) -> None:
    page = (finished(name).folder / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "data:image/" in page or "<svg" in page
    tags = r"<link\b|<iframe\b|@import\b|<script[^>]*\bsrc"
    addresses = r"""(?:src|srcset|href)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?http"""
    assert re.findall(f"{tags}|{addresses}", page, flags=re.IGNORECASE) == []


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize(
    ("changes", "parts", "terms"),
    [
        ({"actions": ("rotation_color",)}, {"all", "inv", "equi"}, {"invariance", "equivariance"}),
        ({"objective.parts": "inv_only"}, {"all", "inv", "equi"}, {"invariance"}),
        ({"objective.parts": "equi_only"}, {"all"}, {"equivariance"}),
        ({"objective.predictor": "mlp"}, {"all", "inv", "equi"}, {"invariance", "equivariance"}),
    ],
    ids=["rotation_color", "inv_only", "equi_only", "mlp"],
)
def test_variants_of_sie_train_and_are_probed(
    small_config: SmallConfig,
    tmp_path: Path,
    changes: dict[str, Any],
    parts: set[str],
    terms: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    sie.main(small_config(sie, out=tmp_path / "run", steps=STEPS, compare_with_random=False, **changes))
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("sie ")]
    assert shown == ["1/3", "3/3"], "a log file shows the first steps and the last"
    lines = numbers(tmp_path / "run")
    assert len(lines) == STEPS
    for line in lines:
        assert {"invariance", "equivariance"} & set(line) == terms
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
    records = json.loads((tmp_path / "run" / "results.json").read_text())["records"]
    assert {record["part"] for record in records} == parts


def test_bf16_follows_fp32_and_exports_fp32(
    small_config: SmallConfig, finished: Callable[[str], FinishedRun], tmp_path: Path, quick_probes: None
) -> None:
    expected = losses(finished("sie").folder)
    forget_processes()
    sie.main(small_config(sie, out=tmp_path / "bf16", steps=STEPS, compare_with_random=False, mixed_precision="bf16"))
    found = losses(tmp_path / "bf16")
    assert found != expected
    assert found == pytest.approx(expected, rel=0.03)
    weights = load_encoder(tmp_path / "bf16" / "encoder").state_dict().values()
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU"),
            ],
        ),
    ],
)
@pytest.mark.parametrize(
    "name", [name if name == "equicaps" else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_compiled_networks_learn_the_same_and_keep_their_names(
    name: str,
    backend: str,
    small_config: SmallConfig,
    tmp_path: Path,
    quick_probes: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_function, recipe = torch.compile, load_recipe(name)  # modules are compiled by it, too
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_function(function, backend=backend))
    config = small_config(recipe, out=tmp_path / "plain", steps=2, compare_with_random=False)
    train_only(recipe, config)
    forget_processes()
    recipe.main(dataclasses.replace(config, out=tmp_path / "compiled", compile=True))
    # SimSiam's is a mean of cosines, and starts near zero.
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4, abs=1e-4)
    names = load_encoder(tmp_path / "compiled" / "encoder").state_dict().keys()
    assert not [name for name in names if "_orig_mod" in name]


VIT: dict[str, int | float | bool | str] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("encoder", "arguments", "exported"),
    [
        ("vit_tiny_patch16_224", VIT, {"img_size": 32} | VIT),
        ("octic_vit_tiny_patch16_224", VIT | {"invariants": "none"}, {"img_size": 32, "invariants": "none"} | VIT),
        ("resnet10t", {"drop_rate": 0.1}, {"drop_rate": 0.1}),
    ],
)
def test_an_encoder_made_with_arguments_is_exported_with_them(
    encoder: str,
    arguments: dict[str, int | float | bool | str],
    exported: dict[str, Any],
    small_config: SmallConfig,
    tmp_path: Path,
    quick_probes: None,
) -> None:
    pairs = [str(word) for pair in arguments.items() for word in pair]
    parsed = parse_command_line(sie.Config, "", arguments=["--encoder-arguments", *pairs])
    assert parsed.encoder_arguments == arguments
    network = {"encoder": encoder, "encoder_arguments": arguments}
    sie.main(small_config(sie, out=tmp_path, steps=1, compare_with_random=False, **network))
    card = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert card["model_args"] == exported
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    features = load_encoder(tmp_path / "encoder")(images)
    assert features.shape == (2, card["num_features"])
    if encoder == "resnet10t":
        opened = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, **arguments).eval()
        torch.testing.assert_close(opened(images), features)


def test_a_run_that_is_shorter_than_its_warm_up_says_so(
    small_config: SmallConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vicreg = load_recipe("vicreg")
    config = small_config(vicreg, steps=1, evaluate=False)
    sentence = "the run has 6 steps and its learning rate rises for 6: give more --epochs or fewer --warmup-steps"
    for warmup_steps, warns in ((6, True), (5, False)):
        forget_processes()
        vicreg.main(dataclasses.replace(config, out=tmp_path / str(warmup_steps), warmup_steps=warmup_steps))
        assert (f"warning: {sentence}" in capsys.readouterr().out) == warns
