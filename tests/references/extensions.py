"""Losses of the methods that add a term to another one, which is read here, too."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.references.formulas import cosine, cross_entropy_of_labels, mean_squared_error, share_right, unit
from tests.references.networks import Batch, Calls, Network, called

if TYPE_CHECKING:
    from tests.references.table import Reference


def essl(
    network: Network, batch: Batch, base: "Reference", head: str, weight: float, small_views_remembered: bool
) -> dict[str, Tensor]:
    """Dangovski et al., ICLR 2022: a head on the encoder's features tells how a small view was transformed. All small
    views go through the encoder in one call, which its running statistics see as the released code's do, or do not."""
    assert batch.transformed_views is not None and batch.elements is not None
    of_base = base.loss(network.part("base"), batch, **base.settings)
    with network.remembered(small_views_remembered):
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


def augself(network: Network, batch: Batch, base: "Reference", head: str, weight: float) -> dict[str, Tensor]:
    """Lee et al., NeurIPS 2021, as in the released code of SIE: a head on the features of both views tells the action.

    The features are the base's. They are made a second time here, where batch norms have seen these views already.
    """
    assert batch.actions is not None
    of_base = base.loss(network.part("base"), batch, **base.settings)
    with network.remembered(False):
        features = called(lambda x: network.encoder(x, "base.encoder"), batch.views, base.settings["calls"])
    told = network.head("head.layers.layers", features.flatten(1), head)
    error = mean_squared_error(told, batch.actions)
    return {**of_base, "loss": of_base["loss"] + weight * error, "action_regression": error}


def care(
    network: Network,
    batch: Batch,
    base: "Reference",
    calls: Calls,
    chunk_size: int,
    paper_lambda: float,
    shared_views_remembered: bool,
) -> dict[str, Tensor]:
    """Gupta et al., ICLR 2024: two augmentations that a chunk of N images shares leave the cosines between its images
    alike. Of a chunk's two matrices of cosines, lambda times 2 / N times the sum of the squared differences off the
    diagonal, mean over the chunks; the term is their mean over pairs.

    Args:
        shared_views_remembered: whether running statistics see the shared views. False if these are the base's views,
            which batch norms have seen then.
    """
    of_base = base.loss(network.part("base"), batch, **base.settings)
    views = batch.views if batch.shared_views is None else batch.shared_views
    online, projector = network.part("base"), base.settings["projector"]
    with network.remembered(shared_views_remembered):
        embeddings = called(lambda x: online.head("projector.layers", online.encoder(x), projector), views, calls)
    different = ~torch.eye(chunk_size, dtype=torch.bool)
    sums = []
    for chunk in unit(embeddings).split(chunk_size):
        before, after = (directions @ directions.T for directions in chunk.unbind(1))
        sums.append((before - after)[different].square().sum())
    mean_sum = torch.stack(sums).mean()
    return {
        **of_base,
        "loss": of_base["loss"] + paper_lambda * 2 / chunk_size * mean_sum,
        "gram_difference": mean_sum / (chunk_size * (chunk_size - 1)),
        "alignment_shared": cosine(embeddings[:, 0], embeddings[:, 1]),
    }
