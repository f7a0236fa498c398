"""Any encoder by one line of text: a run, an exported encoder, timm's weights, random weights, or a repository.

| text | what is opened |
|---|---|
| `runs/sie` | the encoder that a run left in `encoder/` |
| `runs/sie/encoder` | a folder with `config.json` and `model.safetensors`, ours or as timm saves its models |
| `timm:NAME` | timm's pretrained weights, downloaded |
| `timm:NAME@FILE` | the same from a local safetensors file of them |
| `random:NAME` | the architecture with random weights |
| `hub:OWNER/NAME[@REVISION]` | a model repository on the Hugging Face hub with those two files |
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_equi.checkpoint import read_tensors
from ssl_equi.encoders.catalogue import create_encoder, model_arguments, timm_with_our_encoders
from ssl_equi.errors import EncoderError, ImageSizeError, described
from ssl_equi.export.encoder import (
    ENCODER_FOLDER,
    build_encoder,
    encoder_folder,
    load_encoder,
    parts_of,
    read_encoder_config,
)
from ssl_equi.export.folder import CONFIG_FILE, WEIGHTS_FILE
from ssl_equi.export.hub import download_encoder
from ssl_equi.export.predictor import PREDICTOR_FOLDER, TrainedPredictor, load_predictor
from ssl_equi.runtime.frozen import state_sha256

TIMM_PREFIX, RANDOM_PREFIX, HUB_PREFIX = "timm:", "random:", "hub:"
RANDOM_ENCODER_SEED = 2**31  # a seed that no training uses: of the random encoders that others are compared with
RANDOM_IMAGE_SIZE = 64  # side of the embedded set's images, for random weights, which were trained on none
EXPORT_FOLDERS = (ENCODER_FOLDER, "capsule_network")  # within a run's folder

ColourStatistics = tuple[float, float, float]


@dataclass(frozen=True)
class EncoderSource:
    """An encoder that can be evaluated, and what is known about it.

    Attributes:
        name: for titles and folders: the run's, or such as `timm-resnet18`.
        module: images [N, 3, S, S] -> features [N, D]; in evaluation mode, on the CPU.
        parts: columns of the features by name (`all`, `inv`, `equi`).
        image_size: side S in pixels of the images that it is given.
        mean_rgb, std_rgb: normalisation of images in [0, 1]; None: that of the data's training images.
        state_sha256: of all parameters and buffers.
        architecture: name and arguments, as canonical JSON.
        build_untrained: makes the same architecture with random weights; None if these weights are random.
        predictor: trained with the encoder and exported beside it; None if there is none that reads its features.
        run_folder: folder that results belong to by default; None if nothing but a name is known.
        notes: what a reader of the numbers must know of it, such as images of another size than in training.
    """

    name: str
    module: nn.Module
    parts: dict[str, slice]
    image_size: int
    mean_rgb: ColourStatistics | None
    std_rgb: ColourStatistics | None
    state_sha256: str
    architecture: str
    build_untrained: Callable[[], nn.Module] | None
    predictor: TrainedPredictor | None = None
    run_folder: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def out_folder(self) -> Path:
        """Where results go if nothing else is said: beside the encoder, or `runs/NAME`."""
        return self.run_folder or Path("runs") / self.name

    def untrained(self) -> nn.Module | None:
        """The architecture with the random weights that every comparison uses; None if it is random itself."""
        return None if self.build_untrained is None else _with_random_weights(self.build_untrained).eval()


def open_encoder(
    text: str,
    *,
    image_size: int | None = None,
    stored_size: int | None = None,
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> EncoderSource:
    """Opens what `text` names; see the module's table.

    Args:
        image_size: side in pixels of the images that it will be given; when None the size that it was trained on.
        stored_size: side in pixels of the stored images, which encoders that this project didn't train get in place of
            the size that they were trained on, if they can take it.
        weights: local safetensors file of `timm:NAME`'s weights, in place of a download.
        arguments: what `timm.create_model` is given besides `timm:NAME` or `random:NAME`.
    """
    if weights is not None and not text.startswith(TIMM_PREFIX):
        raise EncoderError(f"weights are given with {text!r}: only {TIMM_PREFIX}NAME takes a file of weights")
    if arguments and not text.startswith((TIMM_PREFIX, RANDOM_PREFIX)):
        raise EncoderError(
            f"encoder arguments are given with {text!r}, which states its own: leave them out, or give "
            f"{RANDOM_PREFIX}NAME or {TIMM_PREFIX}NAME"
        )
    if image_size is None and stored_size is not None:
        try:
            return _open(text, None, stored_size, weights, dict(arguments or {}))
        except ImageSizeError:
            pass
    return _open(text, image_size, None, weights, dict(arguments or {}))


def _open(
    text: str, image_size: int | None, stored_size: int | None, weights: Path | None, arguments: dict[str, Any]
) -> EncoderSource:
    if text.startswith(RANDOM_PREFIX):
        return _open_random(text.removeprefix(RANDOM_PREFIX), image_size or stored_size, arguments)
    if text.startswith(TIMM_PREFIX):
        name, _, file = text.removeprefix(TIMM_PREFIX).partition("@")
        if file and weights is not None:
            raise EncoderError(f"weights are given twice, in {text!r} and as {weights}: name one file")
        return _open_timm(name, image_size or stored_size, Path(file) if file else weights, arguments)
    if text.startswith(HUB_PREFIX):
        repository = text.removeprefix(HUB_PREFIX)
        name = f"hub-{repository.replace('/', '-').replace('@', '-')}"
        return _open_folder(download_encoder(repository), name, None, image_size, stored_size)
    folder = encoder_folder(Path(text))
    resolved = folder.resolve()
    name = resolved.parent.name if resolved.name in EXPORT_FOLDERS else resolved.name
    return _open_folder(folder, name, folder.parent, image_size, stored_size)


def _open_random(name: str, image_size: int | None, arguments: dict[str, Any]) -> EncoderSource:
    side = image_size or RANDOM_IMAGE_SIZE
    module = _with_random_weights(lambda: create_encoder(name, side, **arguments))
    return _described(
        f"random-{name}", module, side, architecture=name, arguments=model_arguments(name, side, arguments)
    )


def _with_random_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """The same weights whenever a module is built; the global random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_ENCODER_SEED)
        return build()


