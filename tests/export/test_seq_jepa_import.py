"""Imported checkpoints of the released seq-JEPA code compute what its own modules compute."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ssl_equi.errors import CheckpointError
from ssl_equi.export.encoder import load_encoder, parts_of, read_encoder_config
from ssl_equi.export.layouts import RENDERED
from ssl_equi.export.seq_jepa_files import (
    VARIANTS,
    architecture_of,
    build_objective,
    card_of,
    describe_sequences,
    model_tensors,
    sizes_of,
)
from ssl_equi.export.sequence_model import load_sequence_model
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.views.glimpses import (
    STL10_MEAN_RGB,
    STL10_STD_RGB,
    SaccadeOptions,
    describe_saccades,
    described_saccades,
)
from tests.export.checkpoints import assert_same_features, changed
from tests.fakes import with_other_values

ACTION_DIM = {"rotation": 4, "rotation_color": 6, "position": 2}


class Stack(nn.Module):
    """Transformer layers and a norm, under the names of the released checkpoints."""

    def __init__(self, width: int, layers: int, feedforward: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, feedforward, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)


class Released(nn.Module):
    """The parts of seq-JEPA from torchvision and torch, under the names of the released checkpoints."""

    def __init__(
        self, action_dim: int, small_stem: bool = False, layers: int = 2, feedforward: int = 48, hidden: int = 24
    ) -> None:
        super().__init__()
        self.encoder, self.target_encoder = (self.resnet(small_stem) for _ in range(2))
        self.action_proj = nn.Sequential(nn.Linear(action_dim, 128, bias=False), nn.BatchNorm1d(128, affine=False))
        self.predictor = nn.Sequential(
            nn.Linear(768, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 512)
        )
        self.agg_token = nn.Parameter(torch.zeros(1, 1, 640))
        self.transformer_encoder = Stack(640, layers, feedforward)

    @staticmethod
    def resnet(small_stem: bool) -> nn.Module:
        resnet = torchvision.models.resnet18()
        resnet.fc = nn.Identity()
        if small_stem:
            resnet.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            resnet.maxpool = nn.Identity()
        return resnet

    def aggregate(self, views: Tensor, actions: Tensor) -> Tensor:
        """Views [B, M, 3, S, S] and the actions [B, M - 1, A] between them."""
        features = torch.stack([self.encoder(view) for view in views.unbind(1)], dim=1)
        embedded = [self.action_proj(action) for action in actions.unbind(1)] + [torch.zeros(len(views), 128)]
        tokens = torch.cat([features, torch.stack(embedded, dim=1)], dim=2)
        tokens = torch.cat([self.agg_token.expand(len(views), 1, 640), tokens], dim=1)
        for layer in self.transformer_encoder.transformer_encoder.layers:
            tokens = layer(tokens)
        return self.transformer_encoder.norm(tokens)[:, 0]

    def predict(self, aggregates: Tensor, action: Tensor) -> Tensor:
        return self.predictor(torch.cat([aggregates, self.action_proj(action)], dim=1))


def released(action_dim: int, **sizes: object) -> Released:
    torch.manual_seed(action_dim)
    return with_other_values(Released(action_dim, **sizes))


def checkpoint(model: nn.Module, prefix: str = "") -> dict:
    """What the released code writes, two probes and an optimiser's state beside the model."""
    state = {prefix + name: value for name, value in model.state_dict().items()}
    state |= {prefix + "online_linprobe.0.weight": torch.zeros(55, 640), prefix + "agg_classifier.bias": torch.zeros(5)}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 4e-4, "params": [0]}]}
    return {"model": state, "optimizer": optimizer, "min_loss": 0.5, "epoch": 3, "run_id": "seqjepa-3diebench"}


def close(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() <= 1e-5)


@torch.no_grad()
def assert_same_answers(model: Released, ours: SeqJEPA, kind: str, sign: int = 1) -> None:
    side = 32 if kind == "position" else 64
    views, actions = torch.randn(3, 4, 3, side, side), torch.randn(3, 3, ACTION_DIM[kind])
    theirs = torch.cat([sign * actions[..., :4], actions[..., 4:]], dim=-1)
    features = ours.encoder(views[:, :3].flatten(0, 1)).unflatten(0, (3, 3))
    assert close(features[:, 1], model.encoder(views[:, 1]))
    assert close(ours.target_features(views[:, 3]), model.target_encoder(views[:, 3]))
    assert not close(ours.target_features(views[:, 1]), features[:, 1])
    for observed in (1, 3):
        aggregates = ours.aggregate(features[:, :observed], actions[:, : observed - 1])
        expected = model.aggregate(views[:, :observed], theirs[:, : observed - 1])
        assert close(aggregates, expected)
        assert close(ours.predict(aggregates, actions[:, 2]), model.predict(expected, theirs[:, 2]))
    assert not close(ours.predict(aggregates, actions[:, 2]), ours.predict(aggregates, actions[:, 1]))


@pytest.fixture(scope="module")
def model() -> Released:
    return released(6)


@pytest.fixture
def tensors(model: Released) -> dict[str, Tensor]:
    return dict(model.state_dict())


@pytest.mark.parametrize(("kind", "side"), [("rotation", 128), ("position", 96)])
def test_an_imported_model_answers_as_the_released_one(kind: str, side: int) -> None:
    model = released(ACTION_DIM[kind], small_stem=kind == "position")
    objective = build_objective(model.state_dict(), VARIANTS[kind])
    assert_same_answers(model, objective, kind)
    card = card_of(objective, architecture_of(model.state_dict()), VARIANTS[kind], "by others")
    assert card.architecture == ("resnet18_small_images" if kind == "position" else "resnet18")
    mean, std = (STL10_MEAN_RGB, STL10_STD_RGB) if kind == "position" else (RENDERED.mean_rgb, RENDERED.std_rgb)
    assert (card.image_size, card.mean_rgb, card.std_rgb) == (side, mean, std)


