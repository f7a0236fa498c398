"""Encoders from checkpoints that others trained: every tensor has its place, or a named reason."""

import re
from collections.abc import Collection, Iterable, Mapping
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
from ssl_equi.export.tensors import BATCH_COUNT, first_names, is_batch_count

SIE_FAMILY: tuple[EncoderLayout, ...] = ("sie", "equicaps", "capsie")
CHOSEN_BY_USER = "left out by name"
ON_TOP = "on top of the encoder"
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


@dataclass(frozen=True)
class _Located:
    """The encoder's tensors by their names in timm's encoder, the names that they have in the file, and the prefix."""

    tensors: dict[str, Tensor]
    file_names: dict[str, str]
    prefix: str
    architecture: str | None = None


def import_encoder(tensors: Mapping[str, Tensor], options: EncoderOptions) -> ImportedEncoder:
    """Makes the encoder of a checkpoint.

    Args:
        tensors: all of the file, as `tensors.named_tensors` gives them.
        options: whose they are.

    Raises:
        LayoutError: a tensor has no place, is missing, or has another shape; the sentence names the first.
        CheckpointError: the file doesn't tell what the options must.
    """
    layout = LAYOUTS[options.layout]
    located = _locate(tensors, options, layout)
    is_transformer = layouts.is_vision_transformer(located.tensors)
    native_size = layouts.vit_image_size(located.tensors) if is_transformer else None
    architecture, arguments = _architecture(located, options, layout, is_transformer)
    data, normalisation = _normalisation(architecture, options, layout)
    image_size = options.image_size or native_size or normalisation.image_size
    if is_transformer:
        fitted = layouts.fit_tokens(located.tensors, image_size)
        located = replace(
            located,
            tensors={layouts.vit_name(name): value for name, value in fitted.items()},
            file_names={layouts.vit_name(name): file_name for name, file_name in located.file_names.items()},
        )
    encoder = create_encoder(architecture, image_size, **arguments)
    own = encoder.state_dict()
    notes = []
    if architecture == "sie_resnet50":
        notes.append(
            "where SIE's ResNet-50 takes its steps is inferred from its ResNet-18: compare features with the authors'"
        )
    classifier: list[str] = []
    if any(name not in located.tensors for name in own):
        in_order = _matched_in_order(located, own, options, layout)
        if in_order is not None:
            located, classifier = in_order
            notes.append(MATCHED_IN_ORDER.format(architecture))
    _check_complete(located, own, architecture)
    left_out = _classify(tensors, located, own, options, layout, classifier)
    encoder.load_state_dict({name: located.tensors[name] for name in own})
    model_args = model_arguments(architecture, image_size, arguments)
    return ImportedEncoder(
        encoder.eval(), architecture, model_args, image_size, data, normalisation, left_out, tuple(notes)
    )


def _locate(tensors: Mapping[str, Tensor], options: EncoderOptions, layout: Layout) -> _Located:
    """The encoder's tensors, with names as in timm's ResNets, or as in the file for anything else."""
    if options.layout in SIE_FAMILY:
        architecture, names, prefix = find_sie_resnet(tensors)
        # What else lies beside the encoder's own tensors is none of it, and `_classify` will say so.
        inside = [name for name in tensors if prefix and name.startswith(prefix)]
        file_names = {name.removeprefix(prefix): name for name in inside if name not in names}
        file_names |= {own_name: name for name, own_name in names.items()}
        encoder_tensors = {own_name: tensors[name] for own_name, name in file_names.items()}
        return _Located(encoder_tensors, file_names, prefix, architecture)
    prefixes = layout.encoder_prefixes
    if options.encoder_prefix is not None:
        prefixes = (f"{options.encoder_prefix.rstrip('.')}.",)
    found = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), None)
    if found is None:
        raise LayoutError(
            f"no tensor's name begins with {' or '.join(map(repr, prefixes))}, where layout {options.layout} has the "
            f"encoder (the first names are {first_names(tensors)})",
            "give --encoder-prefix what the encoder's names begin with",
        )
    below = {name.removeprefix(found): value for name, value in tensors.items() if name.startswith(found)}
    try:
        renamed = layouts.resnet_names(below)
    except LayoutError:
        if options.architecture is None:
            raise
        renamed = {name: name for name in below}  # numbered layers of something else than a ResNet
    encoder_tensors = {renamed[name]: value for name, value in below.items()}
    return _Located(encoder_tensors, {renamed[name]: found + name for name in below}, found)


