"""What every objective returns."""

from dataclasses import dataclass

from torch import Tensor

from ssl_equi.objectives.vicreg_terms import full_precision


@dataclass(frozen=True)
class ObjectiveOutput:
    """The result of one forward pass of an objective.

    Attributes:
        loss: scalar to call `backward()` on. Under distributed training each process holds its own share, such
            that the mean of the gradients over processes is the gradient of the global batch.
        terms: detached scalars of at least float32, the loss terms before their weights and the collapse monitors.
            `invariance` and `equivariance` are means over this process's batch; everything computed from
            batch statistics covers the global batch.
        features: detached encoder features [B, V, D] (B objects, V views), for probes that train online.
        embeddings: the projected views [B, V, E] with their graph, for a term that is added to this objective and
            reuses them; None where there are none to reuse.
        encoder_features: the encoder features of `features` with their graph, in the encoder's precision, for a term
            that trains the encoder without the projector; None where there are none to reuse.
        aggregates: detached [B, W], what each object's views share as one representation (seq-JEPA), for probes that
            train online; None where there is none.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    features: Tensor
    embeddings: Tensor | None = None
    encoder_features: Tensor | None = None
    aggregates: Tensor | None = None


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms of a loss as an output holds them: without a graph, in float32 or better."""
    return {name: full_precision(term.detach()) for name, term in terms.items()}
