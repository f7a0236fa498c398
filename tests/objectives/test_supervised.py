"""The supervised objective against its formulas, and its labels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssl_equi.objectives.supervised import Supervised, SupervisedConfig
from tests.fakes import PixelEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.invariant import supervised
from tests.references.table import ACTION_HEAD, APART, JOINT, reference

SMALL = SupervisedConfig(class_weight=0.7, action_weight=3.0, num_classes=5, hidden=(20, 16))
LABELS = torch.tensor([0, 3, 4, 1, 1, 2, 0, 4])


@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formulas(separate: bool):
    expected = reference(
        supervised,
        actions=(4,),
        calls=APART if separate else JOINT,
        action_head=ACTION_HEAD,
        weights={"classification": 0.7, "action_regression": 3.0},
    )
    assert not disagreements(Supervised(SmallEncoder(), replace(SMALL, separate_batch_norm=separate)), expected)


def test_a_task_of_weight_0_has_no_head_and_needs_no_target():
    views, actions = random_pairs(8)
    classes_only = Supervised(PixelEncoder(), replace(SMALL, action_weight=0.0))
    actions_only = Supervised(PixelEncoder(), replace(SMALL, class_weight=0.0))
    assert classes_only.action_head is None
    assert actions_only.class_head is None
    output = classes_only(views, labels=LABELS)
    assert set(output.terms) == {"classification", "top1", "std_all"}
    assert output.loss.item() == pytest.approx(0.7 * output.terms["classification"].item(), rel=1e-6)
    output = actions_only(views, actions)
    assert set(output.terms) == {"action_regression", "std_all"}
    assert output.loss.item() == pytest.approx(3 * output.terms["action_regression"].item(), rel=1e-6)


def test_other_integer_types_of_labels_are_accepted():
    objective, (views, actions) = Supervised(PixelEncoder(), SMALL), random_pairs(8)
    assert torch.equal(objective(views, actions, LABELS).loss, objective(views, actions, LABELS.int()).loss)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"labels are None: pass int64 \[4\]"),
        (torch.tensor([0, 1, 5, 0]), "label in row 2 is 5 but num_classes is 5"),
        (torch.tensor([0, 1, 2, -1]), "label in row 3 is -1 but num_classes is 5"),
        (torch.tensor([0, 1, 2]), r"shape \(3,\)"),
        (torch.zeros(4, 5, dtype=torch.int64), r"shape \(4, 5\)"),
        (torch.zeros(4), "dtype torch.float32"),
        (torch.zeros(4, dtype=torch.bool), "dtype torch.bool"),
    ],
)
def test_wrong_labels_are_refused_with_the_cure(labels: Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        Supervised(PixelEncoder(), SMALL)(*random_pairs(4), labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weight": 0.0, "action_weight": 0.0}, "at least one above 0"),
        ({"class_weight": -1.0}, "class_weight is -1.0"),
        ({"action_weight": float("nan")}, "action_weight is nan"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"hidden": (0,)}, "the head's widths are"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Supervised(PixelEncoder(), replace(SMALL, **changes))