def _architecture(
    located: _Located, options: EncoderOptions, layout: Layout, is_transformer: bool
) -> tuple[str, ModelArguments]:
    """timm's name and arguments: the user's, or those that the shapes tell."""
    if options.architecture is not None:
        return options.architecture, dict(options.architecture_arguments)
    arguments: ModelArguments = {}
    architecture = located.architecture
    if is_transformer:
        if not layout.transformer_heads_known:
            raise CheckpointError(
                "the shapes of a vision transformer don't tell how many heads it has: give timm's name of it as "
                "--architecture, such as vit_base_patch16_224"
            )
        architecture, arguments = layouts.vit_architecture(located.tensors) or (None, {})
    elif architecture is None:
        architecture = layouts.resnet_architecture(located.tensors)
    if architecture is None:
        raise LayoutError(
            f"the tensors that begin with {located.prefix!r} ({first_names(located.tensors)}) are of no ResNet or "
            "vision transformer that is known by its shapes",
            "give timm's name of it as --architecture",
        )
    return architecture, arguments | dict(options.architecture_arguments)


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
    located: _Located, own: Mapping[str, Tensor], options: EncoderOptions, layout: Layout
) -> tuple[_Located, list[str]] | None:
    """The same tensors under the encoder's names, and names of a classifier behind them; None if they don't agree.

    For names that are nowhere known. Tensors must agree in order: each in its shape, in what it is in its layer
    (weight, bias, running_mean, ...), and in which tensors share a layer.
    """
    if not options.keeps_order or options.layout in SIE_FAMILY:
        return None
    theirs = [
        name
        for name, file_name in located.file_names.items()
        if not file_name.startswith(options.leave_out) and _kind(file_name, located.prefix, layout) is None
    ]
    placed, classifier = theirs[: len(own)], theirs[len(own) :]
    if _outline(placed, located.tensors) != _outline(own, own):
        return None
    # What is behind the encoder may be a weight and perhaps a bias of one layer, and nothing more.
    behind = [located.tensors[name].shape for name in classifier]
    if behind and not (len(behind[0]) in (2, 4) and behind[1:] in ([], [behind[0][:1]])):
        return None
    tensors = {name: located.tensors[their_name] for name, their_name in zip(own, placed, strict=True)}
    file_names = {name: located.file_names[their_name] for name, their_name in zip(own, placed, strict=True)}
    return replace(located, tensors=tensors, file_names=file_names), [located.file_names[name] for name in classifier]


def _outline(names: Iterable[str], tensors: Mapping[str, Tensor]) -> list[tuple[torch.Size, str, bool]]:
    """Of each tensor its shape, its name within its layer, and whether it is of the same layer as the one before it."""
    outline, previous = [], None
    for name in names:
        layer, _, part = name.rpartition(".")
        outline.append((tensors[name].shape, part, layer == previous))
        previous = layer
    return outline


def _check_complete(located: _Located, own: Mapping[str, Tensor], architecture: str) -> None:
    """Raises LayoutError unless every tensor of the encoder is there, in its shape."""
    missing = [name for name in own if name not in located.tensors]
    if missing:
        raise LayoutError(
            f"the checkpoint lacks what timm's {architecture} calls {first_names(missing)}, and its tensors don't "
            "agree with that in order and shapes either",
            "give a whole checkpoint, or another --architecture",
        )
    for name, value in own.items():
        if located.tensors[name].shape != value.shape:
            raise LayoutError(
                f"{located.file_names[name]!r} has shape {tuple(located.tensors[name].shape)} and not "
                f"{tuple(value.shape)} as in a {architecture}",
                "give a whole checkpoint, or another --architecture",
            )


def _classify(
    tensors: Mapping[str, Tensor],
    located: _Located,
    own: Mapping[str, Tensor],
    options: EncoderOptions,
    layout: Layout,
    classifier: Collection[str],
) -> dict[str, list[str]]:
    """Everything that is not in the encoder, by class; `classifier` are names that are known to be on top of it.

    Raises:
        LayoutError: a tensor belongs to no class, or repeats another one with other values.
    """
    placed = {located.file_names[name] for name in own} | set(classifier)
    left_out: dict[str, list[str]] = {ON_TOP: list(classifier)} if classifier else {}
    unknown = []
    for name in tensors:
        if name in placed:
            continue
        alias = next((alias for alias in layout.aliases if name.startswith(alias)), None)
        if is_batch_count(name) and name.replace(BATCH_COUNT, "running_var") in placed:  # the encoder counts none
            left_out.setdefault("counts of batches", []).append(name)
        elif name.startswith(options.leave_out):
            left_out.setdefault(CHOSEN_BY_USER, []).append(name)
        elif alias is not None:
            original = layout.aliases[alias] + name.removeprefix(alias)
            if original not in tensors or not torch.equal(tensors[name], tensors[original]):
                raise LayoutError(f"{name!r} has not the values of {original!r}", "give a checkpoint of one model")
            left_out.setdefault("repeated", []).append(name)
        elif (kind := _kind(name, located.prefix, layout)) is not None:
            left_out.setdefault(kind, []).append(name)
        else:
            unknown.append(name)
    if unknown:
        inside = bool(located.prefix) and unknown[0].startswith(located.prefix)
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
