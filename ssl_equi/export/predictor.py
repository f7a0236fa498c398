"""Exported predictors: which embedding a view has, and which one an action leads to.

The folder holds `model.safetensors` and a `config.json` that describes itself:

    name, trained_on    the method, and name and fingerprint of its training data
    actions             what the predictor is told: names as of the recipes' --actions, kinds and widths of the parts;
                        in folders of earlier versions one name of 3DIEBench's actions, or augmentation
    action_sign         1, or -1 if it was trained with the negative of every quaternion (SciPy before 1.11)
    features_from       encoder or capsule_network: the folder beside it whose features [N, num_features] it reads
    kind                projected, with columns, projector and predictor;
                        or pose_product, with num_capsules, pose_side and unit_columns
    embedding_dim       width of the embeddings
    weights_sha256      of model.safetensors; not in folders of earlier versions
    projector           null, or {"kind": vicreg | projection_head, "in_features", "widths", "last_batch_norm",
                        "last_bias"}; last_bias, true where it is missing, is for projection_head
    predictor           {"kind": hypernetwork | mlp | conditioned, "dim", "action_dim", and more sizes}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_equi.errors import CheckpointError
from ssl_equi.export.folder import Export, check_sizes, open_module, read_config
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.parts.heads import projection_head, projector
from ssl_equi.objectives.parts.predictors import (
    ConditionedPredictor,
    EmbeddingPredictor,
    FeatureSource,
    Hypernetwork,
    MLPPredictor,
    PoseProduct,
    ProjectedPredictor,
)

PREDICTOR_FOLDER = "predictor"
PREDICTOR_KINDS: dict[str, type[nn.Module]] = {
    "hypernetwork": Hypernetwork,
    "mlp": MLPPredictor,
    "conditioned": ConditionedPredictor,
}


class LatentPredictor(Protocol):
    """Embeds features of views, and predicts the embeddings of the views that actions lead to.

    One whose predictions can be predicted from has a method `advance(embeddings [N, E], actions [N, A])`, too.

    Attributes:
        name: of the method that trained it.
        actions: what it is told.
    """

    name: str
    actions: ToldActions

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings [N, E] of features [N, D]."""

    def predict(self, features: Tensor, actions: Tensor) -> Tensor:
        """Predicted embeddings [N, E] of the views that actions [N, A] lead to from views with features [N, D]."""


@dataclass(frozen=True)
class PredictorCard:
    """What a user of the predictor must know besides its weights.

    Attributes:
        name: of the method that trained it.
        actions: as in `LatentPredictor`.
        trained_on: name and fingerprint of the training data.
        action_sign: -1 if it was trained with the negative of every relative quaternion.
    """

    name: str
    actions: ToldActions
    trained_on: str
    action_sign: Literal[1, -1] = 1

    def check(self, action_dim: int) -> None:
        """Raises ValueError unless the actions have this width."""
        if action_dim != self.actions.width:
            raise ValueError(
                f"the predictor takes actions of {action_dim} columns, but '{self.actions}' has {self.actions.width}"
            )
        if self.action_sign not in (1, -1) or (self.action_sign == -1 and not self.actions.quaternion_columns):
            raise ValueError(
                f"action_sign is {self.action_sign} for actions '{self.actions}': give 1, or -1 for quaternions"
            )


class TrainedPredictor(nn.Module):
    """An exported predictor: a `LatentPredictor` that takes this project's actions.

    A card that doesn't belong to the module, and features and actions of another width, are ValueErrors.

    Attributes:
        features_from: "encoder" or "capsule_network", whose features it reads.
        num_features, embedding_dim, action_dim: widths of features, embeddings and actions.
    """

    def __init__(self, module: EmbeddingPredictor, card: PredictorCard) -> None:
        super().__init__()
        card.check(module.action_dim)
        self.module, self.card = module, card
        self.name, self.actions = card.name, card.actions
        self.features_from: FeatureSource = module.features_from
        self.num_features, self.embedding_dim = module.num_features, module.embedding_dim
        self.action_dim = module.action_dim

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings [N, E] of features [N, D]."""
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"features have shape {tuple(features.shape)}: this predictor of {self.name} reads "
                f"[N, {self.num_features}] of the {self.features_from}"
            )
        return self.module.embed(features)

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        """Predicted embeddings [N, E] of the views that actions [N, A] lead to from embedded views [N, E]."""
        return self.module.advance(embeddings, self._as_trained(embeddings, actions))

    def advance_each(self, embeddings: Tensor, along: Sequence[Tensor]) -> list[Tensor]:
        """`advance` by each of several actions [N, A] from the same views; what they share is computed once."""
        return self.module.advance_each(embeddings, [self._as_trained(embeddings, actions) for actions in along])

    def _as_trained(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        """The actions in the signs that the module was trained with."""
        if actions.shape != (len(embeddings), self.action_dim):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}: this predictor of {self.name} is told '{self.actions}', "
                f"[{len(embeddings)}, {self.action_dim}]"
            )
        if self.card.action_sign == -1:
            actions = actions.clone()
            actions[:, self.actions.quaternion_columns] *= -1
        return actions

    def predict(self, features: Tensor, actions: Tensor) -> Tensor:
        """Predicted embeddings [N, E] of the views that actions [N, A] lead to from views with features [N, D]."""
        return self.advance(self.embed(features), actions)


def predictor_export(module: EmbeddingPredictor, card: PredictorCard) -> Export:
    """A predictor and its card; ValueError if they don't belong together, or nobody knows how to describe it."""
    card.check(module.action_dim)
    config = {
        "name": card.name,
        "trained_on": card.trained_on,
        "actions": card.actions.describe(),
        "action_sign": card.action_sign,
        "features_from": module.features_from,
        "num_features": module.num_features,
        "embedding_dim": module.embedding_dim,
        "action_dim": module.action_dim,
    } | _describe(module)
    return Export(module, config, lambda: _build(config))


