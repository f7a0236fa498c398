"""No image goes through an encoder for the probes alone: whatever is encoded in a step, the loss depends on it.

Each recipe takes a step as it is; its objective is then asked again, in eval mode (where batch norms keep images
apart), with one image of one pass changed behind the encoder's first layer. If the loss stays, the pass of that
image was for something else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from tests.fakes import RECIPES, MapEncoder, SmallConfig, load_recipe

OBJECTS = 8
# Images that pass an encoder in a step, online and target, per object; of a recipe that isn't here, one for each view.
PASSES = dict.fromkeys(RECIPES, (2, 0)) | {
    "augself": (2, 0), "barlow_twins": (2, 0), "byol": (2, 2), "capsie": (2, 0), "care": (4, 0), "care moco": (3, 1),
    "conditional_byol": (1, 1), "conv_jepa": (4, 1), "equicaps": (2, 0), "equimod": (2, 0), "essl": (6, 0),
    "moco": (1, 1), "sen": (2, 0), "seq_jepa": (3, 1), "seq_jepa_saccades": (4, 1), "sie": (2, 0), "simclr": (2, 0),
    "simsiam": (2, 0), "supervised": (2, 0), "vicreg": (2, 0), "vicreg_traj": (3, 0),
}  # fmt: skip


class FirstStepError(Exception):
    """Ends a run in its first step, with the objective and what it was given."""


def first_step(recipe: ModuleType, config: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, tuple, dict]:
    """The objective of a recipe in front of its first step, and the step's arguments, in float64."""
    build = recipe.build

    def build_and_watch(*arguments: Any, **keywords: Any) -> nn.Module:
        objective = build(*arguments, **keywords)

        def stop(module: nn.Module, arguments: tuple, keywords: dict) -> None:
            raise FirstStepError(arguments, keywords)

        handle = objective.register_forward_pre_hook(stop, with_kwargs=True)
        built.append((objective, handle))
        return objective

    built: list[tuple[nn.Module, Any]] = []
    monkeypatch.setattr(recipe, "build", build_and_watch)
    with pytest.raises(FirstStepError) as stopped:
        recipe.main(config)
    objective, handle = built[-1]
    handle.remove()
    arguments, keywords = stopped.value.args
    return objective.double(), tuple(as_double(value) for value in arguments), keywords


def as_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def first_layer(encoder: nn.Module) -> nn.Module:
    return next(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))


@contextmanager
def watched(layers: list[nn.Module], change: tuple[int, int] | None) -> Iterator[list[tuple[int, int]]]:
    """Notes (number of layer, images) of every call, and moves the output for one image of one call."""
    calls: list[tuple[int, int]] = []

    def watch(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        calls.append((layers.index(layer), len(output)))
        if change is None or change[0] != len(calls) - 1:
            return output
        moved = output.clone()
        moved[change[1]] += torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(0)).to(output.dtype)
        return moved

    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", PASSES)
def test_the_loss_depends_on_every_image_that_is_encoded(
    name: str, small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe_name, *base = name.split()
    recipe = load_recipe(recipe_name)
    config = small_config(recipe, out=tmp_path / "run", batch_size=OBJECTS, **({"base": base[0]} if base else {}))
    objective, arguments, keywords = first_step(recipe, config, monkeypatch)
    targets = [module for path, module in objective.named_modules() if path.endswith("target_encoder")]
    layers = [first_layer(encoder) for encoder in (objective.encoder, *targets)]
    objective.eval()

    def loss(change: tuple[int, int] | None) -> tuple[float, list[tuple[int, int]]]:
        with watched(layers, change) as calls, torch.no_grad():
            return objective(*arguments, **keywords).loss.item(), calls

    expected, calls = loss(None)
    online, target = (sum(images for layer, images in calls if layer == number) / OBJECTS for number in (0, 1))
    assert (online, target) == PASSES[name]
    for call, (_, images) in enumerate(calls):
        for image in range(images):
            assert loss((call, image))[0] != expected, f"image {image} of pass {call} is encoded for nothing"


def test_an_encoder_pass_for_probes_is_found() -> None:
    """The check sees what it is for: an image whose features go nowhere but to the output."""

    class WithAnotherPass(SimCLR):
        def forward(self, views: Tensor, actions: Tensor | None = None) -> Any:
            self.encoder(views[:, 0])
            return super().forward(views, actions)

    encoder = MapEncoder()
    objective = WithAnotherPass(encoder, SimCLRConfig(projector=(8, 8))).double().eval()
    views, layers = torch.randn(3, 2, 3, 8, 8, dtype=torch.float64), [first_layer(encoder)]
    losses = []
    for change in (None, (0, 0), (1, 0)):
        with watched(layers, change) as calls, torch.no_grad():
            losses.append(objective(views).loss.item())
    assert [images for _, images in calls] == [3, 6]
    assert losses[1] == losses[0] != losses[2]
