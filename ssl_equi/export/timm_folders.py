"""Exported encoders as timm opens them: whether it can, folders to hand on, and what timm's own savers must be told."""

from pathlib import Path
from typing import Any

import torch

from ssl_equi.checkpoint import write_checkpoint_files
from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.errors import CheckpointError, EncoderError, described
from ssl_equi.export.encoder import image_size_of, load_encoder, read_encoder_config
from ssl_equi.export.folder import CONFIG_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"
_FILES = {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE}


def modules_that_register(config: dict[str, Any]) -> list[str]:
    """Modules of this project whose import lets timm open an encoder; none for timm's own architectures."""
    timm = timm_with_our_encoders()
    names = (config["architecture"], config.get("model_args", {}).get("backbone"))
    known = [name for name in names if isinstance(name, str) and timm.is_model(name)]
    modules = [timm.models.model_entrypoint(name).__module__ for name in known]
    return [module for module in dict.fromkeys(modules) if not module.startswith("timm.")]


def how_timm_opens(config: dict[str, Any]) -> str:
    """One sentence for the user of an encoder."""
    modules = modules_that_register(config)
    if not modules:
        return "Plain timm opens it."
    return f"timm opens it after `import {', '.join(modules)}`, which registers the architecture."


def timm_files(folder: Path, card: str) -> dict[str, bytes]:
    """The files of an exported encoder that timm opens, by name, with a model card.

    Raises:
        CheckpointError: the folder is damaged.
        EncoderError: timm finds other features in it than `load_encoder`.
    """
    config = read_encoder_config(folder)
    encoder = load_encoder(folder)
    side = image_size_of(config, folder)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    architecture = config["architecture"]
    try:
        opened = timm_with_our_encoders().create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            same = torch.equal(opened(images), encoder(images))
    except Exception as error:  # whatever timm and its models raise
        raise EncoderError(
            f"{architecture} can't be exported to timm ({described(error)}): export it to torch or onnx"
        ) from error
    if not same:
        raise EncoderError(f"timm finds other features of {architecture} in {folder}: update timm, or export to torch")
    return {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)} | {CARD_FILE: card.encode()}


def write_timm_folder(files: dict[str, bytes], out: Path) -> None:
    """Writes what `timm_files` gives as a whole; CheckpointError where that would replace anything else."""
    if out.exists() and not (out.is_dir() and {file.name for file in out.iterdir()} <= _FILES):
        raise CheckpointError(f"{out} is there and holds no exported encoder: give another --out")
    write_checkpoint_files(out.resolve(), files)


def timm_model_config(folder: str | Path) -> dict[str, Any]:
    """What timm's `save_for_hf` and `push_to_hf_hub` are given as `model_config=`, to keep what they don't know of.

    That is the parts of the features, and the size and normalisation of the images that the encoder was trained on.
    """
    config = read_encoder_config(Path(folder))
    kept = ("model_args", "num_features", "pretrained_cfg", "ssl_equi")
    return {name: config[name] for name in kept if name in config}
