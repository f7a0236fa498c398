"""Activations that are computed again: the same gradients and statistics, with less memory, for every family."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders.batch_norm import running_statistics_kept
from ssl_equi.encoders.catalogue import create_encoder
from ssl_equi.encoders.recomputing import checkpoint_activations
from ssl_equi.errors import EncoderError
from tests.encoders.symmetric_encoders import ARCHITECTURES, CASES, VARIANTS

SMALL_VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "drop_path_rate": 0.2}
DROPPED_PATHS = {"vit": {"depth": 3, "drop_path_rate": 0.2}, "twins": {"drop_path_rate": 0.2}}
"""By what an encoder's name contains."""
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    "vit": ("vit_tiny_patch16_224", SMALL_VIT),
    "canonicalized resnet": ("canonicalized", {"backbone": "resnet18"}),
}
for name in ("strided_cnn_tiny", "strided_cnn_pooled", "resnet18", "sie_resnet18", "resnet18_small_images"):
    ENCODERS[name] = (name, {})
for label in (*ARCHITECTURES, "so2"):
    case = (CASES | VARIANTS)[label]
    if case.name == "canonicalized":  # whose scorer, which keeps its own, outweighs a small backbone
        continue
    further = next((arguments for kind, arguments in DROPPED_PATHS.items() if kind in case.name), {})
    ENCODERS[label] = (case.name, case.arguments | further)


def loss_of(encoder: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    """A loss of two passes, and how many numbers were kept for its backward pass beside the weights."""
    kept, weights = 0, {weight.untyped_storage().data_ptr() for weight in encoder.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if tensor.untyped_storage().data_ptr() in weights else tensor.numel()
        return tensor

    torch.manual_seed(2)  # of dropped paths
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with running_statistics_kept(encoder):
            first = encoder(images)
        second = encoder(images.flip(0) + 1)
        loss = (first * second.roll(1, 0)).mean() + second.square().mean()
    return loss, kept


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_and_statistics_stay_the_same(name: str) -> None:
    torch.manual_seed(0)
    architecture, arguments = ENCODERS[name]
    direct = create_encoder(architecture, 32, **arguments).train()
    again = copy.deepcopy(direct)
    checkpoint_activations(again)
    images = torch.randn(4, 3, 32, 32)
    expected, kept = loss_of(direct, images)
    expected.backward()
    found, kept_again = loss_of(again, images)
    with running_statistics_kept(again):
        found.backward()
    assert torch.equal(found, expected)
    assert kept_again < kept / 1.5
    for (parameter, ours), theirs in zip(again.named_parameters(), direct.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6 * float(theirs.grad.abs().max())), parameter
    for (buffer, ours), theirs in zip(again.named_buffers(), direct.buffers(), strict=True):
        assert torch.equal(ours, theirs), buffer


def test_compiled_encoders_record_once_too() -> None:
    torch.manual_seed(0)
    direct = create_encoder("strided_cnn_pooled", 32, widths=(8, 8), strides=(4, 4)).train()
    again = copy.deepcopy(direct)
    checkpoint_activations(again)
    again.compile(backend="aot_eager_decomp_partition")
    images = torch.randn(4, 3, 32, 32)
    for encoder in (direct, again):
        loss = encoder(images).square().mean()
        with running_statistics_kept(encoder):
            loss.backward()
    for (buffer, ours), theirs in zip(again.named_buffers(), direct.buffers(), strict=True):
        assert torch.allclose(ours, theirs), buffer
    for ours, theirs in zip(again.parameters(), direct.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["dla34", "without"])
def test_an_encoder_that_cannot_is_refused(name: str) -> None:
    encoder = nn.Linear(2, 2) if name == "without" else create_encoder(name, 32)
    with pytest.raises(EncoderError, match=r"--checkpoint-activations .* encoder (DLA|Linear) can't .*: leave it out"):
        checkpoint_activations(encoder)
