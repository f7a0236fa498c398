"""Model cards: the facts of the encoder's config, and the numbers of its run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ssl_equi.evaluation.model_card import model_card
from ssl_equi.evaluation.results import append_records
from ssl_equi.export.encoder import read_encoder_config
from tests.fakes import RECORD, export_small_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A run with numbers of the encoder's parts, of single classes, and of what lies above the encoder."""
    folder = tmp_path_factory.mktemp("runs") / "sie"
    records = [
        replace(RECORD, object_standard_error=0.44, interval_low=22.0, interval_high=25.0),
        replace(RECORD, task="classification", part="all", metric="top1", value=0.75, baseline=0.25,
                baseline_name="majority class", random_encoder=None, n=64),
        replace(RECORD, task="classification", part="all", metric="top1_of_mug"),
        replace(RECORD, part="agg@3"),
    ]  # fmt: skip
    append_records(folder / "results.json", records, {"steps": 1200})
    return folder, export_small_encoder(folder / "encoder")


def rows_of(card: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in card.splitlines() if line.startswith("| ")]


def test_the_card_has_the_facts_and_the_numbers(run: tuple[Path, nn.Module]) -> None:
    folder, encoder = run
    card = model_card(folder / "encoder", "hf-hub:owner/name")
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: timm\npipeline_tag: image-feature-extraction\n")
    assert "\n# strided\\_cnn\\_nano.sie\\_3diebench\\_p\n" in card
    facts = {row[0]: row[1] for row in rows_of(card) if len(row) == 2}
    assert facts["architecture"] == r"strided\_cnn\_nano" and facts["objective"] == "sie"
    assert facts["parameters"] == f"{sum(parameter.numel() for parameter in encoder.parameters()):,}"
    assert facts["trained on"] == "3diebench-p 0123456789abcdef (name and fingerprint)"
    assert (facts["features"], facts["steps"], facts["licence of the weights"]) == ("256", "1,200", "apache-2.0")
    assert facts["images"].startswith("RGB, 32 x 32 pixels") and "[0.41, 0.42, 0.43]" in facts["normalisation"]
    parts = {row[0]: row[1] for row in rows_of(card) if len(row) == 3}
    assert (parts["`all`"], parts["`inv`"], parts["`equi`"]) == ("0 to 255", "0 to 127", "128 to 255")
    head, _, *numbers = [row for row in rows_of(card) if len(row) == 10]
    assert head == ["task", "part", "metric", "split", "protocol", "seed", "value", "baseline", "random", "n"]
    conditions = ["test", r"ssl\_equi\_v1", "0"]
    assert numbers == [
        [r"relative\_rotation", "equi", r"angle\_deg\_median", *conditions, "23.5° ± 0.4° [22.0°, 25.0°]", "110.2°",
         "98.7°", "1,920"],
        ["classification", "all", "top1", *conditions, "0.750", "0.250", "-", "64"],
    ]  # fmt: skip
    assert "- baseline: the best constant answer, or as named (top1: majority class)\n" in card


def test_its_three_lines_load_the_encoder(run: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, encoder = run
    code = re.search(r"```python\n(.*?)```", model_card(folder / "encoder", "local-dir:encoder"), re.DOTALL)
    assert code is not None and "import ssl_equi.encoders.strided_cnn\n" in code[1]
    monkeypatch.chdir(folder)
    images = torch.randn(2, 3, 32, 32)
    names = {"images": images}
    exec(code[1], names)
    assert torch.equal(names["features"], encoder(images))


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    export_small_encoder(tmp_path / "encoder", "resnet10t")
    card = model_card(tmp_path / "encoder", "local-dir:encoder")
    assert "Plain timm opens it." in card and "Results" not in card and "| steps | not stated |" in card


def test_a_folder_that_timm_saved_says_what_it_knows(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=0)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    config = read_encoder_config(tmp_path / "saved")
    config["pretrained_cfg"]["license"] = "free: for all\n"
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    card = model_card(tmp_path / "saved", "local-dir:saved")
    assert "\nlicense: other\n" in card and "| licence of the weights | free: for all |" in card
    assert "| objective | not stated |" in card and "176 x 176 pixels" in card and "columns" not in card
