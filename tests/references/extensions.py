"""Losses of the methods that add a term to another one, which is read here, too."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from torch import Tensor

from tests.references.formulas import cross_entropy_of_labels, share_right
from tests.references.networks import Batch, Network

if TYPE_CHECKING:
    from tests.references.table import Reference


def essl(
    network: Network, batch: Batch, base: "Reference", head: str, weight: float, small_views_remembered: bool
) -> dict[str, Tensor]:
    """Dangovski et al., ICLR 2022: a head on the encoder's features tells how a small view was transformed. All small
    views go through the encoder in one call, which its running statistics see as the released code's do, or do not."""
    assert batch.transformed_views is not None and batch.elements is not None
    of_base = base.loss(network.part("base"), batch, **base.settings)
    with nullcontext() if small_views_remembered else network.nothing_remembered():
        features = network.encoder(batch.transformed_views.flatten(0, 1), "base.encoder")
    logits, labels = network.head("head", features, head), batch.elements.flatten()
    assert logits.shape[1] == batch.elements.shape[1], "each small view is shown in all its versions"
    transformation = cross_entropy_of_labels(logits, labels)
    return {
        **of_base,
        "loss": of_base["loss"] + weight * transformation,
        "transformation": transformation,
        "transformation_top1": share_right(logits, labels),
    }
