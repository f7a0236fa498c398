"""Runs that start from trained weights: which encoder, which weights, and how fast it moves."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_equi.cli import run_recipe
from ssl_equi.errors import RunError
from ssl_equi.export.encoder import load_encoder, read_encoder_config
from ssl_equi.training.optimisation import parameter_groups_of
from ssl_equi.training.pretraining import with_named_encoder
from tests.fakes import SmallConfig, load_recipe, process_of_its_own
from tests.real_data import shared_data

sie, simsiam, vicreg = (load_recipe(name) for name in ("sie", "simsiam", "vicreg"))


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


@pytest.fixture(scope="module")
def trained_run(small_config: SmallConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of VICReg with an encoder of its own."""
    folder = tmp_path_factory.mktemp("trained") / "vicreg"
    with process_of_its_own():
        vicreg.main(small_config(vicreg, out=folder, encoder="strided_cnn_nano_pooled", steps=2, evaluate=False))
    return folder


def test_a_run_starts_from_the_encoder_of_another(trained_run: Path, small_config: SmallConfig, tmp_path: Path) -> None:
    plain = small_config(sie, out=tmp_path / "run", steps=1, evaluate=False)
    config = with_named_encoder(replace(plain, init=str(trained_run), encoder_rate_factor=0.0))
    assert config.encoder == "strided_cnn_nano_pooled" != plain.encoder

    trained = load_encoder(trained_run / "encoder")
    objective = sie.build(config)
    assert equal_states(objective.encoder, trained)
    fresh = sie.build(replace(config, init=None))
    assert equal_states(objective.predictor, fresh.predictor) and not equal_states(objective.encoder, fresh.encoder)

    sie.main(config)
    exported = load_encoder(tmp_path / "run" / "encoder")
    weights = [dict(module.named_parameters()) for module in (exported, trained)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1]), "its rate is 0"
    described = read_encoder_config(tmp_path / "run" / "encoder")
    assert described["pretrained_cfg"]["license"] == "other", "of weights that may have terms of their own"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init"] == str(trained_run)


def test_the_encoder_is_named_once(
    trained_run: Path, small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(trained_run)
    with pytest.raises(RunError, match="is no strided_cnn_nano: let `with_named_encoder` complete"):
        sie.build(small_config(sie, init=folder, encoder="strided_cnn_nano"))
    monkeypatch.setattr(sys, "argv", ["sie.py", "--init", folder, "--encoder", "resnet18"])
    with pytest.raises(SystemExit, match="1"):
        run_recipe(sie.main, sie.CONFIGS, sie.__doc__)
    sentence = "error: --encoder is resnet18 and has no effect: leave out --init, which names the encoder"
    assert sentence in capsys.readouterr().err


def test_the_encoder_moves_at_a_rate_of_its_own(small_config: SmallConfig) -> None:
    config = small_config(sie, encoder_rate_factor=0.1, bias_and_norm_rate_factor=0.5)
    objective = sie.build(config)
    groups = parameter_groups_of(objective, config)
    assert [group["rate_factor"] for group in groups] == [0.1, 0.05, 1.0, 0.5]
    of_encoder = set(objective.encoder.parameters())
    in_groups = [parameter for group in groups for parameter in group["params"]]
    assert len(in_groups) == len(set(in_groups)) == sum(1 for p in objective.parameters() if p.requires_grad)
    assert set(groups[0]["params"] + groups[1]["params"]) == of_encoder


def test_the_constant_rate_of_simsiams_predictor_is_apart_from_the_encoders(small_config: SmallConfig) -> None:
    config = small_config(simsiam, constant_predictor_rate=True, encoder_rate_factor=0.1)
    groups = simsiam.simsiam_optimizer(simsiam.build(config), config).param_groups
    rates = [(group["rate_factor"], group.get("constant_rate")) for group in groups]
    assert rates == [(0.1, None), (1.0, None), (1.0, config.learning_rate)]


def test_real_weights_of_timm_are_where_a_run_begins(small_config: SmallConfig) -> None:
    weights = shared_data("efficientnet_lite0") / "model.safetensors"
    config = with_named_encoder(small_config(sie, init=f"timm:tf_efficientnet_lite0@{weights}", image_size=64))
    assert (config.encoder, config.encoder_arguments) == ("tf_efficientnet_lite0", {})
    theirs = timm.create_model(
        "tf_efficientnet_lite0",
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(weights), "source": ""},
    ).eval()
    objective = sie.build(config)
    images = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features: Tensor = objective.encoder.eval()(images[:, 0])
        assert torch.equal(features, theirs(images[:, 0]))
    objective.train()
    loss = objective(images, torch.nn.functional.normalize(torch.ones(2, 4), dim=1)).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.encoder.parameters())
