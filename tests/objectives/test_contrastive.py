"""The contrastive loss against lightly's NT-Xent to the bit, and against formulas one embedding at a time."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from ssl_equi.objectives.parts import contrastive
from ssl_equi.objectives.parts.contrastive import ContrastiveLoss


def random_views(size: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    first, second = torch.randn(2, size, width, generator=generator, dtype=dtype).unbind()
    return first.requires_grad_(), second.requires_grad_()


@pytest.mark.parametrize(("size", "width", "temperature"), [(2, 8, 0.1), (64, 256, 0.1), (37, 64, 0.5)])
def test_nt_xent_is_lightlys_to_the_bit(size: int, width: int, temperature: float) -> None:
    """So that runs of earlier versions, which used lightly's, go on as they were."""
    views = random_views(size, width)
    found, expected = ContrastiveLoss(temperature)(*views), NTXentLoss(temperature)(*views)
    assert torch.equal(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found, views), torch.autograd.grad(expected, views), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("candidates", ["both_views", "other_view"])
def test_loss_equals_the_formula_one_embedding_at_a_time(candidates: str) -> None:
    views, temperature, losses = random_views(6, 5, torch.float64), 0.3, []
    directions = [view.detach() / view.detach().norm(dim=1, keepdim=True) for view in views]
    for view in (0, 1):
        for row, z in enumerate(directions[view]):
            others = [y for number, y in enumerate(directions[view]) if number != row]
            compared = [*directions[1 - view], *(others if candidates == "both_views" else [])]
            exponentials = [math.exp(float(z @ y) / temperature) for y in compared]
            losses.append(-math.log(exponentials[row] / sum(exponentials)))
    loss = ContrastiveLoss(temperature, candidates)(*views)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_it_starts_at_the_logarithm_of_the_number_of_candidates() -> None:
    """Embeddings that all point the same way tell nothing."""
    views = torch.ones(2, 8, 4, dtype=torch.float64).unbind()
    assert ContrastiveLoss(0.1)(*views).item() == pytest.approx(math.log(15))
    assert ContrastiveLoss(0.1, "other_view")(*views).item() == pytest.approx(math.log(8))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="the temperature is 0"):
        ContrastiveLoss(0.0)
    with pytest.raises(ValueError, match="candidates is 'queue': choose 'both_views' or 'other_view'"):
        ContrastiveLoss(0.1, "queue")


@pytest.mark.parametrize("candidates", ["both_views", "other_view"])
def test_what_a_gpu_computes_at_once_is_the_same_for_each_share_of_the_batch(
    candidates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = ContrastiveLoss(0.3, candidates)
    first, second = (view.requires_grad_() for view in random_views(6, 5, torch.float64))
    at_once = loss._at_once(torch.stack((first, second)))
    torch.testing.assert_close(at_once, loss(first, second))
    gradients = (torch.autograd.grad(of, (first, second)) for of in (at_once, loss(first, second)))
    torch.testing.assert_close(*gradients)

    whole = torch.nn.functional.normalize(torch.stack((first, second), dim=1), dim=2)
    monkeypatch.setattr(contrastive, "gather_batch", lambda local: whole)
    shares = []
    for rank in (0, 1):  # of two processes with three objects each
        monkeypatch.setattr(contrastive, "rank", lambda rank=rank: rank)
        own = slice(3 * rank, 3 * rank + 3)
        shares.append(loss._at_once(torch.stack((first[own], second[own]))))
    torch.testing.assert_close(torch.stack(shares).mean(), at_once)
