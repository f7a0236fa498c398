"""What all objectives of invariance have in common: shapes, precision, errors, and that they learn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.objectives.moco import MoCo, MoCoConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig


class LinearEncoder(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def related_views(size: int, seed: int = 0) -> Tensor:
    """Two noisy views of each object."""
    generator = torch.Generator().manual_seed(seed)
    objects = torch.randn(size, 1, 3, 2, 2, generator=generator)
    return objects + 0.5 * torch.randn(size, 2, 3, 2, 2, generator=generator)


def objectives_with(projector: tuple[int, ...]) -> dict[str, Callable[[], nn.Module]]:
    """Every objective of invariance, small, with the given projector."""
    return {
        "vicreg": lambda: VICReg(LinearEncoder(), VICRegConfig(projector=projector)),
        "simclr": lambda: SimCLR(LinearEncoder(), SimCLRConfig(projector=projector)),
        "byol": lambda: BYOL(LinearEncoder(), BYOLConfig(projector=projector, predictor_hidden_width=24)),
        "barlow_twins": lambda: BarlowTwins(LinearEncoder(), BarlowTwinsConfig(projector=projector)),
        "simsiam": lambda: SimSiam(LinearEncoder(), SimSiamConfig(projector=projector, predictor_hidden_width=6)),
        "moco": lambda: MoCo(LinearEncoder(), MoCoConfig(queue_size=64, projector=projector)),
        "moco_symmetric": lambda: MoCo(LinearEncoder(), MoCoConfig(queue_size=64, projector=projector, symmetric=True)),
    }


OBJECTIVES = objectives_with((24, 8))
REUSABLE = ["vicreg", "simclr", "barlow_twins", "moco_symmetric"]  # give embeddings for other terms


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return OBJECTIVES[name]()


def step(objective: nn.Module, views: Tensor, learning_rate: float) -> ObjectiveOutput:
    """One step of plain SGD, and of the momentum target where there is one."""
    output = objective(views)
    objective.zero_grad()
    output.loss.backward()
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.requires_grad:
                parameter -= learning_rate * parameter.grad
    if hasattr(objective, "update_target"):
        objective.update_target(0.9)
    return output


@pytest.mark.parametrize("name", OBJECTIVES)
def test_output_has_the_common_shapes(name: str):
    objective, views = make(name), related_views(8)
    output = objective(views)
    assert objective.parts == {"all": slice(0, 16)}
    assert output.loss.shape == ()
    seen = views[:, :1] if name == "moco" else views  # view 2 is for the target alone
    assert torch.allclose(output.features, objective.encoder(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]))
    assert not output.features.requires_grad
    if name == "moco":
        assert output.encoder_features is None
    else:
        assert torch.equal(output.encoder_features.detach(), output.features)
        assert output.encoder_features.requires_grad
    for term in output.terms.values():
        assert (term.shape, term.dtype, term.requires_grad) == ((), torch.float32, False)
    assert output.terms["std_all"] > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_actions_are_accepted_and_ignored(name: str):
    views = related_views(8)
    assert torch.equal(make(name)(views).loss, make(name)(views, torch.randn(8, 4)).loss)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_trainable_parameter_gets_a_gradient_and_no_target_does(name: str):
    objective = make(name)
    objective(related_views(8)).loss.backward()
    for parameter_name, parameter in objective.named_parameters():
        assert parameter.requires_grad != parameter_name.startswith("target_"), parameter_name
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_falls_on_objects_not_trained_on(name: str):
    objective = make(name)
    batches = [related_views(32, seed) for seed in range(36)]
    held_out, filling, training = batches[:4], batches[4:6], batches[6:]

    def mean_loss(batches: list[Tensor], learning_rate: float) -> float:
        return sum(step(objective, views, learning_rate).loss.item() for views in batches) / len(batches)

    mean_loss(filling, learning_rate=0)  # MoCo's queue holds 64 keys: its negatives shall be keys from the start
    before = mean_loss(held_out, learning_rate=0)
    mean_loss(training, learning_rate=0.05)
    after = mean_loss(held_out, learning_rate=0)
    assert after < before - 0.05 * abs(before)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_embed_equals_the_embeddings_of_the_forward_pass(name: str):
    objective, views = make(name).eval(), related_views(8)
    embeddings = objective(views).embeddings
    embedded = objective.embed(views.flatten(0, 1)).unflatten(0, (8, 2))
    assert embedded.shape == (8, 2, 8)
    assert embedded.requires_grad
    if name in REUSABLE:
        assert torch.allclose(embeddings, embedded, atol=1e-6)
        assert embeddings.requires_grad
    else:
        assert embeddings is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bf16_is_finite_and_close_to_float32(name: str):
    views = related_views(32)
    expected = make(name)(views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective = make(name)
        output = objective(views)
        embedded = objective.embed(views[:, 0])
    output.loss.backward()
    assert output.loss.dtype == output.features.dtype == embedded.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.02, abs=0.02)
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_images_and_weights_are_accepted(name: str):
    output = make(name).to(torch.bfloat16)(related_views(32).to(torch.bfloat16))
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(make(name)(related_views(32)).loss.item(), rel=0.05, abs=0.05)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("views", "message"),
    [
        (torch.zeros(4, 3, 2, 2), "2 views of each object"),
        (torch.zeros(4, 3, 3, 2, 2), "2 views of each object"),
        (torch.zeros(4, 2, 3, 2, 2, dtype=torch.uint8), "convert them to float"),
        (torch.zeros(1, 2, 3, 2, 2), "global batch of at least 2"),
    ],
)
def test_wrong_views_are_refused(name: str, views: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        make(name)(views)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "vicreg"])
@pytest.mark.parametrize("widths", [(), (0,), (24, -1)])
def test_impossible_projectors_are_refused(name: str, widths: tuple[int, ...]):
    with pytest.raises(ValueError, match="the head's widths are"):
        objectives_with(widths)[name]()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_encoder_without_a_width_is_refused(name: str):
    class Nameless(LinearEncoder):
        num_features = None

    with pytest.raises(ValueError, match="num_features"):
        type(make(name))(Nameless())
