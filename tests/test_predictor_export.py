"""Exported predictors: what the training step computes, opened as saved, and nothing else is taken for one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.capsule_network import CapsuleNetwork
from ssl_equi.geometry.rotations import random_quat
from ssl_equi.objectives.capsie import CapsIE, CapsIEConfig
from ssl_equi.objectives.conditional_byol import ConditionalBYOL, ConditionalBYOLConfig
from ssl_equi.objectives.equicaps import EquiCaps, EquiCapsConfig
from ssl_equi.objectives.equimod import EquiMod, EquiModConfig
from ssl_equi.objectives.sen import SEN, SENConfig
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.predictor_export import PredictorCard, load_predictor, save_predictor

SIDE, BATCH = 32, 6
WIDTHS = (24, 24, 16)
ACTION_DIMS = {"rotation": 4, "rotation_color": 6, "pose_base": 7, "pose_object": 7, "augmentation": 3}


def actions_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    further = torch.randn(BATCH, ACTION_DIMS[kind], generator=generator)
    if kind == "augmentation":
        return further
    return torch.cat([random_quat(BATCH, generator, torch.float32), further[:, 4:]], dim=1)


def encoder() -> nn.Module:
    return create_encoder("strided_cnn_tiny", SIDE)


def capsules(side: int) -> CapsuleNetwork:
    return CapsuleNetwork(create_encoder("strided_cnn_pooled", SIDE), SIDE, 4, side, routing_std=0.3)


def sie(kind: str = "rotation", **changes: Any) -> SIE:
    return SIE(encoder(), SIEConfig(projector=(48, 48, 32), action_dim=ACTION_DIMS[kind], **changes))


MAKERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "sie": ("rotation", sie),
    "sie deep, biased": (
        "rotation_color",
        lambda: sie("rotation_color", predictor="hypernetwork_deep", hypernetwork_bias=True, predicted_bias=True),
    ),
    "sie mlp": ("augmentation", lambda: sie("augmentation", predictor="mlp", mlp_layers=3, equi_dim=100)),
    "sie equi_only": ("rotation", lambda: sie(parts="equi_only")),
    "equimod": ("rotation", lambda: EquiMod(encoder(), EquiModConfig(projector=WIDTHS, action_width=8))),
    "equimod vicreg": (
        "pose_base",
        lambda: EquiMod(
            encoder(), EquiModConfig(form="vicreg", projector=WIDTHS, predictor="hypernetwork", action_dim=7)
        ),
    ),
    "sen": ("rotation", lambda: SEN(encoder(), SENConfig(projector=WIDTHS, last_batch_norm="affine"))),
    "conditional_byol": (
        "rotation",
        lambda: ConditionalBYOL(encoder(), ConditionalBYOLConfig(projector=WIDTHS, predictor_hidden_width=12)),
    ),
    "equicaps": ("rotation", lambda: EquiCaps(capsules(3))),
    "equicaps 4 x 4": ("pose_object", lambda: EquiCaps(capsules(4), EquiCapsConfig(pose_norm="published"))),
    "capsie": ("rotation", lambda: CapsIE(capsules(4), CapsIEConfig())),
}  # fmt: skip


def trained(make: Callable[[], nn.Module], kind: str) -> nn.Module:
    """After one forward pass, so that batch norms have statistics, and with every weight moved."""
    torch.manual_seed(0)
    objective = make()
    objective(torch.randn(BATCH, 2, 3, SIDE, SIDE), actions_of(kind))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return objective.eval()


class Recorder:
    """Notes what a function of a module's file is given, and calls it."""

    def __init__(self, function: Callable[..., Any], calls: list[tuple[Tensor, Tensor]]) -> None:
        self.function, self.calls = function, calls

    def __call__(self, first: Tensor, second: Tensor) -> Any:
        self.calls.append((first, second))
        return self.function(first, second)


def compared_in_training(objective: nn.Module, views: Tensor, actions: Tensor, monkeypatch) -> tuple[Tensor, Tensor]:
    """Prediction and target that the equivariance term compares in the training step, which runs in eval mode."""
    calls: list[tuple[Tensor, Tensor]] = []
    module = __import__(type(objective).__module__, fromlist=["invariance_term"])
    if isinstance(objective, SIE | EquiCaps | CapsIE):
        monkeypatch.setattr(module, "invariance_term", Recorder(module.invariance_term, calls))
    elif isinstance(objective, EquiMod) and objective.config.form == "vicreg":
        record = Recorder(lambda first, second: None, calls)
        original = module.vicreg_terms
        monkeypatch.setattr(
            module, "vicreg_terms", lambda pair, gathered: (record(*pair.unbind(1)), original(pair, gathered))[1]
        )
    elif isinstance(objective, ConditionalBYOL):
        objective.negative_cosine.register_forward_pre_hook(lambda _, pair: calls.append(pair))
    else:
        monkeypatch.setattr(objective, "_contrastive_loss", Recorder(objective._contrastive_loss, calls))
    objective(views, actions)
    prediction, target = calls[-1]
    return prediction.flatten(1), target.flatten(1)


@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_an_exported_predictor_computes_what_the_training_step_compares(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, make = MAKERS[name]
    objective = trained(make, kind)
    save_predictor(objective.latent_predictor(), tmp_path / "predictor", PredictorCard(name, kind, "3diebench-p 01"))
    views, actions = torch.randn(BATCH, 2, 3, SIDE, SIDE), actions_of(kind)
    if isinstance(objective, ConditionalBYOL):
        objective.update_target(0.0)
    prediction, target = compared_in_training(objective, views, actions, monkeypatch)

    predictor = load_predictor(tmp_path / "predictor")
    assert (predictor.name, predictor.actions, predictor.training) == (name, kind, False)
    source = objective.network if predictor.features_from == "capsule_network" else objective.encoder
    first, second = (source(views[:, view]) for view in (0, 1))
    assert first.shape[1] == predictor.num_features
    torch.testing.assert_close(predictor.predict(first, actions), prediction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor.embed(second), target, rtol=1e-4, atol=1e-5)
    assert torch.equal(predictor.advance(predictor.embed(first), actions), predictor.predict(first, actions))
    assert predictor.embed(second).shape == (BATCH, predictor.embedding_dim)
