"""The predictor of an SIE checkpoint: its equivariant projector and its hypernetwork.

Both are recognised by words in their names ("equi" in the projector's, "predictor" or "hypernet" in the other's) and by
the order and the shapes of their tensors, for the reason in `ssl_equi.importing.sie_resnet_order`. Sizes are read from
the shapes. A linear layer from the action a to D * D numbers is a hypernetwork whose matrix is row after row of W(a).
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn

from ssl_equi.importing.tensors import LayoutError, first_names
from ssl_equi.objectives.heads import projector
from ssl_equi.objectives.latent_predictor import ProjectedPredictor
from ssl_equi.objectives.predictors import Hypernetwork

EQUIVARIANT_PROJECTOR = re.compile(
    r"[^.]*(projector|projection|expander)[^.]*equi|[^.]*equi[^.]*(projector|projection)"
)
PREDICTOR = re.compile(r"[^.]*(predictor|hypernet)")
ACTIONS = {4: "rotation", 6: "rotation_color"}
"""Width of the action -> what it tells: a quaternion xyzw, and two differences of hues."""


def import_sie_predictor(tensors: Mapping[str, Tensor], num_features: int) -> ProjectedPredictor | None:
    """The predictor on an encoder's features, in eval mode; None if the file has no such projector or predictor.

    Args:
        tensors: all of the file.
        num_features: width of the encoder's features; the equivariant part is the last ones of them.

    Raises:
        LayoutError: a projector or hypernetwork is there, but is not built as SIE's.
    """
    head = {name: value for name, value in tensors.items() if EQUIVARIANT_PROJECTOR.match(name)}
    moving = {name: value for name, value in tensors.items() if PREDICTOR.match(name)}
    if not head or not moving:
        return None
    head_module = _projector(head)
    hypernetwork = _hypernetwork(moving)
    embedding_dim = [value for value in head.values() if value.ndim == 2][-1].shape[0]
    if embedding_dim != hypernetwork.sizes["dim"]:
        raise LayoutError(
            f"the equivariant projector ends with {embedding_dim} numbers and the predictor takes "
            f"{hypernetwork.sizes['dim']}",
            "give a checkpoint of one model, or leave the predictor out with --no-predictor",
        )
    columns = slice(*feature_parts(tensors, num_features).get("equi", (0, num_features)))
    return ProjectedPredictor(num_features, columns, head_module, hypernetwork).eval()


def feature_parts(tensors: Mapping[str, Tensor], num_features: int) -> dict[str, tuple[int, int]]:
    """Columns of the features by part: the last ones, which the equivariant projector reads, are `equi`.

    Only `all` if there is no such projector, or if it reads all of them.

    Raises:
        LayoutError: it reads more than there are.
    """
    read = next((value for name, value in tensors.items() if EQUIVARIANT_PROJECTOR.match(name)), None)
    width = num_features if read is None or read.ndim != 2 else read.shape[1]
    if width > num_features:
        raise LayoutError(
            f"the equivariant projector reads {width} features, but the encoder has {num_features}",
            "give a checkpoint of one model",
        )
    border = num_features - width
    parts = {"all": (0, num_features)}
    return parts | {"inv": (0, border), "equi": (border, num_features)} if border else parts


def _projector(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Linear-BatchNorm-ReLU for every width but the last, then a Linear without bias, filled in order."""
    linear = [value for value in tensors.values() if value.ndim == 2]
    if not linear:
        raise _misfit(tensors, "an MLP")
    module = projector(linear[0].shape[1], [weight.shape[0] for weight in linear])
    own = module.state_dict()
    if [value.shape for value in tensors.values()] != [value.shape for value in own.values()]:
        raise _misfit(tensors, "SIE's projector (Linear, BatchNorm and ReLU, the last Linear without bias)")
    module.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return module


def _hypernetwork(tensors: Mapping[str, Tensor]) -> Hypernetwork:
    """SIE's hypernetwork without biases: linear, or with hidden layers as wide as the action."""
    *hidden, last = tensors.values()
    if last.ndim != 2 or math.isqrt(last.shape[0]) ** 2 != last.shape[0]:
        raise _misfit(tensors, "a hypernetwork that makes a square matrix without bias")
    action_dim, dim = last.shape[1], math.isqrt(last.shape[0])
    if action_dim not in ACTIONS or any(weight.shape != (action_dim, action_dim) for weight in hidden):
        raise _misfit(tensors, "a hypernetwork without biases for actions of 4 or 6 numbers")
    module = Hypernetwork(dim, action_dim, hidden_layers=len(hidden))
    places = [name for name in module.state_dict() if name.startswith("hidden.")]
    state = dict(zip(places, hidden, strict=True))
    module.load_state_dict(state | {"matrices": last.reshape(dim, dim, action_dim).permute(2, 0, 1)})
    return module


def _misfit(tensors: Mapping[str, Tensor], expected: str) -> LayoutError:
    shapes = ", ".join(str(tuple(value.shape)) for value in list(tensors.values())[:3])
    return LayoutError(
        f"{first_names(tensors)} of shapes {shapes} are not {expected}", "leave the predictor out with --no-predictor"
    )
