"""Brings checkpoints that others trained into this project's layout.

    python tools/import_checkpoint.py 3diebench_rot_seqlen3.pth --out runs/seq-jepa-rotation
    python tools/import_checkpoint.py 3diebench_rotcol_seqlen4.pth --actions rotation_color --out runs/seq-jepa-colour
    python tools/import_checkpoint.py stl10_pls.pth --actions position --out runs/seq-jepa-saccades
    python tools/import_checkpoint.py model.pth --layout sie --action-sign -1 --out runs/sie-official
    python tools/import_checkpoint.py 800.pth --layout essl --out runs/essl-cifar10
    python tools/import_checkpoint.py resnet50.pth --layout barlow_twins --out runs/barlow-twins
    python tools/import_checkpoint.py best.pth --layout care --data stl10 --out runs/care-stl10
    python tools/import_checkpoint.py dinov2_vits14_pretrain.pth --layout dino --image-size 224 --out runs/dinov2
    python tools/import_checkpoint.py weights.safetensors --layout timm --architecture convnext_tiny --out runs/convnext

The folder then holds encoder/ as after a run, for `ssl_equi.load_encoder` and the scripts in evaluation/, and for
timm's local-dir: where the architecture is timm's own. seq-JEPA adds sequence_model/, SIE predictor/, as their runs do.

Every tensor of the file must have its place, or belong to a class that the layout leaves out (projectors, predictors,
probes, momentum networks, queues, optimisers), which is printed; every parameter and buffer of the encoder must be in
the file. Files are opened without running code from them. Layouts:

    seq_jepa    released checkpoints; sizes are read from the file, but for the number of attention heads
    sie, equicaps, capsie
                SIE's own ResNet. Their code is not looked at, so it is recognised by the order and the shapes of its
                tensors, and what else is in the file by words in its name, such as projector; give --leave-out for
                other names. The parts of SIE's features are read from its equivariant projector; in a file without
                projectors they are halves. Capsules are left out
    care, essl  ResNets for images of CIFAR's size, whose layers may be numbered, and ResNets for ImageNet
    barlow_twins
                the released ResNet-50 by itself, or the whole checkpoint
    dino        DINO and DINOv2, with or without registers: the teacher, or with --encoder-prefix student.backbone the
                student. With another --image-size than its own, positions are resampled as timm does it
    moco        the query encoder, or the base encoder of MoCo v3, whose ViT-S has 12 heads:
                --architecture vit_small_patch16_224 --architecture-arguments num_heads 12
    timm        any state of a timm model, by its --architecture, or of a torchvision ResNet. Other names are fine in
                torch's format, as long as order and shapes agree

Images are normalised as the layout's authors do, for timm as timm's configuration of the architecture says (for one of
its weights with a tag: --architecture NAME.TAG); --mean and --std say otherwise.

Actions are given to imported predictors as anywhere here: R1^-1 R2 as a quaternion xyzw, plain differences of hues.
Before version 1.11, SciPy returned inverse rotations with the other sign; for a checkpoint that was trained with it,
--action-sign -1 turns the sign (in the weights of seq-JEPA; predictor/ of SIE says it). seq-JEPA asks for SciPy 1.15.1;
SIE is older than 1.11 and names no version.

The weights stay under the terms of their authors.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import safetensors
import safetensors.torch
import torch
import tyro
from torch import Tensor

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import CheckpointError, LayoutError
from ssl_equi.export.encoder import save_encoder
from ssl_equi.export.importing import EncoderOptions, fitting_layouts, import_encoder
from ssl_equi.export.layouts import EncoderLayout, Normalisation, TrainingData
from ssl_equi.export.predictor import PREDICTOR_FOLDER, PredictorCard, save_predictor
from ssl_equi.export.seq_jepa_files import (
    VARIANTS,
    Actions,
    architecture_of,
    build_objective,
    card_of,
    describe_sequences,
    model_tensors,
)
from ssl_equi.export.sequence_model import save_sequence_model
from ssl_equi.export.sie_files import ACTIONS, equivariant_width, feature_parts, import_sie_predictor
from ssl_equi.export.tensors import named_tensors
from ssl_equi.files import sha256_of_file
from ssl_equi.latents.actions import ToldActions
from ssl_equi.options import EncoderArguments

SEQ_JEPA: Literal["seq_jepa"] = "seq_jepa"
Layout = EncoderLayout | Literal["seq_jepa"]


@dataclass(frozen=True)
class Config:
    """Which checkpoint, and how it was trained."""

    file: Annotated[Path, tyro.conf.Positional]
    """The checkpoint: torch's format, or safetensors."""
    out: Path
    """Folder to make; it must not be there yet."""
    layout: Layout = "seq_jepa"
    """Whose code saved it; see above."""
    image_size: int | None = None
    """Side in pixels of the images that it was trained on; when not given, 128 for seq-JEPA on 3DIEBench, 96 on STL-10,
    that of a position embedding, or that of the data."""
    action_sign: Literal[1, -1] = 1
    """-1 if it was trained with SciPy before 1.11; seq_jepa, and sie with a predictor."""
    actions: Actions | None = None
    """seq_jepa: what it was told of: rotation (when not given), rotation_color (3DIEBench), or position (glimpses of
    STL-10)."""
    observed_views: int | None = None
    """seq_jepa: views that it observed in training; 3 for rotation and 4 for the others when not given."""
    heads: int | None = None
    """seq_jepa: attention heads of each layer; 4, as in the released checkpoints, when not given."""
    data: TrainingData | None = None
    """Others: what it was trained on, and so how images are normalised; when not given, 3DIEBench for sie, equicaps and
    capsie, CIFAR-10 for E-SSL's small images, ImageNet-100 for CARE's large ones, ImageNet for others."""
    architecture: str | None = None
    """Others: timm's name of the encoder; found in the shapes for ResNets, and DINO's ViTs, when not given."""
    architecture_arguments: EncoderArguments = field(default_factory=dict)
    """Others: what timm.create_model is given besides the name, in pairs."""
    encoder_prefix: str | None = None
    """Others, but for sie, equicaps and capsie: what the names of the encoder's tensors begin with, such as
    student.backbone, if not with what the layout says."""
    leave_out: tuple[str, ...] = ()
    """Others: what further names begin with that are no part of the encoder."""
    predictor: bool = True
    """sie: also import projector and predictor, if they are in the file."""
    equivariant_features: int | None = None
    """sie: how many features, the last ones, are the equivariant part; read from the projector when not given, and half
    of them in a file without any projector."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue in [0, 1] that images were normalised with, if not the layout's."""
    std: tuple[float, float, float] | None = None
    """Standard deviation likewise."""


