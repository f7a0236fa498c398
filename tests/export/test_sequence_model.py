"""A sequence model is opened as it was saved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssl_equi.encoders import create_encoder
from ssl_equi.export.sequence_model import load_sequence_model, save_sequence_model
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from tests.export.test_folders import CARD, SEQUENCES
from tests.fakes import with_other_values

SMALL = SeqJEPAConfig(action_width=8, layers=1, feedforward_width=32, predictor_hidden_width=16)


@pytest.mark.parametrize("changes", [{}, {"conditioning": "none"}, {"momentum_target": False}])
@torch.no_grad()
def test_a_sequence_model_is_opened_as_it_was_saved(tmp_path: Path, changes: dict[str, object]) -> None:
    objective = with_other_values(SeqJEPA(create_encoder("test_vit", 64), replace(SMALL, **changes)))
    save_sequence_model(objective, tmp_path / "sequence_model", CARD, SEQUENCES)
    model = load_sequence_model(tmp_path / "sequence_model")
    assert (model.image_size, model.mean_rgb, model.std_rgb) == (64, CARD.mean_rgb, CARD.std_rgb)
    assert model.sequences == SEQUENCES and model.trained_on == CARD.trained_on
    assert model.objective.config == objective.config and not model.objective.training
    images, actions = torch.randn(4, 3, 64, 64), torch.randn(2, 1, 4)
    outputs = []
    for module in (objective, model.objective):
        features = module.encoder(images).unflatten(0, (2, 2))
        aggregates = module.aggregate(features, actions)
        predicted = module.predict(aggregates, actions[:, 0])
        outputs.append((features, aggregates, predicted, module.target_features(images)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*outputs, strict=True))