def save_predictor(module: EmbeddingPredictor, folder: Path, card: PredictorCard) -> None:
    """Writes what `predictor_export` makes of them, as `Export.write` does."""
    predictor_export(module, card).write(folder)


def load_predictor(folder: str | Path) -> TrainedPredictor:
    """Opens a run's `predictor/`, in eval mode, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged, it describes no predictor, or its weights have another layout.
    """
    folder = Path(folder)
    config = read_config(folder, "predictor", "give the predictor/ of a run whose objective has a predictor")
    if "kind" not in config:
        raise CheckpointError(f"{folder} holds no exported predictor: give the predictor/ of a run")
    check_sizes(config, folder)

    def card() -> PredictorCard:
        actions = ToldActions.of(config["actions"], augmentation_width=config["action_dim"])
        return PredictorCard(config["name"], actions, config["trained_on"], config["action_sign"])

    def build() -> EmbeddingPredictor:
        module = _build(config)
        card().check(module.action_dim)  # here, so that a card that is wrong is an error like any other of the config
        return module

    module = cast(EmbeddingPredictor, open_module(folder, config, build, "predictor"))
    return TrainedPredictor(module, card()).eval()


def _describe(module: EmbeddingPredictor) -> dict[str, Any]:
    """What `_build` makes another one from."""
    if isinstance(module, PoseProduct):
        sizes = {"num_capsules": module.num_capsules, "pose_side": module.pose_side}
        return {"kind": "pose_product", **sizes, "unit_columns": module.unit_columns}
    if not isinstance(module, ProjectedPredictor):
        raise ValueError(f"{type(module).__name__} is no predictor that can be exported: use those of latent_predictor")
    predictor = module.predictor
    kind = next((kind for kind, known in PREDICTOR_KINDS.items() if type(predictor) is known), None)
    if kind is None:
        raise ValueError(f"{type(predictor).__name__} is no predictor of {', '.join(PREDICTOR_KINDS)}")
    return {
        "kind": "projected",
        "columns": [module.columns.start, module.columns.stop],
        "projector": None if module.projector is None else _describe_projector(module.projector),
        "predictor": {"kind": kind, **cast(dict[str, Any], predictor.sizes)},
    }


def _describe_projector(module: nn.Module) -> dict[str, Any]:
    """Kind and sizes of a head of `heads.projector` or `lightly_parts.projection_head`."""
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, _BatchNorm))]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    last, last_batch_norm = layers[-1], "none"
    if isinstance(last, _BatchNorm):  # that of one process, or a synchronised one
        last_batch_norm = "affine" if last.affine else "not_affine"
    return {
        "kind": "vicreg" if isinstance(module, nn.Sequential) else "projection_head",
        "in_features": linear[0].in_features,
        "widths": [layer.out_features for layer in linear],
        "last_batch_norm": last_batch_norm,
        "last_bias": linear[-1].bias is not None,
    }


def _build(config: dict[str, Any]) -> EmbeddingPredictor:
    """The described module with random weights; the errors of whatever is missing or wrong."""
    if config["kind"] == "pose_product":
        return PoseProduct(config["num_capsules"], config["pose_side"], config["unit_columns"])
    if config["kind"] != "projected":
        raise ValueError(f"kind is {config['kind']!r}: projected and pose_product are known")
    if config["features_from"] not in get_args(FeatureSource):
        raise ValueError(f"features_from is {config['features_from']!r}: choose from {get_args(FeatureSource)}")
    sizes = dict(config["predictor"])
    predictor = PREDICTOR_KINDS[sizes.pop("kind")](**sizes)
    head = None if config["projector"] is None else _build_projector(config["projector"])
    return ProjectedPredictor(
        config["num_features"], slice(*config["columns"]), head, predictor, config["features_from"]
    )


def _build_projector(config: dict[str, Any]) -> nn.Module:
    if config["kind"] == "vicreg":
        return projector(config["in_features"], config["widths"])
    if config["kind"] == "projection_head":
        last_bias = config.get("last_bias", True)
        return projection_head(config["in_features"], config["widths"], config["last_batch_norm"], last_bias=last_bias)
    raise ValueError(f"the projector's kind is {config['kind']!r}: vicreg and projection_head are known")
