"""The VICReg objective against lightly's loss on the same embeddings."""

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import Tensor, nn

from ssl_equi.objectives.vicreg import VICReg, VICRegConfig


class PixelEncoder(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class LinearEncoder(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def related_views(size: int) -> Tensor:
    """Two noisy views of each object."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.randn(size, 1, 3, 2, 2, generator=generator)
    return objects + 0.3 * torch.randn(size, 2, 3, 2, 2, generator=generator)


@pytest.mark.parametrize("separate_batch_norm", [False, True])
def test_loss_equals_lightly_on_the_projected_views(separate_batch_norm: bool):
    torch.manual_seed(0)
    objective = VICReg(PixelEncoder(), VICRegConfig(projector=(24, 24, 8), separate_batch_norm=separate_batch_norm))
    views = related_views(16)
    flat = views.flatten(2)
    with torch.no_grad():
        if separate_batch_norm:
            first, second = objective.projector(flat[:, 0]), objective.projector(flat[:, 1])
        else:
            first, second = objective.projector(flat.flatten(0, 1)).unflatten(0, (16, 2)).unbind(1)
    reference = VICRegLoss(lambda_param=10, mu_param=10, nu_param=1)(first, second)
    output = objective(views)
    assert output.loss.item() == pytest.approx(reference.item(), rel=1e-5)
    terms = {name: term.item() for name, term in output.terms.items()}
    assert 10 * terms["invariance"] + 10 * terms["variance"] + terms["covariance"] == pytest.approx(
        reference.item(), rel=1e-5
    )
    mean_std = (first.var(0).add(1e-4).sqrt().mean() + second.var(0).add(1e-4).sqrt().mean()) / 2
    assert terms["std_all"] == pytest.approx(mean_std.item(), rel=1e-5)


def test_actions_are_accepted_and_ignored():
    objective = VICReg(PixelEncoder(), VICRegConfig(projector=(8, 8)))
    views = related_views(8)
    assert torch.equal(objective(views).loss, objective(views, torch.randn(8, 4)).loss)


def test_parts_and_features():
    objective = VICReg(PixelEncoder(), VICRegConfig(projector=(8, 8)))
    views = related_views(8)
    assert objective.parts == {"all": slice(0, 12)}
    assert torch.equal(objective(views).features, views.flatten(2))


def test_loss_falls():
    torch.manual_seed(0)
    objective = VICReg(LinearEncoder(), VICRegConfig(projector=(24, 24, 8)))
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    views, losses = related_views(32), []
    for _ in range(20):
        loss = objective(views).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_half_precision_embeddings_give_a_finite_float32_loss():
    objective = VICReg(PixelEncoder(), VICRegConfig(projector=(24, 24, 8)))
    with torch.no_grad():
        objective.projector[-1].weight.mul_(3e3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = objective(related_views(16))
    output.loss.backward()
    assert output.terms["std_all"] > 500
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)


def test_wrong_views_are_refused():
    with pytest.raises(ValueError, match="2 views of each object"):
        VICReg(PixelEncoder())(torch.zeros(4, 3, 2, 2))
