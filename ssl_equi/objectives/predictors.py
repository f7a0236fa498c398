"""Predictors: from the embedding of one view and an action to the embedding of the other view."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.lightly_parts import LastBatchNorm, projection_head
from ssl_equi.objectives.two_views import check_action_dim

HypernetworkInit = Literal["scale_preserving", "released"]


class Hypernetwork(nn.Module):
    """A linear map of the embedding whose matrix depends on the action (SIE, Garrido et al. 2023, section 4).

    The prediction is W(a) x with W(a) = sum_k c_k(a) W_k: the matrix is linear in the coefficients c(a), so
    W(a) x = sum_k c_k(a) (W_k x). This factored form is one matrix product with the K stored matrices; it never
    builds the [B, D, D] tensor of per-sample matrices.

    The coefficients are the action itself (`hidden_layers=0`, the paper's predictor) or the output of that many
    Linear-ReLU layers of the action's width (2 in the "deep" variant of the released code).

    Without biases and hidden layers, negating the action negates the prediction: q and -q are one rotation but two
    inputs, so quaternion signs need one rule everywhere (see `ssl_equi.geometry`).

    Args:
        dim: embedding width D.
        action_dim: action width A.
        hidden_layers: Linear-ReLU layers between the action and the coefficients.
        hypernetwork_bias: gives every linear layer of the hypernetwork a bias; the last one adds a constant matrix.
        predicted_bias: the hypernetwork also emits a vector b(a) that is added to W(a) x.
        init: scale_preserving gives W(a) x the length of x for actions of length 1. released is PyTorch's default for
            the layer, as in the SIE code: W(a) x is then about sqrt(D / 12) times as long as x, nine times at
            D = 1024, and the equivariance term shrinks the embeddings for thousands of steps before it teaches.

    Attributes:
        sizes: the arguments that another one with the same weights is made with.

    Raises:
        ValueError: unknown init.
    """

    def __init__(
        self,
        dim: int,
        action_dim: int,
        hidden_layers: int = 0,
        hypernetwork_bias: bool = False,
        predicted_bias: bool = False,
        init: HypernetworkInit = "scale_preserving",
    ) -> None:
        super().__init__()
        self.sizes = {
            "dim": dim,
            "action_dim": action_dim,
            "hidden_layers": hidden_layers,
            "hypernetwork_bias": hypernetwork_bias,
            "predicted_bias": predicted_bias,
        }
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(action_dim, action_dim, bias=hypernetwork_bias), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.hypernetwork_bias = hypernetwork_bias
        num_matrices = action_dim + int(hypernetwork_bias)
        self.matrices = nn.Parameter(torch.empty(num_matrices, dim, dim))
        self.vectors = nn.Parameter(torch.empty(num_matrices, dim)) if predicted_bias else None
        self._initialise(init, dim, action_dim)

    def _initialise(self, init: HypernetworkInit, dim: int, action_dim: int) -> None:
        if init == "scale_preserving":
            nn.init.normal_(self.matrices, std=1 / math.sqrt(dim))
            if self.vectors is not None:
                nn.init.zeros_(self.vectors)
        elif init == "released":
            # The default of the Linear(action_dim, dim * dim) that these matrices are the weights of.
            for parameter in (self.matrices, self.vectors):
                if parameter is not None:
                    nn.init.uniform_(parameter, -1 / math.sqrt(action_dim), 1 / math.sqrt(action_dim))
        else:
            raise ValueError(f"the hypernetwork's init is {init!r}: choose 'scale_preserving' or 'released'")

    def coefficients(self, actions: Tensor) -> Tensor:
        """Weight of each stored matrix, [B, K]; a bias is a matrix whose weight is always 1."""
        coefficients = self.hidden(actions)
        if self.hypernetwork_bias:
            coefficients = torch.cat([coefficients, torch.ones_like(coefficients[:, :1])], dim=1)
        return coefficients

    def forward(self, embedding: Tensor, actions: Tensor) -> Tensor:
        """Predicts the other view's embedding [B, D] from `embedding` [B, D] and `actions` [B, A]."""
        coefficients = self.coefficients(actions).unsqueeze(-1)
        products = F.linear(embedding, self.matrices.flatten(0, 1)).unflatten(1, self.matrices.shape[:2])
        prediction = (coefficients * products).sum(dim=1)
        if self.vectors is not None:
            prediction = prediction + (coefficients * self.vectors).sum(dim=1)
        return prediction


class MLPPredictor(nn.Module):
    """A plain MLP on the concatenation of action and embedding: Linear(A + D, D), then ReLU-Linear(D, D) repeated.

    Args:
        dim: embedding width D.
        action_dim: action width A.
        layers: number of linear layers (1 in the released SIE code: the prediction is then affine in both inputs).

    Attributes:
        sizes: these arguments.
    """

    def __init__(self, dim: int, action_dim: int, layers: int = 1) -> None:
        super().__init__()
        self.sizes = {"dim": dim, "action_dim": action_dim, "layers": layers}
        modules: list[nn.Module] = [nn.Linear(action_dim + dim, dim)]
        for _ in range(layers - 1):
            modules += [nn.ReLU(inplace=True), nn.Linear(dim, dim)]
        self.layers = nn.Sequential(*modules)

    def forward(self, embedding: Tensor, actions: Tensor) -> Tensor:
        """Predicts the other view's embedding [B, D] from `embedding` [B, D] and `actions` [B, A]."""
        return self.layers(torch.cat([actions.to(embedding.dtype), embedding], dim=1))


class ActionEmbedding(nn.Module):
    """A linear map without bias, then a batch norm without scale and shift: [N, A] -> [N, E] (seq-JEPA, section 3.2).

    The batch norm gives actions of any unit the same size, and a few numbers a weight beside a thousand features.
    """

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        check_action_dim(action_dim)
        if width < 1:
            raise ValueError(f"action_width is {width}: give 1 or more, such as 128")
        self.projection = nn.Linear(action_dim, width, bias=False)
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, actions: Tensor) -> Tensor:
        return self.norm(self.projection(actions.to(self.projection.weight.dtype)))


class ConditionedPredictor(nn.Module):
    """A head on the concatenation of the embedding and the embedded action: EquiMod, and SEN, Conditional BYOL and
    Conv-JEPA as seq-JEPA's released code runs them.

    Args:
        dim: embedding width D.
        action_dim: action width A.
        widths: output widths of the head's linear layers, see `lightly_parts.projection_head`; the last one is the
            prediction's.
        action_width: width of the embedded action; 128 in seq-JEPA.
        last_batch_norm: batch norm after the head's last linear layer.

    Attributes:
        sizes: these arguments.

    Raises:
        ValueError: a width is below 1, or there is none.
    """

    def __init__(
        self,
        dim: int,
        action_dim: int,
        widths: Sequence[int],
        action_width: int = 128,
        last_batch_norm: LastBatchNorm = "none",
    ) -> None:
        super().__init__()
        self.sizes = {
            "dim": dim,
            "action_dim": action_dim,
            "widths": list(widths),
            "action_width": action_width,
            "last_batch_norm": last_batch_norm,
        }
        self.action_embedding = ActionEmbedding(action_dim, action_width)
        self.head = projection_head(dim + action_width, widths, last_batch_norm)

    def forward(self, embedding: Tensor, actions: Tensor) -> Tensor:
        """Predicts the other view's embedding [B, E] from `embedding` [B, D] and `actions` [B, A]."""
        embedded_actions = self.action_embedding(actions).to(embedding.dtype)
        return self.head(torch.cat([embedding, embedded_actions], dim=1))
