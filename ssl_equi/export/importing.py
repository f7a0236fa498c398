"""Encoders from checkpoints that others trained: every tensor has its place, or a named reason."""

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.catalogue import model_arguments, timm_with_our_encoders
from ssl_equi.errors import CheckpointError, LayoutError, UserError
from ssl_equi.export import layouts
from ssl_equi.export.encoder import EncoderCard
from ssl_equi.export.layouts import (
    LAYOUTS,
    NORMALISATIONS,
    EncoderLayout,
    Layout,
    ModelArguments,
    Normalisation,
    Rgb,
    TrainingData,
    imported_card,
)
from ssl_equi.export.sie_files import find_sie_resnet
from ssl_equi.export.tensors import BATCH_COUNT, check_complete, first_names

SIE_FAMILY: tuple[EncoderLayout, ...] = ("sie", "equicaps", "capsie")
CHOSEN_BY_USER = "left out by name"
ON_TOP = "on top of the encoder"
INFERRED = "where SIE's ResNet-50 takes its steps is inferred from its ResNet-18: compare features with the authors'"
MATCHED_IN_ORDER = (
    "names are not those of timm's {}: tensors were matched by order and shapes, and agree in every one; compare "
    "features or accuracy with those of the authors"
)


@dataclass(frozen=True)
class EncoderOptions:
    """What the user says of a checkpoint."""

    layout: EncoderLayout
    """Whose code saved it."""
    data: TrainingData | None = None
    """What it was trained on, where the layout doesn't tell."""
    image_size: int | None = None
    """Side in pixels of its images; None: that of its position embedding, or of its data."""
    architecture: str | None = None
    """timm's name of the encoder; None: found in the shapes."""
    architecture_arguments: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    """What timm.create_model is given besides the name."""
    encoder_prefix: str | None = None
    """Beginning of the encoder's names; None: the layout's."""
    leave_out: tuple[str, ...] = ()
    """Beginnings of further names to leave out."""
    mean_rgb: Rgb | None = None
    std_rgb: Rgb | None = None
    """Normalisation of images in [0, 1]; None: that of the data, or timm's of the architecture."""
    keeps_order: bool = True
    """Whether tensors come in the order in which layers were made, as in torch's files and not in safetensors."""


@dataclass(frozen=True)
class ImportedEncoder:
    """The encoder in eval mode, what it was made of, and what of the file is not in it."""

    module: nn.Module
    architecture: str
    model_args: dict[str, object]
    image_size: int
    data: TrainingData | None
    """None: unknown."""
    normalisation: Normalisation
    left_out: dict[str, list[str]]
    """Class of tensors -> their names in the file."""
    notes: tuple[str, ...] = ()
    """What was inferred, in sentences."""

    def card(self, objective: str, trained_on: str, parts: dict[str, tuple[int, int]]) -> EncoderCard:
        """What users must know of the weights; `trained_on` says where they come from, see `EncoderCard`."""
        normalisation = replace(self.normalisation, image_size=self.image_size)
        return imported_card(self.architecture, normalisation, objective, self.data, trained_on, parts, self.model_args)


Found = dict[str, tuple[str, Tensor]]
"""Names in timm's encoder -> name in the file, and tensor."""


def import_encoder(tensors: Mapping[str, Tensor], options: EncoderOptions) -> ImportedEncoder:
    """Makes the encoder of a checkpoint from all of its tensors, as `tensors.named_tensors` gives them.

    A LayoutError names the first tensor that has no place, is missing, or has another shape; a CheckpointError, what
    neither file nor options tell.
    """
    layout = LAYOUTS[options.layout]
    found, prefix, architecture = _locate(tensors, options, layout)
    values = {name: value for name, (_, value) in found.items()}
    is_transformer = values.keys() >= layouts.VIT_TENSORS
    architecture, arguments = _architecture(values, prefix, architecture, options, layout)
    data, normalisation = _normalisation(architecture, options, layout)
    native_size = layouts.vit_image_size(values) if is_transformer else None
    image_size = options.image_size or native_size or normalisation.image_size
    if is_transformer:
        fitted = layouts.fit_tokens(values, image_size)
        found = {layouts.vit_name(name): (found[name][0], value) for name, value in fitted.items()}
    encoder = create_encoder(architecture, image_size, **arguments)
    own = encoder.state_dict()
    notes = [INFERRED] if architecture == "sie_resnet50" else []
    classifier: list[str] = []
    if any(name not in found for name in own):
        in_order = _matched_in_order(found, prefix, own, options, layout)
        if in_order is not None:
            found, classifier = in_order
            notes.append(MATCHED_IN_ORDER.format(architecture))
    called = f"what timm's {architecture} calls {{}}, and its tensors don't agree with that in order and shapes either"
    check_complete(own, found, called, f"a {architecture}", "give a whole checkpoint, or another --architecture")
    encoder.load_state_dict({name: found[name][1] for name in own})
    placed = {found[name][0] for name in own}
    left_out = _classify(tensors, placed, classifier, prefix, options, layout)
    model_args = model_arguments(architecture, image_size, arguments)
    return ImportedEncoder(
        encoder.eval(), architecture, model_args, image_size, data, normalisation, left_out, tuple(notes)
    )


