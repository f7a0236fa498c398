"""Runs that start from trained weights: which encoder, which weights, and how fast it moves."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.cli import run_recipe
from ssl_equi.encoders.layer_groups import layer_groups
from ssl_equi.errors import RunError, UserError
from ssl_equi.export.encoder import load_encoder, read_encoder_config
from ssl_equi.objectives.base import Objective
from ssl_equi.training.optimisation import freeze, optimizer_of, parameter_groups_of
from ssl_equi.training.pretraining import initial_encoder, with_named_encoder
from tests.fakes import SmallConfig, load_recipe, process_of_its_own
from tests.real_data import shared_data

NANO = "strided_cnn_nano"
byol, sie, simsiam, vicreg = (load_recipe(name) for name in ("byol", "sie", "simsiam", "vicreg"))


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
    assert equal_states(exported, trained), "its rate is 0: weights and statistics stay"
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


def changed_by_group(before: dict[str, Tensor], encoder: nn.Module, after: dict[str, Tensor]) -> dict[int, set[bool]]:
    """By layer group of an encoder, whether its weights and statistics have changed."""
    changed: dict[int, set[bool]] = {}
    for name, number in layer_groups(encoder).numbers.items():
        changed.setdefault(number, set()).add(not torch.equal(before[name], after[name]))
    return changed


@pytest.mark.parametrize(
    ("encoder", "arguments", "count"),
    [
        (NANO, {}, 5),
        ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}, 4),
    ],
)
def test_frozen_layers_stay_in_the_encoder_and_in_its_target(
    encoder: str, arguments: dict[str, int], count: int, small_config: SmallConfig, without_ending: None,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = {"encoder": encoder, "encoder_arguments": arguments, "frozen_layers": 2, "layer_decay": 0.5, "steps": 2}
    config = small_config(byol, out=tmp_path, **options)
    byol.main(config)
    assert f"the first 2 of {count} layer groups of the encoder are frozen, the rest learns" in capsys.readouterr().out
    first = byol.build(config)
    trained = read_state(list_checkpoints(tmp_path / "checkpoints")[-1], "objective")
    for network in ("encoder", "target_encoder"):
        after = {name.removeprefix(f"{network}."): value for name, value in trained.items() if name.startswith(network)}
        changed = changed_by_group(getattr(first, network).state_dict(), first.encoder, after)
        assert changed == {number: {number >= 2} for number in range(count)}, network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder": NANO, "frozen_layers": 6},
            "strided_cnn_nano has 5 layer groups: give at most 5, or --encoder-rate",
        ),
        ({"encoder": "group_averaged", "layer_decay": 0.5}, "the encoder GroupAveraged has no group_matcher"),
    ],
)
def test_what_can_not_be_frozen_is_refused_with_a_sentence(
    options: dict[str, Any], message: str, small_config: SmallConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        vicreg.main(small_config(vicreg, out=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_frozen_encoder_without_heads_is_refused(small_config: SmallConfig) -> None:
    config = small_config(vicreg, encoder=NANO, encoder_rate_factor=0.0)
    with pytest.raises(RunError, match="leave nothing to train, since the objective has no heads: freeze less"):
        freeze(Objective(initial_encoder(config)), config)


def test_real_weights_are_frozen_up_to_a_block_and_decay_behind_it(small_config: SmallConfig) -> None:
    weights = shared_data("efficientnet_lite0") / "model.safetensors"
    options = {"frozen_layers": 9, "layer_decay": 0.75, "decay_bias_and_norm": False, "weight_decay": 1e-4}
    config = with_named_encoder(
        small_config(sie, init=f"timm:tf_efficientnet_lite0@{weights}", image_size=64, **options)
    )
    objective = sie.build(config)
    freeze(objective, config)
    groups = parameter_groups_of(objective, config)
    assert sorted({group["rate_factor"] for group in groups}) == [0.75**power for power in range(8, -1, -1)]
    optimizer = optimizer_of(objective, config)
    before = {name: value.clone() for name, value in objective.encoder.state_dict().items()}
    images = torch.randn(4, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    objective(images, torch.nn.functional.normalize(torch.ones(4, 4), dim=1)).loss.backward()
    optimizer.step()
    changed = changed_by_group(before, objective.encoder, objective.encoder.state_dict())
    assert changed == {number: {number >= 9} for number in range(17)}


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
