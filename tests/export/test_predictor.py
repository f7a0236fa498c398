"""Exported predictors: what the training step computes, opened as saved, and nothing else is taken for one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.export.predictor import PredictorCard, load_predictor, save_predictor
from ssl_equi.geometry.rotations import random_quat
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.byol import ConditionalBYOL, ConditionalBYOLConfig
from ssl_equi.objectives.capsie import CapsIE, CapsIEConfig
from ssl_equi.objectives.equicaps import EquiCaps, EquiCapsConfig
from ssl_equi.objectives.equimod import EquiMod, EquiModConfig
from ssl_equi.objectives.parts.batch import convert_sync_batchnorm
from ssl_equi.objectives.parts.predictors import PoseProduct, ProjectedPredictor
from ssl_equi.objectives.sen import SEN, SENConfig
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.objectives.simclr import SimCLR
from tests.fakes import with_other_values

SIDE, BATCH = 32, 6
WIDTHS = (24, 24, 16)
ACTION_DIMS = {"rotation": 4, "rotation_color": 6, "pose_base": 7, "pose_object": 7, "augmentation": 3}


def actions_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    further = torch.randn(BATCH, ACTION_DIMS[kind], generator=generator)
    if kind == "augmentation":
        return further
    return torch.cat([random_quat(BATCH, generator, torch.float32), further[:, 4:]], dim=1)


def told(kind: str) -> ToldActions:
    return ToldActions.of(kind, ACTION_DIMS[kind])


def encoder() -> nn.Module:
    return create_encoder("strided_cnn_tiny", SIDE)


def capsules(side: int) -> CapsuleNetwork:
    return CapsuleNetwork(create_encoder("strided_cnn_pooled", SIDE), SIDE, 4, side, routing_std=0.3)


def sie(kind: str = "rotation", **changes: Any) -> SIE:
    return SIE(encoder(), SIEConfig(projector=(48, 48, 32), action_dim=ACTION_DIMS[kind], **changes))


def equimod(**changes: Any) -> EquiMod:
    return EquiMod(encoder(), EquiModConfig(projector=WIDTHS, **changes))


DEEP = {"predictor": "hypernetwork_deep", "hypernetwork_bias": True, "predicted_bias": True}
MLP = {"predictor": "mlp", "mlp_layers": 3, "equi_dim": 100}
VICREG_FORM = {"form": "vicreg", "predictor": "hypernetwork", "action_dim": 7, "last_bias": False}
BYOL = ConditionalBYOLConfig(projector=WIDTHS, predictor_hidden_width=12)
MAKERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "sie": ("rotation", sie),
    "sie deep, biased": ("rotation_color", lambda: sie("rotation_color", **DEEP)),
    "sie mlp": ("augmentation", lambda: sie("augmentation", **MLP)),
    "sie equi_only": ("rotation", lambda: sie(parts="equi_only")),
    "equimod": ("rotation", lambda: equimod(action_width=8)),
    "equimod vicreg": ("pose_base", lambda: equimod(**VICREG_FORM)),
    "equimod of several processes": ("rotation", lambda: convert_sync_batchnorm(equimod(action_width=8))),
    "sen": ("rotation", lambda: SEN(encoder(), SENConfig(projector=WIDTHS, last_batch_norm="affine"))),
    "conditional_byol": ("rotation", lambda: ConditionalBYOL(encoder(), BYOL)),
    "equicaps": ("rotation", lambda: EquiCaps(capsules(3))),
    "equicaps 4 x 4": ("pose_object", lambda: EquiCaps(capsules(4), EquiCapsConfig(pose_norm="published"))),
    "capsie": ("rotation", lambda: CapsIE(capsules(4), CapsIEConfig())),
}


def compared_in_training(objective: nn.Module, views: Tensor, actions: Tensor, monkeypatch) -> tuple[Tensor, Tensor]:
    """Prediction and target that the equivariance term compares in the training step, which runs in eval mode."""
    calls: list[tuple[Tensor, Tensor]] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Tensor, second: Tensor) -> Any:
            calls.append((first, second))
            return function(first, second)

        return call

    module = __import__(type(objective).__module__, fromlist=["invariance_term"])
    vicreg_form = isinstance(objective, EquiMod) and objective.config.form == "vicreg"
    if vicreg_form or isinstance(objective, SIE | EquiCaps | CapsIE):
        monkeypatch.setattr(module, "invariance_term", noted(module.invariance_term))
    elif isinstance(objective, ConditionalBYOL):
        objective.negative_cosine.register_forward_pre_hook(lambda _, pair: calls.append(pair))
    else:
        monkeypatch.setattr(objective, "_contrastive_loss", noted(objective._contrastive_loss))
    objective(views, actions)
    prediction, target = calls[-1]
    return prediction.flatten(1), target.flatten(1)


@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_an_exported_predictor_computes_what_the_training_step_compares(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, make = MAKERS[name]
    objective = with_other_values(make())
    save_predictor(
        objective.latent_predictor(), tmp_path / "predictor", PredictorCard(name, told(kind), "3diebench-p 01")
    )
    views, actions = torch.randn(BATCH, 2, 3, SIDE, SIDE), actions_of(kind)
    if isinstance(objective, ConditionalBYOL):
        objective.target_encoder.load_state_dict(objective.encoder.state_dict())
        objective.target_projector.load_state_dict(objective.projector.state_dict())
    prediction, target = compared_in_training(objective, views, actions, monkeypatch)

    predictor = load_predictor(tmp_path / "predictor")
    assert (predictor.name, predictor.actions, predictor.training) == (name, told(kind), False)
    source = objective.network if predictor.features_from == "capsule_network" else objective.encoder
    first, second = (source(views[:, view]) for view in (0, 1))
    assert first.shape[1] == predictor.num_features
    torch.testing.assert_close(predictor.predict(first, actions), prediction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor.embed(second), target, rtol=1e-4, atol=1e-5)
    assert torch.equal(predictor.advance(predictor.embed(first), actions), predictor.predict(first, actions))
    assert predictor.embed(second).shape == (BATCH, predictor.embedding_dim)


def test_objectives_without_a_predictor_have_none() -> None:
    assert sie(parts="inv_only").latent_predictor() is None
    assert SimCLR(encoder()).latent_predictor() is None


def test_negated_quaternions_undo_a_training_with_the_other_sign(tmp_path: Path) -> None:
    """Hues and translations keep theirs."""
    features, actions = torch.randn(BATCH, 512), actions_of("rotation_color")
    module = with_other_values(sie("rotation_color")).latent_predictor()
    for sign in (1, -1):
        save_predictor(module, tmp_path / str(sign), PredictorCard("sie", told("rotation_color"), "", action_sign=sign))
    plain, negated = (load_predictor(tmp_path / str(sign)) for sign in (1, -1))
    other_sign = torch.cat([-actions[:, :4], actions[:, 4:]], dim=1)
    given = actions.clone()
    assert torch.equal(negated.predict(features, actions), plain.predict(features, other_sign))
    assert torch.equal(actions, given), "the actions that were given are left alone"
    assert torch.equal(negated.embed(features), plain.embed(features))


@pytest.mark.parametrize("kind", ["rotation_color", "augmentation"])
def test_a_predictor_of_earlier_versions_is_told_one_word(kind: str, tmp_path: Path) -> None:
    save_predictor(sie(kind).latent_predictor(), tmp_path, PredictorCard("sie", told(kind), ""))
    file, expected = tmp_path / "config.json", load_predictor(tmp_path)
    config = json.loads(file.read_text())
    assert config["actions"] == told(kind).describe() and config["action_dim"] == ACTION_DIMS[kind]
    file.write_text(json.dumps(config | {"actions": kind}))
    assert load_predictor(tmp_path).card == expected.card


def test_wrong_features_and_actions_are_named(tmp_path: Path) -> None:
    save_predictor(sie().latent_predictor(), tmp_path, PredictorCard("sie", told("rotation"), ""))
    predictor = load_predictor(tmp_path)
    with pytest.raises(ValueError, match=r"features have shape \(6, 256\): this predictor of sie reads \[N, 512\]"):
        predictor.embed(torch.randn(BATCH, 256))
    with pytest.raises(ValueError, match=r"actions have shape \(6, 6\): this predictor of sie is told 'rotation'"):
        predictor.predict(torch.randn(BATCH, 512), actions_of("rotation_color"))
    with pytest.raises(ValueError, match="takes actions of 4 columns, but 'pose_base' has 7"):
        save_predictor(sie().latent_predictor(), tmp_path, PredictorCard("sie", told("pose_base"), ""))
    with pytest.raises(ValueError, match="Identity is no predictor of hypernetwork, mlp, conditioned"):
        unknown = nn.Identity()
        unknown.sizes = {"dim": 8, "action_dim": 4}
        save_predictor(
            ProjectedPredictor(8, slice(0, 8), None, unknown), tmp_path, PredictorCard("", told("rotation"), "")
        )
    with pytest.raises(ValueError, match="pose_side is 5"):
        PoseProduct(4, 5)