def _locate(tensors: Mapping[str, Tensor], options: EncoderOptions, layout: Layout) -> tuple[Found, str, str | None]:
    """The encoder's tensors, with names as in timm's ResNets, or as in the file for anything else.

    With them, what their names in the file begin with, and the architecture if that is known already.
    """
    if options.layout in SIE_FAMILY:
        architecture, names, prefix = find_sie_resnet(tensors)
        # What else lies beside the encoder's own tensors is none of it, and `_classify` will say so.
        inside = {name: name.removeprefix(prefix) for name in tensors if prefix and name.startswith(prefix)}
        return {own: (name, tensors[name]) for name, own in (inside | names).items()}, prefix, architecture
    prefixes = layout.encoder_prefixes
    if options.encoder_prefix is not None:
        prefixes = (f"{options.encoder_prefix.rstrip('.')}.",)
    present = [prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)]
    if not present:
        raise LayoutError(
            f"no tensor's name begins with {' or '.join(map(repr, prefixes))}, where layout {options.layout} has the "
            f"encoder (the first names are {first_names(tensors)})",
            "give --encoder-prefix what the encoder's names begin with",
        )
    prefix = present[0]
    below = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        renamed = layouts.resnet_names(below)
    except LayoutError:
        if options.architecture is None:
            raise
        renamed = {name: name for name in below}  # numbered layers of something else than a ResNet
    return {renamed[name]: (prefix + name, value) for name, value in below.items()}, prefix, None


def _architecture(
    values: Mapping[str, Tensor], prefix: str, architecture: str | None, options: EncoderOptions, layout: Layout
) -> tuple[str, ModelArguments]:
    """timm's name and arguments: the user's, or those that are known or that the shapes tell."""
    given = dict(options.architecture_arguments)
    if options.architecture is not None:
        return options.architecture, given
    arguments: ModelArguments = {}
    if values.keys() >= layouts.VIT_TENSORS:
        if not layout.transformer_heads_known:
            raise CheckpointError(
                "the shapes of a vision transformer don't tell how many heads it has: give timm's name of it as "
                "--architecture, such as vit_base_patch16_224"
            )
        architecture, arguments = layouts.vit_architecture(values) or (None, {})
    architecture = architecture or layouts.resnet_architecture(values)
    if architecture is None:
        raise LayoutError(
            f"the tensors that begin with {prefix!r} ({first_names(values)}) are of no ResNet or vision transformer "
            "that is known by its shapes",
            "give timm's name of it as --architecture",
        )
    return architecture, arguments | given


def _normalisation(
    architecture: str, options: EncoderOptions, layout: Layout
) -> tuple[TrainingData | None, Normalisation]:
    """What it was trained on, if that is known, and how images are given to it."""
    for_small_images = architecture.endswith("_small_images")
    data = options.data or (layout.small_image_data if for_small_images else layout.data)
    if data is not None:
        base = NORMALISATIONS[data]
    elif layout.timm_normalises and not for_small_images:
        config = timm_with_our_encoders().get_pretrained_cfg(architecture)
        if config is None:
            raise CheckpointError(
                f"timm has no configuration of {architecture!r}: give --data, or another --architecture"
            )
        base = Normalisation(
            tuple(config.mean), tuple(config.std), config.input_size[-1], config.crop_pct, config.interpolation
        )
    elif options.mean_rgb is not None and options.std_rgb is not None and options.image_size is not None:
        base = Normalisation(options.mean_rgb, options.std_rgb, options.image_size)
    else:
        raise CheckpointError(
            "the checkpoint doesn't say which small images it was trained on, and so how to normalise them: "
            "give --data cifar10, cifar100 or stl10, or --mean, --std and --image-size"
        )
    return data, replace(base, mean_rgb=options.mean_rgb or base.mean_rgb, std_rgb=options.std_rgb or base.std_rgb)


