"""The predictor of an SIE checkpoint: its equivariant projector and its hypernetwork.

Both are recognised by words in their names ("equi" in the projector's, "predictor" or "hypernet" in the other's) and by
the order and the shapes of their tensors, for the reason in `ssl_equi.export.sie_resnet_order`. Sizes are read from
the shapes. With A the width of the action a and D that of the embedding x, the linear layers are those of

    a hypernetwork      A -> A -> ... -> D * D, the matrix W(a) row after row; or D * D + D, with a bias behind it
    an MLP              A + D -> D -> ... -> D, of (a, x), with biases

Networks with hidden layers whose weights a hypernetwork makes are not known here.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_equi.errors import CheckpointError
from ssl_equi.export.tensors import first_names, is_batch_count
from ssl_equi.objectives.parts.heads import projector
from ssl_equi.objectives.parts.predictors import Hypernetwork, MLPPredictor, ProjectedPredictor

PROJECTOR = re.compile(r"[^.]*(projector|projection|expander)")
EQUIVARIANT_PROJECTOR = re.compile(
    r"[^.]*(projector|projection|expander)[^.]*equi|[^.]*equi[^.]*(projector|projection)"
)
PREDICTOR = re.compile(r"[^.]*(predictor|hypernet)")
ACTIONS = {4: "rotation", 6: "rotation_color"}
"""Width of the action -> what it tells: a quaternion xyzw, and two differences of hues."""


def import_sie_predictor(
    tensors: Mapping[str, Tensor], num_features: int, equi_dim: int | None = None
) -> ProjectedPredictor | None:
    """The predictor on an encoder's features, in eval mode; None if the file has no such projector or predictor.

    Args:
        tensors: all of the file.
        num_features: width of the encoder's features; the equivariant part is the last ones of them.
        equi_dim: width of the equivariant part; None: what the projector reads.

    Raises:
        CheckpointError: a projector or predictor is there, but is not built as SIE's.
    """
    head = {name: value for name, value in tensors.items() if EQUIVARIANT_PROJECTOR.match(name)}
    moving = {name: value for name, value in tensors.items() if PREDICTOR.match(name)}
    if not head or not moving:
        return None
    head_module = _projector(head)
    embedding_dim = [value for value in head.values() if value.ndim == 2][-1].shape[0]
    predictor = _predictor(moving, embedding_dim)
    columns = slice(*feature_parts(tensors, num_features, equi_dim).get("equi", (0, num_features)))
    return ProjectedPredictor(num_features, columns, head_module, predictor).eval()


def equivariant_width(tensors: Mapping[str, Tensor], num_features: int) -> int | None:
    """How many features the equivariant projector reads, or any other where there is none; None without a projector."""
    for pattern in (EQUIVARIANT_PROJECTOR, PROJECTOR):
        for name, value in tensors.items():
            if pattern.match(name) and value.ndim == 2:
                return value.shape[1] if pattern is EQUIVARIANT_PROJECTOR else num_features
    return None


def feature_parts(
    tensors: Mapping[str, Tensor], num_features: int, equi_dim: int | None = None
) -> dict[str, tuple[int, int]]:
    """Columns of the features by part: the last ones, which the equivariant projector reads, are `equi`.

    Only `all` if a projector reads all of them; the last half is `equi` in a file without any projector.

    Args:
        equi_dim: width of the equivariant part, where the user states it.

    Raises:
        CheckpointError: a projector reads more than there are, or something else than what is stated.
    """
    read = equivariant_width(tensors, num_features)
    if equi_dim is not None and read is not None and read != equi_dim:
        raise CheckpointError(
            f"--equivariant-features is {equi_dim}, but the projector in the file reads {read}: leave it out"
        )
    width = equi_dim or read or num_features // 2
    if width > num_features:
        raise CheckpointError(
            f"the equivariant part has {width} features, but the encoder has {num_features}: "
            "give a checkpoint of one model, or --equivariant-features"
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


def _predictor(tensors: Mapping[str, Tensor], dim: int) -> Hypernetwork | MLPPredictor:
    """SIE's hypernetwork or MLP for embeddings of width `dim`."""
    layers = _linear_layers(tensors)
    first = layers[0][0]
    if first.shape[1] in ACTIONS:
        return _hypernetwork(tensors, layers, dim)
    action_dim = first.shape[1] - dim
    widths = [dim + action_dim, *(dim for _ in layers)]
    expected = list(zip(widths[1:], widths[:-1], strict=True))
    if action_dim not in ACTIONS or [tuple(weight.shape) for weight, _ in layers] != expected:
        raise _misfit(tensors, f"a predictor of {dim} numbers from {dim} numbers and an action of 4 or 6")
    if any(bias is None for _, bias in layers):
        raise _misfit(tensors, "an MLP with biases")
    module = MLPPredictor(dim, action_dim, len(layers))
    module.load_state_dict(dict(zip(module.state_dict(), tensors.values(), strict=True)))
    return module


def _linear_layers(tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of each linear layer, in order."""
    layers: list[tuple[Tensor, Tensor | None]] = []
    for value in tensors.values():
        if value.ndim == 2:
            layers.append((value, None))
        elif value.ndim == 1 and layers and layers[-1][1] is None and len(value) == len(layers[-1][0]):
            layers[-1] = (layers[-1][0], value)
        else:
            raise _misfit(tensors, "linear layers")
    return layers


def _hypernetwork(tensors: Mapping[str, Tensor], layers: list[tuple[Tensor, Tensor | None]], dim: int) -> Hypernetwork:
    """SIE's hypernetwork: linear, or with hidden layers as wide as the action; biases in all layers, or in none."""
    *hidden, (last, last_bias) = layers
    action_dim = last.shape[1]
    rows = last.shape[0]
    if rows not in (dim * dim, dim * dim + dim):
        raise _misfit(tensors, f"a hypernetwork for {dim} numbers, which makes {dim * dim} or {dim * dim + dim}")
    if action_dim not in ACTIONS or any(weight.shape != (action_dim, action_dim) for weight, _ in hidden):
        raise _misfit(tensors, "a hypernetwork for actions of 4 or 6 numbers")
    with_bias = last_bias is not None
    if any((bias is not None) != with_bias for _, bias in hidden):
        raise _misfit(tensors, "a hypernetwork with biases in all layers, or in none")
    module = Hypernetwork(dim, action_dim, len(hidden), with_bias, predicted_bias=rows > dim * dim)
    made = last if last_bias is None else torch.cat([last, last_bias[:, None]], dim=1)
    state = {"matrices": made[: dim * dim].unflatten(0, (dim, dim)).permute(2, 0, 1)}
    if rows > dim * dim:
        state["vectors"] = made[dim * dim :].T
    places = [name for name in module.state_dict() if name.startswith("hidden.")]
    values = [value for layer in hidden for value in layer if value is not None]
    module.load_state_dict(state | dict(zip(places, values, strict=True)))
    return module


def _misfit(tensors: Mapping[str, Tensor], expected: str) -> CheckpointError:
    shown = [name for name in tensors if not is_batch_count(name)]
    shapes = ", ".join(str(tuple(tensors[name].shape)) for name in shown[:3])
    return CheckpointError(
        f"{first_names(shown)} of shapes {shapes} are not {expected}: leave the predictor out with --no-predictor"
    )
