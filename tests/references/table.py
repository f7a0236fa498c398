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
from tests.references.equivariant import conditional_byol, equimod, equimod_vicreg, sen, sie
from tests.references.extensions import augself, care, essl
from tests.references.invariant import barlow_twins, byol, moco, simclr, simsiam, supervised, vicreg
from tests.references.sequences import conv_jepa, seq_jepa, vicreg_traj


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
        shared_views: further views of each object, of CARE.
        objects: of the batch that the package is compared on.
    """

    loss: Callable[..., dict[str, Tensor]]
    settings: Mapping[str, Any]
    views: int = 2
    actions: tuple[int, ...] = ()
    transformed_views: int = 0
    shared_views: int = 0
    objects: int = 8


def reference(loss: Callable[..., dict[str, Tensor]], **settings: Any) -> Reference:
    """A reference whose batch is described among the settings."""
    names = ("views", "actions", "transformed_views", "shared_views", "objects")
    batch = {name: settings.pop(name) for name in names if name in settings}
    return Reference(loss, settings, **batch)


JOINT, APART = "all views at once", "view by view"

# Heads of two and three linear layers.
TWO_LAYERS = "linear norm relu | linear+bias"
THREE_LAYERS = "linear norm relu | linear norm relu | linear+bias"
TWO_LAYERS_NORM = "linear norm relu | linear norm-affine"
THREE_LAYERS_NORM = "linear norm relu | linear norm relu | linear norm-affine"
THREE_LAYERS_AFFINE_NORM = "linear norm relu | linear norm relu | linear norm"
THREE_LAYERS_NO_BIAS = "linear norm relu | linear norm relu | linear"
TWO_LAYERS_NO_NORM = "linear+bias relu | linear+bias"
VICREG_HEAD = "linear+bias norm relu | linear+bias norm relu | linear"
ACTION_HEAD = "linear+bias relu | linear+bias relu | linear+bias"
ROTATION_HEAD = "linear+bias layer_norm relu | linear+bias layer_norm relu | linear+bias"
ROTATION_HEAD_IMAGENET = (
    "linear+bias layer_norm relu | linear+bias layer_norm relu | linear+bias layer_norm | linear+bias"
)
PREDICTOR, PREDICTOR_NORM = "linear+bias", "linear norm-affine"  # on an embedding and an action

BARLOW_TWINS = {"on_diagonal": 1.0, "off_diagonal": 0.0051}
VICREG_OF_SIE = {"invariance": 10.0, "variance": 10.0, "covariance": 1.0}
VICREG = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
SIE = {"invariance": 10.0, "equivariance": 4.5, "variance": 10.0, "variance_prediction": 5.0, "covariance": 1.0}
SIE_OF_SEQ_JEPA = {
    "invariance": 25.0, "equivariance": 25.0, "variance": 25.0, "variance_prediction": 12.5, "covariance": 1.0,
}  # fmt: skip
EQUICAPS = {"invariance": 0.1, "equivariance": 5.0, "missing_entropy": 1.0, "variance": 10.0, "covariance": 1.0}
CAPSIE = {
    "invariance": 10.0, "equivariance": 4.5, "missing_entropy": 10.0,
    "variance": 10.0, "variance_prediction": 5.0, "covariance": 1.0,
}  # fmt: skip

REFERENCES: dict[str, Reference] = {
    "augself embedded": reference(
        augself, actions=(4,), head=ACTION_HEAD, weight=1.0,
        base=reference(simclr, calls=JOINT, projector=THREE_LAYERS, temperature=0.1, candidates="2N - 1"),
    ),
    "augself threediebench": reference(
        augself, actions=(4,), head=ACTION_HEAD, weight=1.0,
        base=reference(simclr, calls=APART, projector=THREE_LAYERS_NO_BIAS, temperature=0.1, candidates="2N - 1"),
    ),
    # The standardisation of Barlow Twins takes the last bias away again.
    "barlow_twins embedded": reference(
        barlow_twins, calls=JOINT, projector=THREE_LAYERS, weights=BARLOW_TWINS
    ),
    "barlow_twins imagenet": reference(
        barlow_twins, calls=APART, projector=THREE_LAYERS, weights=BARLOW_TWINS
    ),
    "byol embedded": reference(byol, calls=JOINT, projector=THREE_LAYERS, predictor=TWO_LAYERS, reduction="mean"),
    "byol imagenet": reference(byol, calls=APART, projector=TWO_LAYERS, predictor=TWO_LAYERS, reduction="sum"),
    "byol threediebench": reference(
        byol, calls=APART, projector=THREE_LAYERS, predictor=TWO_LAYERS, reduction="sum"
    ),
    "byol threediebench_released": reference(
        byol, calls=APART, projector=TWO_LAYERS_NORM, predictor=TWO_LAYERS, reduction="sum"
    ),
    "capsie embedded": reference(
        capsie, actions=(4,), calls=JOINT, pose_side=4, prediction_temperature=0.1,
        target_temperatures=(0.025, 0.1), schedule_length=1.25, weights=CAPSIE,
    ),
    "capsie paper": reference(
        capsie, actions=(4,), calls=APART, pose_side=4, prediction_temperature=0.1,
        target_temperatures=(0.025, 0.1), schedule_length=1.25, weights=CAPSIE,
    ),
    "care embedded": reference(
        care, shared_views=2, objects=32, calls=JOINT, chunk_size=16, paper_lambda=0.03, shared_views_remembered=False,
        base=reference(simclr, calls=JOINT, projector=THREE_LAYERS, temperature=0.1, candidates="2N - 1"),
    ),
    "care embedded --base moco": reference(
        care, shared_views=2, objects=32, calls=JOINT, chunk_size=16, paper_lambda=0.03, shared_views_remembered=False,
        base=reference(moco, projector=TWO_LAYERS_NO_NORM, temperature=0.2),
    ),
    "care embedded --base barlow_twins": reference(
        care, shared_views=2, objects=32, calls=JOINT, chunk_size=16, paper_lambda=0.03, shared_views_remembered=False,
        base=reference(barlow_twins, calls=JOINT, projector=THREE_LAYERS, weights=BARLOW_TWINS),
    ),
    "care two_pass": reference(
        care, objects=32, calls=JOINT, chunk_size=16, paper_lambda=0.03, shared_views_remembered=False,
        base=reference(simclr, calls=JOINT, projector=THREE_LAYERS, temperature=0.1, candidates="2N - 1"),
    ),
    "care cifar10": reference(
        care, shared_views=2, objects=32, calls=APART, chunk_size=16, paper_lambda=0.01, shared_views_remembered=True,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS, temperature=0.5, candidates="2N - 1"),
    ),
    "care cifar10_released": reference(
        care, shared_views=2, objects=32, calls=APART, chunk_size=16, paper_lambda=0.03, shared_views_remembered=True,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS, temperature=0.5, candidates="2N - 1"),
    ),
    "care cifar100": reference(
        care, shared_views=2, objects=128, calls=APART, chunk_size=64, paper_lambda=0.001, shared_views_remembered=True,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS, temperature=0.5, candidates="2N - 1"),
    ),
    "care stl10": reference(
        care, shared_views=2, objects=64, calls=APART, chunk_size=32, paper_lambda=0.01, shared_views_remembered=True,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS, temperature=0.5, candidates="2N - 1"),
    ),
    "care imagenet100": reference(
        care, shared_views=2, objects=16, calls=APART, chunk_size=8, paper_lambda=0.005, shared_views_remembered=True,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS_NO_NORM, temperature=0.2, candidates="2N - 1"),
    ),
    "care imagenet100_released": reference(
        care, shared_views=2, objects=16, calls=APART, chunk_size=8, paper_lambda=0.005, shared_views_remembered=True,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS_NO_NORM, temperature=0.2, candidates="2N - 1"),
    ),
    "care imagenet100_moco": reference(
        care, shared_views=2, objects=16, calls=APART, chunk_size=8, paper_lambda=0.01, shared_views_remembered=True,
        base=reference(moco, projector=TWO_LAYERS_NO_NORM, temperature=0.2),
    ),
    "conditional_byol embedded": reference(
        conditional_byol, actions=(4,), projector=THREE_LAYERS, predictor=TWO_LAYERS
    ),
    "conditional_byol threediebench": reference(
        conditional_byol, actions=(4,), projector=THREE_LAYERS, predictor=TWO_LAYERS
    ),
    "conditional_byol threediebench_released": reference(
        conditional_byol, actions=(4,), projector=TWO_LAYERS_NORM, predictor=TWO_LAYERS
    ),
    "conv_jepa embedded": reference(
        conv_jepa, views=5, actions=(4, 2), calls=JOINT, projector=TWO_LAYERS, predictor=TWO_LAYERS, reduction="mean",
    ),
    "conv_jepa stl10": reference(
        conv_jepa, views=5, actions=(4, 2), calls=JOINT, projector=TWO_LAYERS_NORM, predictor=TWO_LAYERS,
        reduction="sum",
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
    "equimod embedded": reference(
        equimod, actions=(4,), calls=JOINT, projectors=THREE_LAYERS_NORM, predictor=PREDICTOR_NORM,
        temperature=0.1, equivariant_weight=1.0,
    ),
    "equimod threediebench": reference(
        equimod, actions=(4,), calls=APART, projectors=THREE_LAYERS_NORM, predictor=PREDICTOR_NORM,
        temperature=0.1, equivariant_weight=1.0,
    ),
    "equimod threediebench_released": reference(
        equimod, actions=(4,), calls=APART, projectors=THREE_LAYERS_NORM, predictor=PREDICTOR_NORM,
        temperature=0.5, equivariant_weight=1.0,
    ),
    "equimod threediebench_sie": reference(
        equimod, actions=(4,), calls=APART, projectors=THREE_LAYERS_NO_BIAS, predictor="hypernetwork",
        temperature=0.1, equivariant_weight=1.0,
    ),
    "equimod vicreg": reference(
        equimod_vicreg, actions=(4,), calls=JOINT, projectors=THREE_LAYERS, predictor=PREDICTOR,
        weights=VICREG_OF_SIE, equivariant_weight=1.0,
    ),
    "essl embedded --base simsiam": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(simsiam, calls=JOINT, projector=THREE_LAYERS_NORM, predictor=TWO_LAYERS),
    ),
    "essl embedded --base barlow_twins": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(
            barlow_twins, calls=JOINT, projector=THREE_LAYERS, weights=BARLOW_TWINS
        ),
    ),
    "essl embedded --base vicreg": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(vicreg, calls=JOINT, projector=VICREG_HEAD, weights=VICREG_OF_SIE),
    ),
    "essl embedded": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(simclr, calls=JOINT, projector=THREE_LAYERS, temperature=0.1, candidates="2N - 1"),
    ),
    "essl cifar10": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=True,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS_NORM, temperature=0.5, candidates="N"),
    ),
    "essl cifar10_equal_rate": reference(
        essl, transformed_views=4, head=ROTATION_HEAD, weight=0.4, small_views_remembered=False,
        base=reference(simclr, calls=APART, projector=TWO_LAYERS_NORM, temperature=0.5, candidates="N"),
    ),
    "essl imagenet": reference(
        essl, transformed_views=4, head=ROTATION_HEAD_IMAGENET, weight=0.4, small_views_remembered=True,
        base=reference(simclr, calls=APART, projector=THREE_LAYERS_AFFINE_NORM, temperature=0.2, candidates="N"),
    ),
    "moco embedded": reference(moco, projector=TWO_LAYERS_NO_NORM, temperature=0.2),
    "moco imagenet": reference(moco, projector=TWO_LAYERS_NO_NORM, temperature=0.2),
    "moco imagenet100": reference(moco, projector=TWO_LAYERS_NO_NORM, temperature=0.2),
    "moco imagenet100_released": reference(moco, projector=TWO_LAYERS_NO_NORM, temperature=0.2),
    "sen embedded": reference(
        sen, actions=(4,), calls=JOINT, projector=THREE_LAYERS_NORM, predictor=PREDICTOR_NORM, temperature=0.1
    ),
    "sen threediebench": reference(
        sen, actions=(4,), calls=APART, projector=THREE_LAYERS_NORM, predictor=PREDICTOR_NORM, temperature=0.5
    ),
    "sen threediebench_released": reference(
        sen, actions=(4,), calls=APART, projector=THREE_LAYERS_NORM, predictor=PREDICTOR_NORM, temperature=0.5
    ),
    "seq_jepa embedded": reference(
        seq_jepa, views=4, actions=(3, 4), calls=JOINT, action_calls="all", layers=2, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa threediebench": reference(
        seq_jepa, views=4, actions=(3, 4), calls=JOINT, action_calls="all", layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa threediebench_color": reference(
        seq_jepa, views=5, actions=(4, 6), calls=JOINT, action_calls="all", layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa cifar100": reference(
        seq_jepa, views=3, actions=(2, 12), calls=JOINT, action_calls="all", layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa cifar100_legacy": reference(
        seq_jepa, views=3, actions=(2, 9), calls=JOINT, action_calls="last apart, zeros",
        layers=3, heads=4, predictor=TWO_LAYERS,
    ),
    "seq_jepa tiny_imagenet": reference(
        seq_jepa, views=2, actions=(1, 12), calls=JOINT, action_calls="all", layers=3, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa threediebench_released": reference(
        seq_jepa, views=4, actions=(3, 4), calls=JOINT, action_calls="last apart",
        layers=3, heads=4, predictor=TWO_LAYERS,
    ),
    "seq_jepa_saccades embedded": reference(
        seq_jepa, views=5, actions=(4, 2), calls=JOINT, action_calls="all", layers=2, heads=4, predictor=TWO_LAYERS
    ),
    "seq_jepa_saccades stl10": reference(
        seq_jepa, views=5, actions=(4, 2), calls=JOINT, action_calls="all", layers=3, heads=4, predictor=TWO_LAYERS
    ),
    **dict.fromkeys(
        ("sie embedded", "sie demo"), reference(sie, actions=(4,), calls=JOINT, projectors=VICREG_HEAD, weights=SIE)
    ),
    "sie paper": reference(sie, actions=(4,), calls=APART, projectors=VICREG_HEAD, weights=SIE),
    "sie threediebench_released": reference(
        sie, actions=(4,), calls=APART, projectors=VICREG_HEAD, weights=SIE_OF_SEQ_JEPA
    ),
    "simclr embedded": reference(
        simclr, calls=JOINT, projector=THREE_LAYERS, temperature=0.1, candidates="2N - 1"
    ),
    "simclr cifar10": reference(
        simclr, calls=APART, projector=TWO_LAYERS_NORM, temperature=0.5, candidates="N"
    ),
    "simclr imagenet": reference(
        simclr, calls=APART, projector=THREE_LAYERS_AFFINE_NORM, temperature=0.2, candidates="N"
    ),
    "simclr threediebench": reference(
        simclr, calls=APART, projector=THREE_LAYERS_NORM, temperature=0.5, candidates="2N - 1"
    ),
    "simclr threediebench_released": reference(
        simclr, calls=APART, projector=THREE_LAYERS_NORM, temperature=0.5, candidates="2N - 1"
    ),
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
    "vicreg imagenet": reference(vicreg, calls=APART, projector=VICREG_HEAD, weights=VICREG),
    "vicreg threediebench_released": reference(vicreg, calls=APART, projector=VICREG_HEAD, weights=VICREG),
    "vicreg_traj embedded": reference(
        vicreg_traj, views=3, calls=JOINT, projector=VICREG_HEAD, on_sphere=True,
        weights=VICREG_OF_SIE | {"trajectory": 0.01},
    ),
    "vicreg_traj threediebench": reference(
        vicreg_traj, views=3, calls=JOINT, projector=VICREG_HEAD, on_sphere=True,
        weights=VICREG_OF_SIE | {"trajectory": 0.01},
    ),
    "vicreg_traj threediebench_released": reference(
        vicreg_traj, views=3, calls=JOINT, projector=VICREG_HEAD, on_sphere=False,
        weights=VICREG | {"trajectory": 1.0},
    ),
}  # fmt: skip