def _matched_in_order(
    found: Found, prefix: str, own: Mapping[str, Tensor], options: EncoderOptions, layout: Layout
) -> tuple[Found, list[str]] | None:
    """The same tensors under the encoder's names, and names of a classifier behind them; None if they don't agree.

    For names that are nowhere known. Tensors must agree in order: each in its shape, in what it is in its layer
    (weight, bias, running_mean, ...), and in which tensors share a layer.
    """
    if not options.keeps_order or options.layout in SIE_FAMILY:
        return None

    def outline(tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[torch.Size, str, bool]]:
        places = [(tensor.shape, *name.rpartition(".")[::2]) for name, tensor in tensors]
        layers = [None, *(layer for _, layer, _ in places)]
        return [(shape, part, layer == before) for (shape, layer, part), before in zip(places, layers, strict=False)]

    theirs = [
        (name, file_name, tensor)
        for name, (file_name, tensor) in found.items()
        if not file_name.startswith(options.leave_out) and _kind(file_name, prefix, layout) is None
    ]
    placed, behind = theirs[: len(own)], theirs[len(own) :]
    if outline((name, tensor) for name, _, tensor in placed) != outline(own.items()):
        return None
    # What is behind the encoder may be a weight and perhaps a bias of one layer, and nothing more.
    shapes = [tensor.shape for _, _, tensor in behind]
    if shapes and not (len(shapes[0]) in (2, 4) and shapes[1:] in ([], [shapes[0][:1]])):
        return None
    in_order = {name: (file_name, tensor) for name, (_, file_name, tensor) in zip(own, placed, strict=True)}
    return in_order, [file_name for _, file_name, _ in behind]


def _classify(
    tensors: Mapping[str, Tensor],
    placed: Set[str],
    classifier: list[str],
    prefix: str,
    options: EncoderOptions,
    layout: Layout,
) -> dict[str, list[str]]:
    """Everything but what is placed in the encoder, by class; `classifier` are names known to be on top of it.

    A tensor that belongs to no class, or repeats another one with other values, is a LayoutError.
    """
    left_out: dict[str, list[str]] = {ON_TOP: list(classifier)} if classifier else {}
    unknown = []
    for name in tensors:
        if name in placed or name in classifier:
            continue
        alias = next((alias for alias in layout.aliases if name.startswith(alias)), None)
        kind = _kind(name, prefix, layout)
        if name.endswith(BATCH_COUNT) and name.replace(BATCH_COUNT, "running_var") in placed:  # the encoder counts none
            kind = "counts of batches"
        elif name.startswith(options.leave_out):
            kind = CHOSEN_BY_USER
        elif alias is not None:
            original = layout.aliases[alias] + name.removeprefix(alias)
            if original not in tensors or not torch.equal(tensors[name], tensors[original]):
                raise LayoutError(f"{name!r} has not the values of {original!r}", "give a checkpoint of one model")
            kind = "repeated"
        if kind is None:
            unknown.append(name)
        else:
            left_out.setdefault(kind, []).append(name)
    if unknown:
        inside = bool(prefix) and unknown[0].startswith(prefix)
        raise LayoutError(
            f"the checkpoint holds {first_names(unknown)}, which is neither the encoder's nor of what layout "
            f"{options.layout} leaves out ({', '.join(layout.left_out)})",
            "give the --layout or --architecture that has it"
            if inside
            else f"give --leave-out {unknown[0].split('.')[0]} if it is no part of the encoder",
        )
    return left_out


def _kind(name: str, prefix: str, layout: Layout) -> str | None:
    """The class of things that are left out to which a tensor belongs."""
    if name.startswith(prefix) and re.match(layout.on_top, name.removeprefix(prefix)):
        return ON_TOP
    if not prefix or not name.startswith(prefix):
        return next((kind for kind, beginning in layout.left_out.items() if re.match(beginning, name)), None)
    return None


def fitting_layouts(tensors: Mapping[str, Tensor], tried: str) -> list[EncoderLayout]:
    """Layouts other than the tried one under which all tensors have their place."""
    # Names and shapes don't tell ResNets with bottlenecks from SIE's, so neither is taken for the other.
    bottlenecks = any(name.endswith("conv3.weight") for name in tensors)
    fitting: list[EncoderLayout] = []
    for layout in LAYOUTS:
        if layout == tried or (bottlenecks and (layout in SIE_FAMILY or tried in SIE_FAMILY)):
            continue
        try:
            import_encoder(tensors, EncoderOptions(layout, data="imagenet"))
        except UserError:
            continue
        fitting.append(layout)
    return fitting
