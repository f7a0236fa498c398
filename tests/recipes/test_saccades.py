"""seq-JEPA on glimpses: what a run leaves, on the embedded set and on pictures of all sizes, and what it refuses."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from recipes import seq_jepa_saccades as saccades
from ssl_equi.export.encoder import read_encoder_config
from ssl_equi.export.sequence_model import load_sequence_model
from ssl_equi.views import saliency
from ssl_equi.views.glimpses import SaccadeOptions, described_saccades
from tests.fakes import SmallConfig, event_lines, load_recipe, numbers, refused

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency, "user_cache_path", lambda name: tmp_path / "cache" / name)


def test_a_run_leaves_a_sequence_model_that_knows_its_gaze(small_config: SmallConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    gaze = SaccadeOptions(glimpse_size=16, inhibition_radius_px=6)
    colours = {"mean_rgb": (0.1, 0.2, 0.3), "std_rgb": (0.4, 0.5, 0.6)}
    saccades.main(small_config(saccades, out=out, steps=3, saccades=gaze, compare_with_random=False, **colours))
    losses = numbers(out)
    assert [line["step"] for line in losses] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) and line["std_agg"] > 0 for line in losses)
    assert {"encoder", "sequence_model", "results.json", "report.html"} <= {path.name for path in out.iterdir()}
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1, "the maps of train, computed once"
    model = load_sequence_model(out / "sequence_model")
    assert {"mean_rgb": model.mean_rgb, "std_rgb": model.std_rgb} == colours
    assert read_encoder_config(out / "encoder")["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert model.sequences["observed_views"] == 4 and model.objective.config.action_dim == 2
    assert described_saccades(model.sequences) == gaze
    features = model.objective.encoder(torch.zeros(2, 3, 16, 16))
    assert model.objective.aggregate(features.unsqueeze(0), torch.zeros(1, 1, 2)).isfinite().all()


@pytest.mark.parametrize("recipe", ["seq_jepa_saccades", "conv_jepa"])
def test_stl10_is_normalised_as_in_the_released_code(recipe: str) -> None:
    config = load_recipe(recipe).CONFIGS["stl10"]()
    assert (config.mean_rgb, config.std_rgb) == ((0.4467, 0.4398, 0.4066), (0.2241, 0.2215, 0.2239))


def test_pictures_of_all_sizes_are_cropped_and_looked_at(
    small_config: SmallConfig, mixed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gaze = SaccadeOptions(glimpse_size=16, inhibition_radius_px=6)
    config = small_config(
        saccades, out=tmp_path / "run", steps=2, saccades=gaze, compare_with_random=False, dataset="folder",
        data_dir=mixed_folder, evaluation_split="val", batch_size=4,
    )  # fmt: skip
    sentence = refused(lambda: saccades.main(config), capsys)
    assert "choose --saccades.augmentation crop_flip, which crops them to one" in sentence
    cropped = dataclasses.replace(gaze, augmentation="crop_flip")
    saccades.main(dataclasses.replace(config, saccades=cropped, out=tmp_path / "cropped"))
    assert len(event_lines(tmp_path / "cropped")) == 2


def test_an_encoder_of_fixed_input_size_is_refused_before_anything_is_made(
    small_config: SmallConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(saccades, out=tmp_path / "run", encoder="vit_tiny_patch16_224", image_size=64)
    sentence = refused(lambda: saccades.main(config), capsys)
    assert "--encoder vit_tiny_patch16_224 takes images of one size" in sentence
    assert not (tmp_path / "run").exists()
