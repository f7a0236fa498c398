"""CapsIE against its formulas, its targets and their temperature."""

import pytest
import torch

from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.objectives.capsie import CapsIE, CapsIEConfig
from tests.fakes import capsule_network
from tests.objectives.case import SIDE
from tests.references.capsules import capsie
from tests.references.comparison import SmallMapEncoder, disagreements
from tests.references.table import APART, CAPSIE, JOINT, reference


def make_objective(**options: object) -> CapsIE:
    torch.manual_seed(0)
    return CapsIE(capsule_network(4), CapsIEConfig(**options))


@pytest.mark.parametrize(("pose_side", "action_dim"), [(4, 4), (3, 7)])
@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formulas(pose_side: int, action_dim: int, separate: bool) -> None:
    network = CapsuleNetwork(SmallMapEncoder(), SIDE, 5, pose_side, "free")
    expected = reference(
        capsie,
        actions=(action_dim,),
        objects=20,
        calls=APART if separate else JOINT,
        pose_side=pose_side,
        prediction_temperature=0.1,
        target_temperatures=(0.025, 0.1),
        schedule_length=1.25,
        weights=CAPSIE,
    )
    objective = CapsIE(network, CapsIEConfig(action_dim=action_dim, separate_batch_norm=separate))
    assert not disagreements(objective, expected)


def test_the_targets_temperature_follows_the_training() -> None:
    objective = make_objective()
    temperatures = []
    for progress in (0.0, 0.5, 1.0):
        objective.soften_targets(progress)
        temperatures.append(float(objective.target_temperature))
    assert temperatures == pytest.approx([0.025, 0.055, 0.085])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_temperature": 0.0}, "temperature is 0.0"),
        ({"prediction_temperature": -1.0}, "temperature is -1.0"),
        ({"action_dim": 0}, "action_dim is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_objective(**options)
