"""A sequence model is opened as it was saved, and nothing else is taken for one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError
from ssl_equi.export.encoder import EncoderCard, save_encoder
from ssl_equi.export.sequence_model import load_sequence_model, save_sequence_model
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig

SMALL = SeqJEPAConfig(action_width=8, layers=1, feedforward_width=32, predictor_hidden_width=16)
SEQUENCES = {"source": "rendered", "actions": "rotation", "observed_views": 3}
CARD = EncoderCard(
    architecture="strided_cnn_tiny", image_size=32, mean_rgb=(0.4, 0.5, 0.6), std_rgb=(0.1, 0.2, 0.3),
    parts={"all": (0, 512)}, objective="seq_jepa", trained_on="3diebench-p 0123", license="apache-2.0", tag="x",
)  # fmt: skip


def trained(config: SeqJEPAConfig = SMALL) -> SeqJEPA:
    torch.manual_seed(0)
    objective = SeqJEPA(create_encoder("strided_cnn_tiny", 32), config)
    objective(torch.randn(8, 4, 3, 32, 32), torch.randn(8, 3, 4))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return objective.eval()


@pytest.mark.parametrize("changes", [{}, {"conditioning": "none"}, {"momentum_target": False}])
def test_a_sequence_model_is_opened_as_it_was_saved(tmp_path: Path, changes: dict[str, object]) -> None:
    objective = trained(replace(SMALL, **changes))
    save_sequence_model(objective, tmp_path / "sequence_model", CARD, SEQUENCES)
    model = load_sequence_model(tmp_path / "sequence_model")
    assert (model.image_size, model.mean_rgb, model.std_rgb) == (32, CARD.mean_rgb, CARD.std_rgb)
    assert model.sequences == SEQUENCES and model.trained_on == CARD.trained_on
    assert model.objective.config == objective.config and not model.objective.training
    images, actions = torch.randn(4, 3, 32, 32), torch.randn(2, 1, 4)
    with torch.inference_mode():
        for module in (objective, model.objective):
            features = module.encoder(images).unflatten(0, (2, 2))
            aggregates = module.aggregate(features, actions)
            outputs = (features, aggregates, module.predict(aggregates, actions[:, 0]), module.target_features(images))
            if module is objective:
                expected = outputs
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(outputs, expected, strict=True))


def test_what_is_no_sequence_model_is_refused(tmp_path: Path) -> None:
    objective = trained()
    save_encoder(objective.encoder, tmp_path / "encoder", CARD)
    with pytest.raises(CheckpointError, match="an encoder without an aggregator: give the sequence_model/ of a run"):
        load_sequence_model(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="holds no exported encoder"):
        load_sequence_model(tmp_path / "nothing")
    folder = tmp_path / "damaged"
    save_sequence_model(objective, folder, CARD, SEQUENCES)
    config = json.loads((folder / "config.json").read_text())
    config["seq_jepa"]["layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"aggregator\.transformer\.layers\.1"):
        load_sequence_model(folder)
    config["seq_jepa"]["wings"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="describes no seq-JEPA"):
        load_sequence_model(folder)
