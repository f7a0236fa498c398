"""An encoder with the weights of a checkpoint that others trained: every tensor has its place, or a named reason."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.catalogue import model_arguments, timm_with_our_encoders
from ssl_equi.errors import CheckpointError, LayoutError, UserError
from ssl_equi.export import resnet_names, vit_names
from ssl_equi.export.encoder import EncoderCard
from ssl_equi.export.layouts import LAYOUTS, NORMALISATIONS, EncoderLayout, Layout, Normalisation, Rgb, TrainingData
from ssl_equi.export.sie_resnet_order import find_sie_resnet
from ssl_equi.export.tensors import BATCH_COUNT, first_names, is_batch_count

SIE_FAMILY: tuple[EncoderLayout, ...] = ("sie", "equicaps", "capsie")
CHOSEN_BY_USER = "left out by name"
ON_TOP = "on top of the encoder"
SMALL_IMAGES, SIE_RESNET50 = "_small_images", "sie_resnet50"


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
        """What users must know of the weights.

        Args:
            objective: the method.
            trained_on: where they come from.
            parts: columns of the features by name.
        """
        return EncoderCard(
            architecture=self.architecture,
            model_args=self.model_args,
            image_size=self.image_size,
            mean_rgb=self.normalisation.mean_rgb,
            std_rgb=self.normalisation.std_rgb,
            crop_share=self.normalisation.crop_share,
            interpolation=self.normalisation.interpolation,
            parts=parts,
            objective=objective,
            trained_on=trained_on,
            license="other",
            tag="_".join([objective, *([self.data] if self.data else []), "imported"]).replace("-", "_"),
        )


@dataclass(frozen=True)
class _Located:
    """The encoder's tensors by their names in timm's encoder, the names that they have in the file, and the prefix."""

    tensors: dict[str, Tensor]
    file_names: dict[str, str]
    prefix: str
    architecture: str | None


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
    is_transformer = vit_names.is_vision_transformer(located.tensors)
    architecture, arguments, native_size = _architecture(located, options, layout, is_transformer)
    data, normalisation = _normalisation(architecture, options, layout)
    image_size = options.image_size or native_size or normalisation.image_size
    if is_transformer:
        fitted = vit_names.fit_tokens(located.tensors, image_size)
        located = _Located(
            {vit_names.timm_name(name): value for name, value in fitted.items()},
            {vit_names.timm_name(name): file_name for name, file_name in located.file_names.items()},
            located.prefix,
            architecture,
        )
    encoder = create_encoder(architecture, image_size, **arguments)
    own = encoder.state_dict()
    notes = _notes_on(architecture)
    classifier: list[str] = []
    if any(name not in located.tensors for name in own):
        in_order = _matched_in_order(located, own, options, layout)
        if in_order is not None:
            located, classifier = in_order
            notes += (
                f"names are not those of timm's {architecture}: tensors were matched by order and shapes, and agree in "
                "every one; compare features or accuracy with those of the authors",
            )
    _check_complete(located, own, architecture)
    left_out = _classify(tensors, located, own, options, layout, classifier)
    encoder.load_state_dict({name: located.tensors[name] for name in own})
    model_args = model_arguments(architecture, image_size, arguments)
    return ImportedEncoder(
        encoder.eval(), architecture, model_args, image_size, data, normalisation, left_out, tuple(notes)
    )


def _notes_on(architecture: str) -> tuple[str, ...]:
    if architecture != SIE_RESNET50:
        return ()
    return ("where SIE's ResNet-50 takes its steps is inferred from its ResNet-18: compare features with the authors'",)


def _locate(tensors: Mapping[str, Tensor], options: EncoderOptions, layout: Layout) -> _Located:
    """The encoder's tensors, with names as in timm's ResNets, or as in the file for anything else."""
    if options.layout in SIE_FAMILY:
        found = find_sie_resnet(tensors)
        inside = [name for name in tensors if found.prefix and name.startswith(found.prefix)]
        file_names = {name.removeprefix(found.prefix): name for name in inside if name not in found.names}
        file_names |= {own_name: name for name, own_name in found.names.items()}
        encoder_tensors = {own_name: tensors[name] for own_name, name in file_names.items()}
        return _Located(encoder_tensors, file_names, found.prefix, found.architecture)
    prefix = _prefix(tensors, options, layout)
    below = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        renamed = resnet_names.timm_names(below)
    except LayoutError:
        if options.architecture is None:
            raise
        renamed = {name: name for name in below}  # numbered layers of something else than a ResNet
    encoder_tensors = {renamed[name]: value for name, value in below.items()}
    return _Located(encoder_tensors, {renamed[name]: prefix + name for name in below}, prefix, None)


def _prefix(tensors: Mapping[str, Tensor], options: EncoderOptions, layout: Layout) -> str:
    prefixes = layout.encoder_prefixes
    if options.encoder_prefix is not None:
        prefixes = (f"{options.encoder_prefix.rstrip('.')}.",)
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in tensors):
            return prefix
    expected = " or ".join(repr(prefix) for prefix in prefixes)
    raise LayoutError(
        f"no tensor's name begins with {expected}, where layout {options.layout} has the encoder "
        f"(the first names are {first_names(tensors)})",
        "give --encoder-prefix what the encoder's names begin with",
    )


def _architecture(
    located: _Located, options: EncoderOptions, layout: Layout, is_transformer: bool
) -> tuple[str, dict[str, int | float | bool | str], int | None]:
    """timm's name, its arguments, and the image size that the position embedding is for."""
    native_size = vit_names.native_image_size(located.tensors) if is_transformer else None
    if options.architecture is not None:
        return options.architecture, dict(options.architecture_arguments), native_size
    arguments: dict[str, int | float | bool | str] = {}
    architecture = located.architecture
    if is_transformer:
        if not layout.transformer_heads_known:
            raise CheckpointError(
                "the shapes of a vision transformer don't tell how many heads it has: give timm's name of it as "
                "--architecture, such as vit_base_patch16_224"
            )
        sizes = vit_names.sizes_of(located.tensors)
        if sizes is not None:
            architecture, arguments = sizes.architecture, sizes.arguments
    elif architecture is None:
        architecture = resnet_names.resnet_architecture(located.tensors)
    if architecture is None:
        raise LayoutError(
            f"the tensors that begin with {located.prefix!r} ({first_names(located.tensors)}) are of no ResNet or "
            "vision transformer that is known by its shapes",
            "give timm's name of it as --architecture",
        )
    return architecture, arguments | dict(options.architecture_arguments), native_size