ONLY_SEQ_JEPA = ("actions", "observed_views", "heads")
NOT_SEQ_JEPA = (
    "data", "architecture", "architecture_arguments", "encoder_prefix", "leave_out", "predictor",
    "equivariant_features",
)  # fmt: skip


def check_options(config: Config) -> None:
    """Raises CheckpointError if an option is given that the layout has no use for."""
    unused: tuple[str, ...] = NOT_SEQ_JEPA if config.layout == SEQ_JEPA else ONLY_SEQ_JEPA
    if config.layout in ("sie", "equicaps", "capsie"):
        unused += ("encoder_prefix",)
    if config.layout not in (SEQ_JEPA, "sie"):
        unused += ("action_sign", "predictor", "equivariant_features")
    plain = Config(config.file, config.out)
    for name in unused:
        if getattr(config, name) != getattr(plain, name):
            option = f"--{name.replace('_', '-')}"
            raise CheckpointError(f"{option} says nothing to layout {config.layout}: leave it out")
    for name, least in (("mean", 0.0), ("std", 1e-6)):
        values = getattr(config, name)
        if values is not None and not all(least <= value <= 1 for value in values):
            raise CheckpointError(
                f"--{name} is {values}: give three numbers above 0 and up to 1, of red, green and blue"
            )
    if config.image_size is not None and config.image_size < 1:
        raise CheckpointError(f"--image-size is {config.image_size}: give a side of at least 1 pixel")


