"""The supervised objective against an independent NumPy computation, and its labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.supervised import Supervised, SupervisedConfig

SMALL = SupervisedConfig(class_weight=0.7, action_weight=3.0, num_classes=5, hidden=(20, 16))


class PixelEncoder(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def random_batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    actions = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return views, actions, torch.randint(5, (size,), generator=generator)


def numpy_terms(objective: Supervised, views: Tensor, actions: Tensor, labels: Tensor) -> dict[str, float]:
    y = views.numpy().reshape(len(views), 2, 12)
    weight, bias = [p.detach().numpy() for p in objective.class_head.parameters()]
    logits = y @ weight.T + bias
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.arange(len(views))
    right = logits.argmax(-1) == labels.numpy()[:, None]
    x = y.reshape(len(views), 24)
    arrays = [p.detach().numpy() for p in objective.action_head.parameters()]
    for layer, (weight, bias) in enumerate(zip(arrays[::2], arrays[1::2], strict=True)):
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if layer < 2 else x
    return {
        "classification": float(-log_probabilities[rows, :, labels.numpy()].mean()),
        "top1": float(right.mean()),
        "action_regression": float(((x - actions.numpy()) ** 2).mean()),
    }


def test_terms_and_loss_equal_numpy():
    torch.manual_seed(0)
    objective, batch = Supervised(PixelEncoder(), SMALL).double(), random_batch(20)
    output, expected = objective(*batch), numpy_terms(objective, *batch)
    assert set(output.terms) == {*expected, "std_all"}
    for name, value in expected.items():
        assert output.terms[name].item() == pytest.approx(value, rel=1e-5), name
    assert output.loss.item() == pytest.approx(
        0.7 * expected["classification"] + 3 * expected["action_regression"], rel=1e-10
    )


def test_a_task_of_weight_0_has_no_head_and_needs_no_target():
    views, actions, labels = random_batch(8)
    classes_only = Supervised(PixelEncoder(), replace(SMALL, action_weight=0.0)).double()
    actions_only = Supervised(PixelEncoder(), replace(SMALL, class_weight=0.0)).double()
    assert classes_only.action_head is None
    assert actions_only.class_head is None
    output = classes_only(views, labels=labels)
    assert set(output.terms) == {"classification", "top1", "std_all"}
    assert output.loss.item() == pytest.approx(0.7 * output.terms["classification"].item(), rel=1e-6)
    output = actions_only(views, actions)
    assert set(output.terms) == {"action_regression", "std_all"}
    assert output.loss.item() == pytest.approx(3 * output.terms["action_regression"].item(), rel=1e-6)


def test_other_integer_types_of_labels_are_accepted():
    torch.manual_seed(0)
    objective, (views, actions, labels) = Supervised(PixelEncoder(), SMALL).double(), random_batch(8)
    assert torch.equal(objective(views, actions, labels).loss, objective(views, actions, labels.int()).loss)


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
    views, actions, _ = random_batch(4)
    with pytest.raises(ValueError, match=message):
        Supervised(PixelEncoder(), SMALL)(views.float(), actions.float(), labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weight": 0.0, "action_weight": 0.0}, "at least one above 0"),
        ({"class_weight": -1.0}, "class_weight is -1.0"),
        ({"action_weight": float("nan")}, "action_weight is nan"),
        ({"num_classes": 1}, "num_classes is 1"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Supervised(PixelEncoder(), replace(SMALL, **changes))