def _normalisation(
    architecture: str, options: EncoderOptions, layout: Layout
) -> tuple[TrainingData | None, Normalisation]:
    """What it was trained on, if that is known, and how images are given to it."""
    for_small_images = architecture.endswith(SMALL_IMAGES)
    data = options.data or (layout.small_image_data if for_small_images else layout.data)
    if data is not None:
        base = NORMALISATIONS[data]
    elif layout.timm_normalises and not for_small_images:
        base = _normalisation_of_timm(architecture)
    elif options.mean_rgb is not None and options.std_rgb is not None and options.image_size is not None:
        base = Normalisation(options.mean_rgb, options.std_rgb, options.image_size)
    else:
        raise CheckpointError(
            "the checkpoint doesn't say which small images it was trained on, and so how to normalise them: "
            "give --data cifar10, cifar100 or stl10, or --mean, --std and --image-size"
        )
    return data, replace(base, mean_rgb=options.mean_rgb or base.mean_rgb, std_rgb=options.std_rgb or base.std_rgb)


def _normalisation_of_timm(architecture: str) -> Normalisation:
    """What timm's configuration of the architecture says."""
    config = timm_with_our_encoders().get_pretrained_cfg(architecture)
    if config is None:
        raise CheckpointError(f"timm has no configuration of {architecture!r}: give --data, or another --architecture")
    return Normalisation(
        tuple(config.mean), tuple(config.std), config.input_size[-1], config.crop_pct, config.interpolation
    )


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
    if not _is_linear_layer([located.tensors[name] for name in classifier]):
        return None
    tensors = {name: located.tensors[their_name] for name, their_name in zip(own, placed, strict=True)}
    file_names = {name: located.file_names[their_name] for name, their_name in zip(own, placed, strict=True)}
    matched = _Located(tensors, file_names, located.prefix, located.architecture)
    return matched, [located.file_names[name] for name in classifier]


def _is_linear_layer(tensors: list[Tensor]) -> bool:
    """Whether these are a weight and perhaps a bias of one layer, or nothing."""
    shapes = [tensor.shape for tensor in tensors]
    return not shapes or (len(shapes[0]) in (2, 4) and shapes[1:] in ([], [shapes[0][:1]]))


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
        if is_batch_count(name) and name.replace(BATCH_COUNT, "running_var") in placed:  # the encoder counts none
            left_out.setdefault("counts of batches", []).append(name)
        elif name.startswith(options.leave_out):
            left_out.setdefault(CHOSEN_BY_USER, []).append(name)
        elif (original := _original(name, layout)) is not None:
            if original not in tensors or not torch.equal(tensors[name], tensors[original]):
                raise LayoutError(f"{name!r} has not the values of {original!r}", "give a checkpoint of one model")
            left_out.setdefault("repeated", []).append(name)
        elif (kind := _kind(name, located.prefix, layout)) is not None:
            left_out.setdefault(kind, []).append(name)
        else:
            unknown.append(name)
    if unknown:
        inside = bool(located.prefix) and unknown[0].startswith(located.prefix)
        top_level = unknown[0].split(".")[0]
        known = ", ".join(layout.left_out)
        raise LayoutError(
            f"the checkpoint holds {first_names(unknown)}, which is neither the encoder's nor of what layout "
            f"{options.layout} leaves out ({known})",
            "give the --layout or --architecture that has it"
            if inside
            else f"give --leave-out {top_level} if it is no part of the encoder",
        )
    return left_out


def _original(name: str, layout: Layout) -> str | None:
    for alias, original in layout.aliases.items():
        if name.startswith(alias):
            return original + name.removeprefix(alias)
    return None


def _kind(name: str, prefix: str, layout: Layout) -> str | None:
    """The class of things that are left out to which a tensor belongs."""
    if name.startswith(prefix) and re.match(layout.on_top, name.removeprefix(prefix)):
        return ON_TOP
    if not prefix or not name.startswith(prefix):
        for kind, beginning in layout.left_out.items():
            if re.match(beginning, name):
                return kind
    return None


def fitting_layouts(tensors: Mapping[str, Tensor], tried: str) -> list[EncoderLayout]:
    """Layouts other than the tried one under which all tensors have their place.

    ResNets with bottlenecks are never taken for SIE's, nor the reverse: names and shapes don't tell them apart.
    """
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
