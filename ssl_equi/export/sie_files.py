"""ResNets and predictors of SIE, EquiCaps and CapsIE, recognised by the order and the shapes of their tensors.

The code of these methods is under the GPL, so nothing here is taken from it, names neither. What is known is the
network (`ssl_equi.encoders.resnets`), and that a state dict keeps the order in which layers were made. So: the first
convolution of 7 x 7 pixels on 3 colours is the stem; each convolution is followed by its batch norm; blocks come in
order, and in each its convolutions, too, with the 1 x 1 convolution of the shortcut anywhere among them (behind one of
its shape). One tensor out of place, or of another shape, is an error. A file whose names are our own is matched by name
instead, which needs no order.

SIE's equivariant projector and its hypernetwork are recognised by words in their names ("equi" in the projector's,
"predictor" or "hypernet" in the other's), by order and by shapes, which tell the sizes. With A the width of the action
a and D that of the embedding x, the linear layers of the predictor are those of

    a hypernetwork      A -> A -> ... -> D * D, the matrix W(a) row after row; or D * D + D, with a bias behind it
    an MLP              A + D -> D -> ... -> D, of (a, x), with biases

Networks with hidden layers whose weights a hypernetwork makes are not known here.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.errors import CheckpointError, LayoutError
from ssl_equi.export.layouts import LAYOUTS
from ssl_equi.export.tensors import BATCH_COUNT, first_names
from ssl_equi.objectives.parts.heads import projector
from ssl_equi.objectives.parts.predictors import Hypernetwork, MLPPredictor, ProjectedPredictor

STEM_SHAPE = (64, 3, 7, 7)
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ARCHITECTURES = ("sie_resnet18", "sie_resnet34", "sie_resnet50")

PROJECTOR = re.compile(LAYOUTS["sie"].left_out["projectors"])
EQUIVARIANT_PROJECTOR = re.compile(
    r"[^.]*(projector|projection|expander)[^.]*equi|[^.]*equi[^.]*(projector|projection)"
)
PREDICTOR = re.compile(LAYOUTS["sie"].left_out["predictors"])
ACTIONS = {4: "rotation", 6: "rotation_color"}
"""Width of the action -> what it tells: a quaternion xyzw, and two differences of hues."""


# ---------------------------------------------------------------- the ResNet


def find_sie_resnet(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, str], str]:
    """The encoder among all tensors of a checkpoint.

    Returns its architecture, names in the file -> names in the encoder, and what the names in the file begin with.
    Without one, the LayoutError names the first tensor that doesn't fit the architecture that fits longest.
    """
    stem = next((name for name, value in tensors.items() if value.shape == STEM_SHAPE), None)
    if stem is None:
        raise LayoutError(
            f"no tensor of shape {STEM_SHAPE}, the stem of SIE's ResNets, is in the checkpoint",
            "give one with the whole encoder",
        )
    known = _own_shapes()
    prefix = stem.removesuffix("conv1.weight")
    if prefix != stem:
        # The largest first: the names of each are among those of the next larger one.
        for architecture, own in reversed(known.items()):
            if all(prefix + name in tensors for name in own):
                return architecture, {prefix + name: name for name in own}, prefix
    from_stem = list(tensors)[list(tensors).index(stem) :]
    failed: list[tuple[int, LayoutError]] = []
    for architecture, own in known.items():
        names: dict[str, str] = {}
        try:
            _match_in_order(((name, tensors[name].shape) for name in from_stem), own, names)
        except LayoutError as error:
            failed.append((len(names), error))
        else:
            # The prefix is the longest beginning of whole components that all names share.
            components = zip(*(name.split(".")[:-1] for name in names), strict=False)
            shared = itertools.takewhile(lambda same: len(set(same)) == 1, components)
            return architecture, names, "".join(f"{component}." for component, *_ in shared)
    raise max(failed, key=lambda attempt: attempt[0])[1]


@functools.cache
def _own_shapes() -> dict[str, dict[str, torch.Size]]:
    """Architecture -> names and shapes of its tensors."""
    timm = timm_with_our_encoders()
    with torch.device("meta"):
        states = {name: timm.create_model(name, num_classes=0).state_dict() for name in ARCHITECTURES}
    return {name: {place: value.shape for place, value in state.items()} for name, state in states.items()}


def _match_in_order(
    theirs: Iterator[tuple[str, torch.Size]], own: Mapping[str, torch.Size], names: dict[str, str]
) -> None:
    """Fills `names`, from names in the file to names in the encoder, until all are found or one doesn't fit."""
    blocks: dict[str, list[str]] = {}  # convolutions of the stem, then of each block
    for name, shape in own.items():
        if len(shape) == 4:
            blocks.setdefault(".".join(name.split(".")[:2]), []).append(name)
    for convolutions in blocks.values():
        path = [place for place in convolutions if "downsample" not in place]
        shortcut = [place for place in convolutions if "downsample" in place]
        while path or shortcut:
            open_places = path[:1] + shortcut
            name, shape = _next(theirs, open_places[0])
            place = next((place for place in open_places if own[place] == shape), None)
            if place is None:
                raise _misplaced(name, shape, " or ".join(sorted({str(tuple(own[place])) for place in open_places})))
            (shortcut if place in shortcut else path).remove(place)
            names[name] = place
            layer = place.removesuffix(".weight")
            norm = f"{layer[:-1]}1" if layer.endswith("downsample.0") else layer.replace("conv", "bn")
            for part in NORM_PARTS:
                norm_place = f"{norm}.{part}"
                name, shape = _next(theirs, norm_place)
                if shape != own[norm_place] or not name.endswith(f".{part}"):
                    raise _misplaced(name, shape, f"the {part} {tuple(own[norm_place])} of a batch norm")
                names[name] = norm_place


