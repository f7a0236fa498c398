"""Encoders that stay as they are: proven unchanged while they encode, and told apart by what they hold.

The reference code leaves batch normalisation in training mode while it encodes, so that its "frozen" encoder drifts.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, inference_mode, nn, uint8


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each submodule has its own mode again.

    Raises RuntimeError at the end if a parameter or a buffer was changed.
    """
    modes = {submodule: submodule.training for submodule in encoder.modules()}
    before = _tensor_hashes(encoder)
    encoder.eval()
    try:
        with inference_mode():
            yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training
    after = _tensor_hashes(encoder)
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    if changed:
        raise RuntimeError(
            f"encoding changed '{changed[0]}' of the encoder ({len(changed)} of {len(before)} tensors): "
            "a frozen encoder must not update its state in evaluation mode"
        )


def state_sha256(module: nn.Module) -> str:
    """One hash of all parameters and buffers with their names, types and shapes; modes don't count.

    Non-persistent buffers are included, so that it tells of any change that could alter the features.
    """
    tensors = _tensors(module)
    lines = [
        f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} {tensor_hash}\n"
        for name, tensor_hash in sorted(_tensor_hashes(module).items())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, non-persistent buffers included."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _tensor_hashes(module: nn.Module) -> dict[str, str]:
    hashes = {}
    for name, tensor in _tensors(module).items():
        raw_bytes = tensor.detach().cpu().contiguous().view(-1).view(uint8).numpy()
        hashes[name] = hashlib.blake2b(raw_bytes.tobytes(), digest_size=16).hexdigest()
    return hashes