class Unread:
    """Stands in for an object of a class that is no tensor's: takes what the file says of it, and does nothing."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __setstate__(self, state: object) -> None:
        self.state = state


def unread_mapping(*values: object) -> dict[object, object]:
    """Stands in for a class of mappings, whose items follow."""
    return {}


MAPPING_CLASSES = ("collections.defaultdict",)  # to which torch adds items itself, so a stand-in must take them
UNKNOWN_CLASS = re.compile(r"GLOBAL (\S+) was not an allowed global")
MOST_UNKNOWN_CLASSES = 100
LARGEST_COMPRESSION = 10


def open_file(file: Path) -> tuple[Mapping[str, Any], list[str]]:
    """What the file holds, on the CPU, and which classes of objects in it were not read; never runs code from it."""
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}: give the path of a checkpoint")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file), []
        content, unread = open_pickled(file)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[-1] if "GLOBAL" in str(error) else "it is no checkpoint or damaged"
        raise CheckpointError(
            f"{file} can't be opened without running code from it ({reason}): give a checkpoint as its authors "
            "released it, or save the state of its model alone"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{file} is damaged or no checkpoint ({reason}): fetch it again") from error
    if isinstance(content, Unread):
        raise CheckpointError(f"{file} holds a {type(content).__name__} as a whole: save its state_dict() instead")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}: give a checkpoint with the state of the model")
    return content, unread


def open_pickled(file: Path) -> tuple[Any, list[str]]:
    """What torch saved, with stand-ins for objects of classes that torch doesn't open, and the names of these.

    torch reads such files without running code, but refuses them as a whole for one object of another class, such as a
    NumPy number or the options of a training script. Here such a class is replaced by one that does nothing.
    """
    check_archive(file)
    stand_ins: dict[str, Callable[..., object]] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                return torch.load(file, map_location="cpu", weights_only=True), list(stand_ins)
        except pickle.UnpicklingError as error:
            unknown = UNKNOWN_CLASS.search(str(error))
            if unknown is None or len(stand_ins) == MOST_UNKNOWN_CLASSES:
                raise
            name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
            if name in stand_ins:
                raise
            stand_ins[name] = unread_mapping if name in MAPPING_CLASSES else type(name, (Unread,), {})


def check_archive(file: Path) -> None:
    """Raises CheckpointError if the file, an archive, is damaged or unpacks to much more than it holds.

    torch never compresses, and doesn't look at the checksums that it writes.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
        if declared > LARGEST_COMPRESSION * file.stat().st_size:
            raise CheckpointError(
                f"{file} says that it holds {declared:,} bytes in {file.stat().st_size:,}: fetch it again, or save it "
                "anew"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{file} is damaged (the checksum of {damaged} doesn't hold): fetch it again")


def describe_source(data: str, file: Path) -> str:
    """On what data the weights were trained, and from which file they come."""
    return f"{data}, by others: {file.name}, SHA-256 {sha256_of_file(file)[:16]}"


def import_seq_jepa(content: Mapping[str, Any], config: Config) -> None:
    """Writes encoder/ and sequence_model/."""
    released = VARIANTS[config.actions or "rotation"]
    usual = released.normalisation
    normalisation = Normalisation(
        config.mean or usual.mean_rgb, config.std or usual.std_rgb, config.image_size or usual.image_size
    )
    variant = replace(
        released, normalisation=normalisation, observed_views=config.observed_views or released.observed_views,
        heads=released.heads if config.heads is None else config.heads, action_sign=config.action_sign,
    )  # fmt: skip
    tensors = model_tensors(content, str(config.file))
    objective = build_objective(tensors, variant)
    card = card_of(objective, architecture_of(tensors), variant, describe_source(variant.data, config.file))
    save_encoder(objective.encoder, config.out / "encoder", card)
    save_sequence_model(objective, config.out / "sequence_model", card, describe_sequences(variant))
    target = "with" if objective.target_encoder is not None else "without"
    print(f"{card.architecture}, {objective.config.layers} layers, {target} a momentum target: {config.out}")


def import_others(content: Mapping[str, Any], config: Config) -> None:
    """Writes encoder/, and predictor/ for SIE."""
    layout = cast(EncoderLayout, config.layout)
    tensors = named_tensors(content, str(config.file))
    options = EncoderOptions(
        layout, config.data, config.image_size, config.architecture, config.architecture_arguments,
        config.encoder_prefix, config.leave_out, config.mean, config.std,
        keeps_order=config.file.suffix != ".safetensors",
    )  # fmt: skip
    imported = import_encoder(tensors, options)
    num_features = cast(int, imported.module.num_features)
    trained_on = describe_source(imported.data or "unknown data", config.file)
    parts = {"all": (0, num_features)}
    predictor = None
    if layout == "sie":
        parts = feature_parts(tensors, num_features, config.equivariant_features)
        if config.predictor:
            predictor = import_sie_predictor(tensors, num_features, config.equivariant_features)
        if config.equivariant_features is None and equivariant_width(tensors, num_features) is None:
            print(f"no projector tells which features are equivariant: the last {num_features // 2}, as in the paper")
        if predictor is None and config.action_sign == -1:
            raise CheckpointError(f"--action-sign is -1, but no predictor of {config.file} is imported: leave it out")
    objective = "unknown" if layout == "timm" else layout
    save_encoder(imported.module, config.out / "encoder", imported.card(objective, trained_on, parts))
    print(
        f"{imported.architecture} for images of {imported.image_size} pixels, {imported.data or 'unknown data'}, "
        f"normalised with {imported.normalisation.mean_rgb} and {imported.normalisation.std_rgb}: {config.out}"
    )
    for note in imported.notes:
        print(note)
    if predictor is not None:
        card = PredictorCard("sie", ToldActions.of(ACTIONS[predictor.action_dim]), trained_on, config.action_sign)
        save_predictor(predictor, config.out / PREDICTOR_FOLDER, card)
        print(f"with a predictor that is told {card.actions}")
    for kind, names in imported.left_out.items():
        print(f"not in the encoder: {kind}, {len(names)} tensors ({names[0]}{', ...' if len(names) > 1 else ''})")


def suggestion(content: Mapping[str, Any], config: Config) -> str | None:
    """Which layout to give instead, if the tensors have their places in another one."""
    try:
        tensors: Mapping[str, Tensor] = named_tensors(content, str(config.file))
    except CheckpointError:
        return None
    if "action_proj.0.weight" in tensors and config.layout != SEQ_JEPA:
        return "its names are those of seq-JEPA, so give --layout seq_jepa"
    fitting = fitting_layouts(tensors, config.layout)
    return f"all of it fits layout {' or '.join(fitting)}, so give --layout {fitting[0]}" if fitting else None


def main(config: Config) -> None:
    check_options(config)
    if config.out.exists():
        raise CheckpointError(f"{config.out} is there already: give --out a folder that isn't")
    content, unread = open_file(config.file)
    try:
        if config.layout == SEQ_JEPA:
            import_seq_jepa(content, config)
        else:
            import_others(content, config)
    except LayoutError as error:
        cure = suggestion(content, config)
        if cure is None:
            raise
        raise CheckpointError(f"{error.problem}: {cure}") from error
    if unread:
        print(f"not read: objects of {', '.join(unread)}")
    beside = [str(key) for key, value in content.items() if not isinstance(value, Tensor | Mapping)]
    if beside:
        print(f"left out: {', '.join(beside)}")
    print("The weights stay under the terms of their authors.")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
