"""Predictors: from the embedding of one view and an action to the embedding of the other view.

Below the layers that objectives train are the `EmbeddingPredictor`s that they hand out (`latent_predictor()`), so that
a trained predictor can be exported and evaluated without its objective. They share the objective's weights.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.objectives.parts.capsule_terms import unit_poses
from ssl_equi.objectives.parts.checks import check_choice, check_number
from ssl_equi.objectives.parts.heads import LastBatchNorm, projection_head

HypernetworkInit = Literal["scale_preserving", "released"]
FeatureSource = Literal["encoder", "capsule_network"]
ACTION_DIM_BY_POSE_SIDE = {3: 4, 4: 7}  # relative rotation; relative pose in one of the two frames


class Hypernetwork(nn.Module):
    """A linear map of the embedding whose matrix depends on the action (SIE, Garrido et al. 2023, section 4).

    The prediction is W(a) x with W(a) = sum_k c_k(a) W_k. The coefficients c(a) are the action itself
    (`hidden_layers=0`, the paper's predictor) or the output of that many Linear-ReLU layers of the action's width (2 in
    the "deep" variant of the released code).

    Without biases and hidden layers, negating the action negates the prediction: q and -q are one rotation but two
    inputs, so quaternion signs need one rule everywhere (see `ssl_equi.geometry`).

    Args:
        dim: embedding width D.
        action_dim: action width A.
        hidden_layers: Linear-ReLU layers between the action and the coefficients.
        hypernetwork_bias: gives every linear layer of the hypernetwork a bias; the last one adds a constant matrix.
        predicted_bias: the hypernetwork also emits a vector b(a) that is added to W(a) x.
        init: scale_preserving gives W(a) x the length of x for actions of length 1; released is the SIE code's.

    Attributes:
        sizes: the arguments that another one with the same weights is made with.
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
        check_choice("the hypernetwork's init", init, HypernetworkInit)
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
        if init == "scale_preserving":
            nn.init.normal_(self.matrices, std=1 / math.sqrt(dim))
            if self.vectors is not None:
                nn.init.zeros_(self.vectors)
        else:
            # The default of the Linear(action_dim, dim * dim) that these matrices are the weights of: W(a) x is about
            # sqrt(dim / 12) times as long as x, nine times at 1024 dimensions, and the equivariance term shrinks the
            # embeddings for thousands of steps before it teaches.
            for parameter in (self.matrices, self.vectors):
                if parameter is not None:
                    nn.init.uniform_(parameter, -1 / math.sqrt(action_dim), 1 / math.sqrt(action_dim))

    def coefficients(self, actions: Tensor) -> Tensor:
        """Weight of each stored matrix, [B, K]; a bias is a matrix whose weight is always 1."""
        coefficients = self.hidden(actions)
        if self.hypernetwork_bias:
            coefficients = torch.cat([coefficients, torch.ones_like(coefficients[:, :1])], dim=1)
        return coefficients

    def forward(self, embedding: Tensor, actions: Tensor) -> Tensor:
        """Predicts the other view's embedding [B, D] from `embedding` [B, D] and `actions` [B, A]."""
        return self.combine(self.products(embedding), actions)

    def products(self, embedding: Tensor) -> Tensor:
        """Each stored matrix times the embedding, [B, K, D]: what predictions along several actions share."""
        return F.linear(embedding, self.matrices.flatten(0, 1)).unflatten(1, self.matrices.shape[:2])

    def combine(self, products: Tensor, actions: Tensor) -> Tensor:
        """The prediction [B, D] of `products` [B, K, D] and `actions` [B, A]."""
        coefficients = self.coefficients(actions).unsqueeze(-1)
        # W(a) x = sum_k c_k(a) (W_k x): one product with the stored matrices, without a matrix [D, D] per sample.
        prediction = (coefficients * products).sum(dim=1)
        if self.vectors is not None:
            prediction = prediction + (coefficients * self.vectors).sum(dim=1)
        return prediction


class MLPPredictor(nn.Module):
    """An MLP on action and embedding side by side: Linear(A + D, D), then ReLU-Linear(D, D) repeated.

    With one layer, as in the released SIE code, the prediction is affine in both inputs. `sizes` are the arguments.
    """

    def __init__(self, dim: int, action_dim: int, layers: int = 1) -> None:
        super().__init__()
        self.sizes = {"dim": dim, "action_dim": action_dim, "layers": layers}
        modules: list[nn.Module] = [nn.Linear(action_dim + dim, dim)]
        for _ in range(layers - 1):
            modules += [nn.ReLU(inplace=True), nn.Linear(dim, dim)]
        self.layers = nn.Sequential(*modules)

    def forward(self, embedding: Tensor, actions: Tensor) -> Tensor:
        return self.layers(torch.cat([actions.to(embedding.dtype), embedding], dim=1))


class ActionEmbedding(nn.Module):
    """A linear map without bias, then a batch norm without scale and shift: [N, A] -> [N, E] (seq-JEPA, section 3)."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        check_number("action_dim", action_dim, minimum=1)
        if width < 1:
            raise ValueError(f"action_width is {width}: give 1 or more, such as 128")
        self.projection = nn.Linear(action_dim, width, bias=False)
        # Gives actions of any unit the same size, and a few numbers a weight beside a thousand features.
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, actions: Tensor) -> Tensor:
        return self.norm(self.projection(actions.to(self.projection.weight.dtype)))


class ConditionedPredictor(nn.Module):
    """A head on the embedding beside the embedded action: EquiMod, and SEN, Conditional BYOL and Conv-JEPA as
    seq-JEPA's released code runs them.

    `widths` and `last_batch_norm` are those of a `projection_head`; `sizes` are the arguments.
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
        embedded_actions = self.action_embedding(actions).to(embedding.dtype)
        return self.head(torch.cat([embedding, embedded_actions], dim=1))


class EmbeddingPredictor(nn.Module):
    """Embeds features, and moves embeddings along actions.

    Attributes:
        num_features: width D of the features.
        embedding_dim: width E of the embeddings, before and after a prediction.
        action_dim: width A of the actions.
        features_from: whose features these are, the encoder's or those of the capsule network around it.
    """

    num_features: int
    embedding_dim: int
    action_dim: int
    features_from: FeatureSource

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings [N, E] of features [N, D]."""
        raise NotImplementedError

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        """Predicted embeddings [N, E] of the views that actions [N, A] lead to from embedded views [N, E]."""
        raise NotImplementedError

    def advance_each(self, embeddings: Tensor, along: Sequence[Tensor]) -> list[Tensor]:
        """`advance` by each of several actions [N, A]; a subclass may compute only once what these share."""
        return [self.advance(embeddings, actions) for actions in along]

    def predict(self, features: Tensor, actions: Tensor) -> Tensor:
        """Predicted embeddings [N, E] of the views that actions [N, A] lead to from views with features [N, D]."""
        return self.advance(self.embed(features), actions)


class ProjectedPredictor(EmbeddingPredictor):
    """A trained predictor behind a projector on some of the feature columns.

    Args:
        columns: those of features [N, num_features] that the projector reads.
        projector: [N, columns] -> [N, E]; None if the columns are the embedding.
        predictor: one of those above, on embeddings of width E.
    """

    def __init__(
        self,
        num_features: int,
        columns: slice,
        projector: nn.Module | None,
        predictor: nn.Module,
        features_from: FeatureSource = "encoder",
    ) -> None:
        super().__init__()
        if not 0 <= columns.start < columns.stop <= num_features:
            raise ValueError(
                f"columns {columns.start} to {columns.stop} are not among {num_features} features: give a slice of them"
            )
        self.num_features, self.columns, self.features_from = num_features, columns, features_from
        sizes: dict[str, int] = predictor.sizes  # type: ignore[assignment]
        self.embedding_dim, self.action_dim = sizes["dim"], sizes["action_dim"]
        self.projector = projector
        self.predictor = predictor

    def embed(self, features: Tensor) -> Tensor:
        selected = features[:, self.columns]
        return selected if self.projector is None else self.projector(selected)

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        return self.predictor(embeddings, actions)

    def advance_each(self, embeddings: Tensor, along: Sequence[Tensor]) -> list[Tensor]:
        if not isinstance(self.predictor, Hypernetwork):
            return super().advance_each(embeddings, along)
        products = self.predictor.products(embeddings)
        return [self.predictor.combine(products, actions) for actions in along]


class PoseProduct(EmbeddingPredictor):
    """Capsule poses multiplied from the right by the action as a matrix; nothing is learnt (EquiCaps).

    The embedding is all poses row by row, each scaled so that its first `unit_columns` columns have norm 1. The
    features are those of a capsule network, [N, K + K * d * d]: activations, then poses, whose side d is 3 for actions
    that are rotations, and 4 for rigid motions.
    """

    features_from: FeatureSource = "capsule_network"

    def __init__(self, num_capsules: int, pose_side: int, unit_columns: int | None = None) -> None:
        super().__init__()
        if pose_side not in ACTION_DIM_BY_POSE_SIDE:
            raise ValueError(
                f"pose_side is {pose_side}: make the capsules' poses 3 x 3 for rotations or 4 x 4 for poses, which the "
                "action is multiplied with"
            )
        self.num_capsules, self.pose_side, self.unit_columns = num_capsules, pose_side, unit_columns
        self.pose_shape = (num_capsules, pose_side, pose_side)
        self.action_dim = ACTION_DIM_BY_POSE_SIDE[pose_side]
        self.embedding_dim = num_capsules * pose_side**2
        self.num_features = num_capsules + self.embedding_dim

    def embed(self, features: Tensor) -> Tensor:
        poses = features[:, self.num_capsules :].unflatten(1, self.pose_shape)
        return unit_poses(poses, self.unit_columns).flatten(1)

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        poses = embeddings.unflatten(1, self.pose_shape)
        matrices = matrix_of_action(actions.to(embeddings.dtype)).unsqueeze(1)
        return unit_poses(poses @ matrices, self.unit_columns).flatten(1)
