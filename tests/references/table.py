"""What each named configuration computes, as its paper or its authors' released code has it.

`REFERENCES` maps a recipe and the name of a configuration, as on the command line, to a loss in this folder and to its
settings: which images share a call of the networks (and so the statistics of their batch norms), the layers of every
head (see `networks`), and the weight of every term. The configurations for the embedded set are the project's own.
`test_references.py` holds the package to all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tests.references.capsules import capsie, equicaps
from tests.references.equivariant import sie
from tests.references.extensions import essl
from tests.references.invariant import barlow_twins, byol, simsiam, supervised, vicreg
from tests.references.sequences import seq_jepa, vicreg_traj


@dataclass(frozen=True)
class Reference:
    """A loss and its settings.

    Attributes:
        loss: from a network, a batch and the settings to the loss and its terms by name.
        settings: keyword arguments of `loss`.
        views: of each object.
        actions: shape of what the method is told of an object: (4,) for a quaternion between two views, (3, 4) for
            those of three steps, () for nothing.
        transformed_views: small views of each object, of E-SSL.
    """

    loss: Callable[..., dict[str, Tensor]]
    settings: Mapping[str, Any]
    views: int = 2
    actions: tuple[int, ...] = ()
    transformed_views: int = 0


def reference(loss: Callable[..., dict[str, Tensor]], **settings: Any) -> Reference:
    """A reference whose batch is described among the settings."""
    batch = {name: settings.pop(name) for name in ("views", "actions", "transformed_views") if name in settings}
    return Reference(loss, settings, **batch)


JOINT, APART = "all views at once", "view by view"

# Heads of two and three linear layers.
TWO_LAYERS = "linear norm relu | linear+bias"
THREE_LAYERS = "linear norm relu | linear norm relu | linear+bias"
TWO_LAYERS_NORM = "linear norm relu | linear norm-affine"
THREE_LAYERS_NORM = "linear norm relu | linear norm relu | linear norm-affine"
VICREG_HEAD = "linear+bias norm relu | linear+bias norm relu | linear"
ACTION_HEAD = "linear+bias relu | linear+bias relu | linear+bias"
ROTATION_HEAD = "linear+bias layer_norm relu | linear+bias layer_norm relu | linear+bias"

VICREG_OF_SIE = {"invariance": 10.0, "variance": 10.0, "covariance": 1.0}
SIE = {"invariance": 10.0, "equivariance": 4.5, "variance": 10.0, "variance_prediction": 5.0, "covariance": 1.0}
EQUICAPS = {"invariance": 0.1, "equivariance": 5.0, "missing_entropy": 1.0, "variance": 10.0, "covariance": 1.0}
CAPSIE = {
    "invariance": 10.0, "equivariance": 4.5, "missing_entropy": 10.0,
    "variance": 10.0, "variance_prediction": 5.0, "covariance": 1.0,
}  # fmt: skip

REFERENCES: dict[str, Reference] = {
    # The standardisation of Barlow Twins takes the last bias away again.
    "barlow_twins embedded": reference(
        barlow_twins, calls=JOINT, projector=THREE_LAYERS, weights={"on_diagonal": 1.0, "off_diagonal": 0.0051}
    ),
    "barlow_twins imagenet": reference(
        barlow_twins, calls=APART, projector=THREE_LAYERS, weights={"on_diagonal": 1.0, "off_diagonal": 0.0051}
    ),
    "byol embedded": reference(byol, calls=JOINT, projector=THREE_LAYERS, predictor=TWO_LAYERS, factor=1.0),
    "byol imagenet": reference(byol, calls=APART, projector=TWO_LAYERS, predictor=TWO_LAYERS, factor=2.0),
    "capsie embedded": reference(
        capsie, actions=(4,), calls=JOINT, pose_side=4, prediction_temperature=0.1,
        target_temperatures=(0.025, 0.1), schedule_length=1.25, weights=CAPSIE,
    ),
    "capsie paper": reference(
        capsie, actions=(4,), calls=APART, pose_side=4, prediction_temperature=0.1,
        target_temperatures=(0.025, 0.1), schedule_length=1.25, weights=CAPSIE,
    ),
    "equicaps embedded": reference(
        equicaps, actions=(4,), calls=JOINT, pose_side=3, unit_columns=3, hinge_share=0.5, weights=EQUICAPS
    ),
    "equicaps translated": reference(
        equicaps, actions=(7,), calls=JOINT, pose_side=4, unit_columns=3, hinge_share=0.5, weights=EQUICAPS
    ),
    "equicaps paper": reference(
        equicaps, actions=(4,), calls=APART, pose_side=3, unit_columns=3, hinge_share=None, weights=EQUICAPS
    ),
    "equicaps paper_translated": reference(
        equicaps, actions=(7,), calls=APART, pose_side=4, unit_columns=4, hinge_share=None, weights=EQUICAPS
    ),
    "essl embedded --base simsiam": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(simsiam, calls=JOINT, projector=THREE_LAYERS_NORM, predictor=TWO_LAYERS),
    ),
    "essl embedded --base barlow_twins": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(
            barlow_twins, calls=JOINT, projector=THREE_LAYERS, weights={"on_diagonal": 1.0, "off_diagonal": 0.0051}
        ),
    ),
    "essl embedded --base vicreg": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(vicreg, calls=JOINT, projector=VICREG_HEAD, weights=VICREG_OF_SIE),
    ),
    "seq_jepa embedded": reference(
        seq_jepa, views=4, actions=(3, 4), calls=JOINT, layers=2, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa threediebench": reference(
        seq_jepa, views=4, actions=(3, 4), calls=JOINT, layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa threediebench_color": reference(
        seq_jepa, views=5, actions=(4, 6), calls=JOINT, layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa cifar100": reference(
        seq_jepa, views=3, actions=(2, 12), calls=JOINT, layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa cifar100_legacy": reference(
        seq_jepa, views=3, actions=(2, 9), calls=JOINT, layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa tiny_imagenet": reference(
        seq_jepa, views=2, actions=(1, 12), calls=JOINT, layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa_saccades embedded": reference(
        seq_jepa, views=5, actions=(4, 2), calls=JOINT, layers=2, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa_saccades stl10": reference(
        seq_jepa, views=5, actions=(4, 2), calls=JOINT, layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "sie embedded": reference(sie, actions=(4,), calls=JOINT, projectors=VICREG_HEAD, weights=SIE),
    "sie paper": reference(sie, actions=(4,), calls=APART, projectors=VICREG_HEAD, weights=SIE),
    "simsiam embedded": reference(simsiam, calls=JOINT, projector=THREE_LAYERS_NORM, predictor=TWO_LAYERS),
    "simsiam cifar10": reference(simsiam, calls=APART, projector=TWO_LAYERS_NORM, predictor=TWO_LAYERS),
    "simsiam imagenet": reference(simsiam, calls=APART, projector=THREE_LAYERS_NORM, predictor=TWO_LAYERS),
    "supervised embedded": reference(
        supervised, actions=(4,), calls=JOINT, action_head=ACTION_HEAD,
        weights={"classification": 1.0, "action_regression": 1.0},
    ),
    "supervised threediebench": reference(
        supervised, actions=(4,), calls=JOINT, action_head=ACTION_HEAD,
        weights={"classification": 1.0, "action_regression": 1.0},
    ),
    "vicreg embedded": reference(vicreg, calls=JOINT, projector=VICREG_HEAD, weights=VICREG_OF_SIE),
    "vicreg augmented": reference(vicreg, calls=JOINT, projector=VICREG_HEAD, weights=VICREG_OF_SIE),
    "vicreg paper": reference(vicreg, calls=APART, projector=VICREG_HEAD, weights=VICREG_OF_SIE),
    "vicreg imagenet": reference(
        vicreg, calls=APART, projector=VICREG_HEAD, weights={"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    ),
    "vicreg_traj embedded": reference(
        vicreg_traj, views=3, calls=JOINT, projector=VICREG_HEAD, on_sphere=True,
        weights=VICREG_OF_SIE | {"trajectory": 0.01},
    ),
    "vicreg_traj threediebench": reference(
        vicreg_traj, views=3, calls=JOINT, projector=VICREG_HEAD, on_sphere=True,
        weights=VICREG_OF_SIE | {"trajectory": 0.01},
    ),
}  # fmt: skip
