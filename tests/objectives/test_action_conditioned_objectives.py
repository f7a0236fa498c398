"""What all objectives that are told the action have in common: shapes, precision, errors, and that they learn."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.objectives.byol import ConditionalBYOL, ConditionalBYOLConfig
from ssl_equi.objectives.equimod import EquiMod, EquiModConfig
from ssl_equi.objectives.sen import SEN, SENConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.supervised import Supervised, SupervisedConfig

WIDTHS = (24, 8)


class LinearEncoder(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


OBJECTIVES: dict[str, Callable[[], nn.Module]] = {
    "sen": lambda: SEN(LinearEncoder(), SENConfig(projector=WIDTHS)),
    "equimod_simclr": lambda: EquiMod(LinearEncoder(), EquiModConfig(projector=WIDTHS)),
    "equimod_vicreg": lambda: EquiMod(LinearEncoder(), EquiModConfig(projector=WIDTHS, form="vicreg")),
    "conditional_byol": lambda: ConditionalBYOL(
        LinearEncoder(), ConditionalBYOLConfig(projector=WIDTHS, predictor_hidden_width=24)
    ),
    "augself": lambda: AugSelf(SimCLR(LinearEncoder(), SimCLRConfig(projector=WIDTHS)), AugSelfConfig(hidden=(24, 24))),
    "supervised": lambda: Supervised(LinearEncoder(), SupervisedConfig(num_classes=5, hidden=(24, 24))),
}
WITHOUT_FEATURES_TO_REUSE = ["augself", "conditional_byol"]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return OBJECTIVES[name]()


def moved_views(size: int) -> tuple[Tensor, Tensor]:
    """View 2 is view 1, moved along four fixed directions as far as the action says, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(size, 12, generator=generator)
    actions = torch.randn(size, 4, generator=generator)
    second = first + actions @ torch.randn(4, 12, generator=generator)
    views = torch.stack([first, second], dim=1) + 0.1 * torch.randn(size, 2, 12, generator=generator)
    return views.unflatten(2, (3, 2, 2)), actions


def call(objective: nn.Module, views: Tensor, actions: Tensor | None) -> ObjectiveOutput:
    """The objective's output; the supervised one gets labels too, which depend on the object."""
    if isinstance(objective, Supervised):
        objective = partial(objective, labels=torch.arange(len(views)) % 5)
    return objective(views, actions)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_output_has_the_common_shapes(name: str):
    objective, (views, actions) = make(name), moved_views(8)
    output = call(objective, views, actions)
    seen = views[:, :1] if name == "conditional_byol" else views  # view 2 is for the target alone
    expected_features = objective.encoder(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
    assert objective.parts == {"all": slice(0, 16)}
    assert objective.num_features == 16
    assert output.loss.shape == ()
    assert torch.allclose(output.features, expected_features)
    assert not output.features.requires_grad
    assert output.embeddings is None
    if name in WITHOUT_FEATURES_TO_REUSE:
        assert output.encoder_features is None
    else:
        assert torch.allclose(output.encoder_features, expected_features)
        assert output.encoder_features.requires_grad
    for term in output.terms.values():
        assert (term.shape, term.dtype, term.requires_grad) == ((), torch.float32, False)
    assert all(value > 0 for term, value in output.terms.items() if term.startswith("std_"))
    assert any(term.startswith("std_") for term in output.terms)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_action_matters(name: str):
    views, actions = moved_views(8)
    # Reversed, because a batch norm behind the predictor takes out what all actions have in common.
    assert call(make(name), views, actions).loss != call(make(name), views, actions.flip(0)).loss


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_trainable_parameter_gets_a_gradient_and_no_target_does(name: str):
    objective = make(name)
    call(objective, *moved_views(8)).loss.backward()
    for parameter_name, parameter in objective.named_parameters():
        assert parameter.requires_grad != parameter_name.startswith("target_"), parameter_name
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_falls(name: str):
    objective, batch, losses = make(name), moved_views(32), []
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(30):
        loss = call(objective, *batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(objective, "update_target"):
            objective.update_target(0.9)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bf16_is_finite_and_close_to_float32(name: str):
    expected = call(make(name), *moved_views(32))
    objective = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = call(objective, *moved_views(32))
    output.loss.backward()
    assert output.loss.dtype == output.features.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.03, abs=0.02)
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_images_and_weights_are_accepted(name: str):
    views, actions = moved_views(32)
    output = call(make(name).to(torch.bfloat16), views.to(torch.bfloat16), actions)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(call(make(name), views, actions).loss.item(), rel=0.06, abs=0.05)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("views", "actions", "message"),
    [
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 4), "2 views of each object"),
        (torch.zeros(4, 2, 3, 2, 2, dtype=torch.uint8), torch.zeros(4, 4), "convert them to float"),
        (torch.zeros(1, 2, 3, 2, 2), torch.zeros(1, 4), "global batch of at least 2"),
        (torch.zeros(4, 2, 3, 2, 2), None, r"actions are None: pass \[4, 4\]"),
        (torch.zeros(4, 2, 3, 2, 2), torch.zeros(3, 4), r"actions have shape \(3, 4\): pass \[4, 4\]"),
        (torch.zeros(4, 2, 3, 2, 2), torch.zeros(4, 6), "6 columns but action_dim is 4: set action_dim=6"),
        (torch.zeros(4, 2, 3, 2, 2), torch.tensor([[0.0] * 4] * 3 + [[float("nan")] * 4]), "action in row 3"),
    ],
)
def test_wrong_inputs_are_refused_with_the_cure(name: str, views: Tensor, actions: Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        call(make(name), views, actions)


@pytest.mark.parametrize(
    ("make_objective", "message"),
    [
        (lambda encoder: SEN(encoder, SENConfig(projector=())), "the head's widths are"),
        (lambda encoder: SEN(encoder, SENConfig(projector=WIDTHS, action_dim=0)), "action_dim is 0"),
        (lambda encoder: SEN(encoder, SENConfig(projector=WIDTHS, action_width=0)), "action_width is 0"),
        (lambda encoder: SEN(encoder, SENConfig(temperature=-1.0)), "the temperature is -1.0"),
        (lambda encoder: ConditionalBYOL(encoder, ConditionalBYOLConfig(predictor_hidden_width=0)), "head's widths"),
        (lambda encoder: Supervised(encoder, SupervisedConfig(action_dim=0)), "action_dim is 0"),
        (lambda encoder: Supervised(encoder, SupervisedConfig(hidden=(0,))), "the head's widths are"),
    ],
)
def test_impossible_sizes_are_refused(make_objective: Callable[[nn.Module], nn.Module], message: str):
    with pytest.raises(ValueError, match=message):
        make_objective(LinearEncoder())


@pytest.mark.parametrize("objective_class", [SEN, EquiMod, ConditionalBYOL, Supervised])
def test_an_encoder_without_a_width_is_refused(objective_class: type[nn.Module]):
    with pytest.raises(ValueError, match="num_features"):
        objective_class(nn.Flatten())