def _open_timm(name: str, image_size: int | None, weights: Path | None, arguments: dict[str, Any]) -> EncoderSource:
    timm = timm_with_our_encoders()
    own_config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    trained_size = int(own_config.input_size[-1]) if own_config is not None else RANDOM_IMAGE_SIZE
    side = image_size or trained_size

    def build_untrained() -> nn.Module:
        return create_encoder(name, side, **arguments)

    untrained = build_untrained()  # refuses unknown names and sizes with a sentence of its own
    if weights is None and (own_config is None or not own_config.has_weights):
        raise EncoderError(
            f"timm has no pretrained weights of {name!r}: give a file of them, or {RANDOM_PREFIX}{name} for random ones"
        )
    created = model_arguments(name, side, arguments)
    if weights is None:
        try:
            module = timm.create_model(name, pretrained=True, num_classes=0, **created)
        except Exception as error:  # whatever the network, the hub's client or the disk raise
            raise EncoderError(
                f"the pretrained weights of {name!r} can't be downloaded ({described(error)}): connect to the "
                "network, or give a local safetensors file of them"
            ) from error
    else:
        module = _filled_by_timm(name, created, untrained, weights, {})
    module.num_features = untrained.num_features
    return _described(
        f"timm-{name}",
        module,
        side,
        architecture=name,
        arguments=created,
        trained_size=trained_size,
        normalisation=_normalisation(module.pretrained_cfg),
        build_untrained=build_untrained,
    )


def _open_folder(
    folder: Path, name: str, run_folder: Path | None, image_size: int | None, stored_size: int | None
) -> EncoderSource:
    """A folder in timm's layout; what this project exported says which parts the features have."""
    config = read_encoder_config(folder)
    if "pretrained_cfg" not in config or "architecture" not in config:
        raise EncoderError(f"{folder / CONFIG_FILE} describes no encoder as timm does: give an exported encoder")
    trained_size = int(config["pretrained_cfg"]["input_size"][-1])
    side = image_size or (None if "ssl_equi" in config else stored_size) or trained_size
    arguments = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    if "ssl_equi" in config:
        module, parts = load_encoder(folder), parts_of(config)
    else:
        module, parts = _filled_by_timm(
            config["architecture"], arguments, build_encoder(config, folder), folder / WEIGHTS_FILE,
            config["pretrained_cfg"],
        ), None  # fmt: skip
    return _described(
        name,
        module,
        side,
        architecture=str(config["architecture"]),
        arguments=arguments,
        parts=parts,
        trained_size=trained_size,
        normalisation=_normalisation(config["pretrained_cfg"]),
        build_untrained=lambda: build_encoder(config, folder),
        predictor=_predictor_of(folder) if run_folder is not None else None,
        run_folder=run_folder,
    )