def _next(theirs: Iterator[tuple[str, torch.Size]], place: str) -> tuple[str, torch.Size]:
    found = next(theirs, None)
    if found is None:
        raise LayoutError(
            f"the checkpoint ends where SIE's ResNet has {place!r}", "give one with the whole encoder in its order"
        )
    return found


def _misplaced(name: str, shape: torch.Size, expected: str) -> LayoutError:
    return LayoutError(
        f"{name!r} has shape {tuple(shape)} where SIE's ResNet has {expected}",
        "give a checkpoint of SIE, EquiCaps or CapsIE as their code saved it (.safetensors keep no order)",
    )


# ---------------------------------------------------------------- projector and predictor


def import_sie_predictor(
    tensors: Mapping[str, Tensor], num_features: int, equi_dim: int | None = None
) -> ProjectedPredictor | None:
    """The predictor on an encoder's features, in eval mode; None if the file has no such projector or predictor.

    Args:
        tensors: all of the file.
        num_features: width of the encoder's features; the equivariant part is the last ones of them.
        equi_dim: width of the equivariant part; None: what the projector reads.
    """
    head = {name: value for name, value in tensors.items() if EQUIVARIANT_PROJECTOR.match(name)}
    moving = {name: value for name, value in tensors.items() if PREDICTOR.match(name)}
    if not head or not moving:
        return None
    linear = [value for value in head.values() if value.ndim == 2]
    if not linear:
        raise _misfit(head, "an MLP")
    module = projector(linear[0].shape[1], [weight.shape[0] for weight in linear])
    own = module.state_dict()
    if [value.shape for value in head.values()] != [value.shape for value in own.values()]:
        raise _misfit(head, "SIE's projector (Linear, BatchNorm and ReLU, the last Linear without bias)")
    module.load_state_dict(dict(zip(own, head.values(), strict=True)))
    predictor = _predictor(moving, linear[-1].shape[0])
    columns = slice(*feature_parts(tensors, num_features, equi_dim).get("equi", (0, num_features)))
    return ProjectedPredictor(num_features, columns, module, predictor).eval()


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

    Only `all` if a projector reads all of them; the last half is `equi` in a file without any projector, unless the
    user states its width, `equi_dim`.
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


def _predictor(tensors: Mapping[str, Tensor], dim: int) -> Hypernetwork | MLPPredictor:
    """SIE's hypernetwork or MLP for embeddings of width `dim`."""
    layers: list[tuple[Tensor, Tensor | None]] = []  # weight and bias of each, in order
    for value in tensors.values():
        if value.ndim == 2:
            layers.append((value, None))
        elif value.ndim == 1 and layers and layers[-1][1] is None and len(value) == len(layers[-1][0]):
            layers[-1] = (layers[-1][0], value)
        else:
            raise _misfit(tensors, "linear layers")
    if layers[0][0].shape[1] in ACTIONS:
        return _hypernetwork(tensors, layers, dim)
    action_dim = layers[0][0].shape[1] - dim
    shapes = [(dim, dim + action_dim), *[(dim, dim)] * (len(layers) - 1)]
    if action_dim not in ACTIONS or [tuple(weight.shape) for weight, _ in layers] != shapes:
        raise _misfit(tensors, f"a predictor of {dim} numbers from {dim} numbers and an action of 4 or 6")
    if any(bias is None for _, bias in layers):
        raise _misfit(tensors, "an MLP with biases")
    module = MLPPredictor(dim, action_dim, len(layers))
    module.load_state_dict(dict(zip(module.state_dict(), tensors.values(), strict=True)))
    return module


def _hypernetwork(tensors: Mapping[str, Tensor], layers: list[tuple[Tensor, Tensor | None]], dim: int) -> Hypernetwork:
    """SIE's hypernetwork: linear, or with hidden layers as wide as the action; biases in all layers, or in none."""
    *hidden, (last, last_bias) = layers
    rows, action_dim = last.shape
    if rows not in (dim * dim, dim * dim + dim):
        raise _misfit(tensors, f"a hypernetwork for {dim} numbers, which makes {dim * dim} or {dim * dim + dim}")
    if action_dim not in ACTIONS or any(weight.shape != (action_dim, action_dim) for weight, _ in hidden):
        raise _misfit(tensors, "a hypernetwork for actions of 4 or 6 numbers")
    with_bias = last_bias is not None
    if any((bias is not None) != with_bias for _, bias in hidden):
        raise _misfit(tensors, "a hypernetwork with biases in all layers, or in none")
    module = Hypernetwork(dim, action_dim, len(hidden), with_bias, predicted_bias=rows > dim * dim)
    # Ours keeps a matrix for each number of the action, and the bias as one more; theirs is a row for each entry.
    made = last if last_bias is None else torch.cat([last, last_bias[:, None]], dim=1)
    state = {"matrices": made[: dim * dim].unflatten(0, (dim, dim)).permute(2, 0, 1)}
    if rows > dim * dim:
        state["vectors"] = made[dim * dim :].T
    places = [name for name in module.state_dict() if name.startswith("hidden.")]
    values = [value for layer in hidden for value in layer if value is not None]
    module.load_state_dict(state | dict(zip(places, values, strict=True)))
    return module


def _misfit(tensors: Mapping[str, Tensor], expected: str) -> CheckpointError:
    shown = [name for name in tensors if not name.endswith(BATCH_COUNT)]
    shapes = ", ".join(str(tuple(tensors[name].shape)) for name in shown[:3])
    return CheckpointError(
        f"{first_names(shown)} of shapes {shapes} are not {expected}: leave the predictor out with --no-predictor"
    )
