"""Every named configuration of every recipe takes two steps on a small archive of the true image size.

All of it is as configured: data set, image size, views, actions, schedule, optimiser. Batches hold four objects, and
numbers are 32-bit, since bfloat16 is slow on a CPU. In the tests that run by default encoder and heads are small
too; `-m slow` keeps them as they are, but for projectors of 8,192 columns, which become 2,048 wide, and CARE's
chunks, which are as large as the batch.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import RECIPES, load_recipe, losses, numbers
from tests.recipes.conftest import SMALL_SIZES, shrunk
from tests.small_archives import Archives, small_archives

BATCH_SIZE = 4
NARROW = {"projector": lambda widths: tuple(min(width, 2048) for width in widths), "chunk_size": BATCH_SIZE}


def named_configurations() -> list[tuple[str, str]]:
    """Recipe and name of each."""
    return [(recipe, name) for recipe in RECIPES for name in load_recipe(recipe).CONFIGS]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Iterator[Archives]:
    with small_archives(tmp_path_factory.mktemp("archives"), image_bytes) as archives:
        yield archives


@pytest.mark.parametrize("networks", ["small", pytest.param("of the paper", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("recipe_name", "name"), named_configurations())
def test_two_steps(
    recipe_name: str, name: str, networks: str, without_ending: None, archives: Archives, tmp_path: Path
) -> None:
    recipe, folder = load_recipe(recipe_name), tmp_path / "run"
    config = shrunk(recipe.CONFIGS[name](), NARROW if networks == "of the paper" else SMALL_SIZES)
    if networks == "small":
        config = dataclasses.replace(config, encoder="strided_cnn_pooled", encoder_arguments={})
    config = dataclasses.replace(
        config, data_dir=archives["tiny_imagenet" if name == "tiny_imagenet" else config.dataset], out=folder,
        batch_size=BATCH_SIZE, epochs=2, steps=2, log_every=1, mixed_precision="no", loader_threads=1,
    )  # fmt: skip
    recipe.main(config)
    assert [line["step"] for line in numbers(folder)] == [1, 2] and np.isfinite(losses(folder)).all()