def test_sequences_are_described_as_the_makers_of_views_describe_theirs() -> None:
    told = ToldActions.of("rotation").describe()
    described = {"source": "rendered", "actions": told, "observed_views": 3}
    assert describe_sequences(VARIANTS["rotation"]) == described
    glimpses = SaccadeOptions(
        saliency="file", glimpse_size=32, inhibition="square", inhibition_radius_px=16, transposed=True
    )
    described = describe_sequences(VARIANTS["position"])
    assert described == describe_saccades(glimpses, observed_views=4)
    maps = Path("deepgaze.npy")
    assert described_saccades(described, maps) == replace(glimpses, saliency_file=maps)


def test_an_imported_folder_is_opened_as_that_of_a_run(
    tool: ModuleType, model: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(checkpoint(model, prefix="module."), tmp_path / "official.pth")
    tool.main(tool.Config(tmp_path / "official.pth", tmp_path / "imported", actions="rotation_color"))
    assert "under the terms of their authors" in capsys.readouterr().out
    opened = load_sequence_model(tmp_path / "imported" / "sequence_model")
    assert_same_answers(model, opened.objective, "rotation_color")
    assert (opened.image_size, opened.std_rgb) == (128, (0.1030, 0.0999, 0.0969))
    told = ToldActions.of("rotation_color")
    assert opened.sequences == {"source": "rendered", "actions": told.describe(), "observed_views": 4}
    assert opened.told == told
    assert "official.pth, SHA-256 " in opened.trained_on
    assert_same_features(load_encoder(tmp_path / "imported" / "encoder"), opened.objective.encoder)
    config = read_encoder_config(tmp_path / "imported" / "encoder")
    assert config["pretrained_cfg"]["license"] == "other"
    assert parts_of(config) == {"all": slice(0, 512)}


def test_the_sign_of_old_quaternions_is_turned_in_the_weights_and_that_of_hues_is_not(
    model: Released, tensors: dict[str, Tensor]
) -> None:
    ours = build_objective(tensors, replace(VARIANTS["rotation_color"], action_sign=-1))
    assert_same_answers(model, ours, "rotation_color", sign=-1)
    assert torch.equal(ours.action_embedding.norm.running_mean, tensors["action_proj.1.running_mean"])
    with pytest.raises(CheckpointError, match="--action-sign is -1, but positions have no sign"):
        positions = Released(2, small_stem=True).state_dict()
        build_objective(positions, replace(VARIANTS["position"], action_sign=-1))


def test_a_checkpoint_without_momentum_target_predicts_the_encoders_features(
    model: Released, tensors: dict[str, Tensor]
) -> None:
    online = {name: value for name, value in tensors.items() if not name.startswith("target_encoder.")}
    ours = build_objective(online, VARIANTS["rotation_color"])
    assert ours.target_encoder is None
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert close(ours.target_features(images), model.encoder(images))


def test_the_released_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = Released(4, layers=3, feedforward=2560, hidden=1024)
    assert sizes_of(model.state_dict(), VARIANTS["rotation"]) == SeqJEPAConfig()
    zeros = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in model.state_dict().items()}
    ours = build_objective(zeros, VARIANTS["rotation"])
    theirs = [*model.transformer_encoder.parameters(), model.agg_token]
    for parameters, count in (
        (ours.aggregator.parameters(), 14_772_480), (theirs, 14_772_480), (ours.predictor.parameters(), 1_313_280),
    ):  # fmt: skip
        assert sum(parameter.numel() for parameter in parameters) == count


def test_probes_optimisers_and_wrappers_are_left_out() -> None:
    kept = nn.Module()
    kept.agg_token = nn.Parameter(torch.ones(1, 1, 4))
    for content in (checkpoint(kept, "module."), checkpoint(kept, "module.")["model"]):
        found = model_tensors(content, "official.pth")
        assert {name: value.tolist() for name, value in found.items()} == {"agg_token": [[[1, 1, 1, 1]]]}
    with pytest.raises(CheckpointError, match=r"official.pth holds 'config' beside the model"):
        model_tensors({"model": {"agg_token": torch.zeros(2)}, "config": 3}, "official.pth")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"predictor.3.bias": None}, "lacks 'predictor.3.bias'"),
        ({"agg_token": None, "predictor.3.bias": None}, "lacks 'agg_token'"),
        ({"action_proj.0.weight": None}, "lacks 'action_proj.0.weight'"),
        ({"projector.0.weight": torch.zeros(2)}, "holds 'projector.0.weight', which"),
        ({"encoder.fc.weight": torch.zeros(2, 512)}, "holds 'encoder.fc.weight', which"),
        ({"predictor.3.bias": torch.zeros(511)}, r"'predictor.3.bias' has shape \(511,\) and not \(512,\)"),
        ({"encoder.conv1.weight": torch.zeros(64, 3)}, r"'encoder.conv1.weight' has shape \(64, 3\), not 4"),
        ({"action_proj.0.weight": torch.zeros(128, 4)}, "actions of 4 numbers, but rotation_color has 6: give --ac"),
        ({"action_proj.0.weight": torch.zeros(128, 9)}, "actions of 9 numbers, .* of none of the known kinds"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tensors: dict[str, Tensor], change: dict[str, Tensor | None], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        build_objective(changed(tensors, change), VARIANTS["rotation_color"])