def _predictor_of(folder: Path) -> TrainedPredictor | None:
    """The predictor that a run exported beside this folder, if it reads the features of this encoder."""
    if not (folder.parent / PREDICTOR_FOLDER / CONFIG_FILE).is_file():
        return None
    predictor = load_predictor(folder.parent / PREDICTOR_FOLDER)
    return predictor if predictor.features_from == folder.resolve().name else None


def _described(
    name: str,
    module: nn.Module,
    image_size: int,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    parts: dict[str, slice] | None = None,
    trained_size: int | None = None,
    normalisation: tuple[ColourStatistics, ColourStatistics] | None = None,
    build_untrained: Callable[[], nn.Module] | None = None,
    predictor: TrainedPredictor | None = None,
    run_folder: Path | None = None,
) -> EncoderSource:
    """The source of a module that was tried on an image of this size; one trained on others gets a note."""
    module = module.eval()
    num_features = _try_image(name, module, image_size, trained_size)
    for part, columns in (parts or {}).items():
        if columns.stop > num_features:
            raise EncoderError(
                f"part {part!r} of {name} ends at column {columns.stop}, and the encoder has {num_features} features: "
                "export the encoder again"
            )
    notes: tuple[str, ...] = ()
    if trained_size is not None and trained_size != image_size:
        notes = (
            f"{name} was trained on images of {trained_size} x {trained_size} pixels and is given "
            f"{image_size} x {image_size}",
        )
    mean_rgb, std_rgb = normalisation or (None, None)
    return EncoderSource(
        name=name,
        module=module,
        parts=parts or getattr(module, "parts", {"all": slice(0, num_features)}),
        image_size=image_size,
        mean_rgb=mean_rgb,
        std_rgb=std_rgb,
        state_sha256=state_sha256(module),
        architecture=json.dumps([architecture, dict(arguments)], sort_keys=True, default=str),
        build_untrained=build_untrained,
        predictor=predictor,
        run_folder=run_folder,
        notes=notes,
    )


def _try_image(name: str, module: nn.Module, image_size: int, trained_size: int | None) -> int:
    """Number of features, from one image of this size."""
    try:
        with torch.inference_mode():
            features = module(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        other = "" if trained_size in (None, image_size) else f" {trained_size}"
        raise ImageSizeError(
            f"{name} can't take images of {image_size} x {image_size} pixels ({described(error)}): "
            f"give another --image-size{other}, or another encoder"
        ) from error
    if features.ndim != 2:
        raise EncoderError(f"the features of {name} have shape {tuple(features.shape)}, not [N, D]: choose another")
    return int(features.shape[1])


def _filled_by_timm(
    name: str, arguments: Mapping[str, Any], untrained: nn.Module, file: Path, overlay: Mapping[str, Any]
) -> nn.Module:
    """timm's model without its classifier, filled from a local file whose tensors must be exactly its own.

    timm itself fits position embeddings to the size of the images, but would take a file of other tensors silently.
    """
    if file.suffix != ".safetensors":
        raise EncoderError(f"{file} is not a safetensors file, and other formats run code: save the weights as one")
    stored = set(read_tensors(file, "copy it again"))
    pretrained_cfg: Mapping[str, Any] = getattr(untrained, "pretrained_cfg", None) or {}
    classifiers = pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    expected = set(untrained.state_dict())
    left_over = {tensor for tensor in stored - expected if not tensor.startswith(tuple(f"{c}." for c in classifiers))}
    differing = sorted(expected - stored) + sorted(left_over)
    if differing:
        raise EncoderError(
            f"{file} holds another architecture than {name} ({len(differing)} tensors are in one only, such as "
            f"{differing[0]}): give the name and arguments that the weights were saved with"
        )
    from_file = {**overlay, "file": str(file), "custom_load": False, "source": ""}
    timm = timm_with_our_encoders()
    try:
        module: nn.Module = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=from_file, **arguments
        )
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise EncoderError(f"{file} can't be loaded into {name} ({described(error)}): give its own weights") from error
    return module


def _normalisation(pretrained_cfg: Mapping[str, Any]) -> tuple[ColourStatistics, ColourStatistics]:
    mean, std = (tuple(float(value) for value in pretrained_cfg[name]) for name in ("mean", "std"))
    return mean, std  # type: ignore[return-value]
