"""What an objective's predictor does with the features of one image: how they are embedded, and where an action leads.

An objective that predicts one view's embedding from another's hands these modules out (`latent_predictor()`), so that
the trained predictor can be exported and asked without the objective. They share the objective's weights.
"""

from typing import Literal

from torch import Tensor, nn

from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.objectives.capsule_terms import transformed_poses, unit_poses

FeatureSource = Literal["encoder", "capsule_network"]


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

    def predict(self, features: Tensor, actions: Tensor) -> Tensor:
        """Predicted embeddings [N, E] of the views that actions [N, A] lead to from views with features [N, D]."""
        return self.advance(self.embed(features), actions)


class ProjectedPredictor(EmbeddingPredictor):
    """A learnt predictor behind a projector on some of the feature columns.

    Args:
        num_features: width D of the features.
        columns: those that the projector reads.
        projector: [N, columns] -> [N, E]; None if the columns are the embedding.
        predictor: one of `ssl_equi.objectives.predictors`, on embeddings of width E.
        features_from: see `EmbeddingPredictor`.

    Raises:
        ValueError: the columns are not among the features.
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
        """See `EmbeddingPredictor`."""
        selected = features[:, self.columns]
        return selected if self.projector is None else self.projector(selected)

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        """See `EmbeddingPredictor`."""
        return self.predictor(embeddings, actions)


class PoseProduct(EmbeddingPredictor):
    """Capsule poses multiplied from the right by the action as a matrix; nothing is learnt (EquiCaps).

    The embedding is all poses row by row, each scaled so that its first `unit_columns` columns have norm 1. The
    features are those of a capsule network, [N, K + K * d * d]: activations, then poses.

    Args:
        num_capsules: K.
        pose_side: d; 3 for actions that are rotations, 4 for rigid motions.
        unit_columns: see `capsule_terms.unit_poses`; None: all.

    Raises:
        ValueError: poses of another size.
    """

    features_from: FeatureSource = "capsule_network"

    def __init__(self, num_capsules: int, pose_side: int, unit_columns: int | None = None) -> None:
        super().__init__()
        action_dims = {3: 4, 4: 7}
        if pose_side not in action_dims:
            raise ValueError(f"pose_side is {pose_side}: matrices of actions are 3 x 3 or 4 x 4")
        self.num_capsules, self.pose_side, self.unit_columns = num_capsules, pose_side, unit_columns
        self.action_dim = action_dims[pose_side]
        self.embedding_dim = num_capsules * pose_side**2
        self.num_features = num_capsules + self.embedding_dim

    def embed(self, features: Tensor) -> Tensor:
        """See `EmbeddingPredictor`."""
        return unit_poses(self._poses(features[:, self.num_capsules :]), self.unit_columns).flatten(1)

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        """See `EmbeddingPredictor`."""
        moved = transformed_poses(self._poses(embeddings), matrix_of_action(actions.to(embeddings.dtype)))
        return unit_poses(moved, self.unit_columns).flatten(1)

    def _poses(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, (self.num_capsules, self.pose_side, self.pose_side))
