"""EquiCaps on objects that move: what a run leaves, in both frames and both precisions."""

import math
from pathlib import Path

import pytest
import torch

from recipes import equicaps
from ssl_equi import load_encoder
from ssl_equi.evaluation.results import read_records
from ssl_equi.export.encoder import parts_of, read_encoder_config
from tests.fakes import SmallConfig, numbers

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.mark.parametrize(("actions", "mixed_precision"), [("pose_base", "no"), ("pose_object", "bf16")])
def test_a_run_on_moving_objects_leaves_its_capsules_and_asks_for_translations(
    actions: str, mixed_precision: str, small_config: SmallConfig, tiny_moving_data: Path, tmp_path: Path
) -> None:
    config = small_config(
        equicaps, "translated", data_dir=tiny_moving_data, out=tmp_path, steps=3, actions=(actions,),
        mixed_precision=mixed_precision, compare_with_random=False,
    )  # fmt: skip
    equicaps.main(config)
    losses = numbers(tmp_path)
    assert len(losses) == 3 and all(math.isfinite(line["loss"]) and line["equivariance"] > 0 for line in losses)
    tasks = {record.task for record in read_records(tmp_path / "results.json")}
    assert {"relative_rotation", "translation_object", "translation_base", "capsule_rotation"} <= tasks

    card = read_encoder_config(tmp_path / "capsule_network")
    assert parts_of(card) == {"capsules": slice(0, 68), "inv": slice(0, 4), "equi": slice(4, 68)}
    network = load_encoder(tmp_path / "capsule_network")
    images = torch.randn(5, 3, 32, 32)
    features, capsules = network.features_and_capsules(images)
    torch.testing.assert_close(features, load_encoder(tmp_path / "encoder")(images))
    torch.testing.assert_close(network(images), torch.cat([capsules.activations, capsules.poses.flatten(1)], dim=1))
