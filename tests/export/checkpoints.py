"""What the tests of importing share: states of networks under other names, and how they are imported and compared."""

import torch
from torch import Tensor, nn

from ssl_equi.export.importing import EncoderOptions, ImportedEncoder, import_encoder
from ssl_equi.export.tensors import named_tensors

State = dict[str, Tensor]
EXTRA = torch.zeros(3)


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def head(name: str, width: int = 512) -> State:
    return {f"{name}.0.weight": torch.randn(8, width), f"{name}.0.bias": torch.randn(8)}


def changed(state: State, change: dict[str, Tensor | None]) -> State:
    """With other tensors, and without those that are None."""
    return {name: value for name, value in (state | change).items() if value is not None}


def run(content: dict, layout: str, **options: object) -> ImportedEncoder:
    return import_encoder(named_tensors(content, "file"), EncoderOptions(layout, **options))


@torch.no_grad()
def assert_same_features(imported: nn.Module, reference: nn.Module, side: int = 64) -> None:
    """To the bit, and not the same for all images."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    expected = reference(images)
    assert torch.equal(imported(images), expected)
    assert expected.std() > 1e-3
    assert not imported.training
