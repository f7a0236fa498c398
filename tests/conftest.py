"""A tiny rendered data set, made once for every test that trains."""

from pathlib import Path

import pytest

from ssl_equi.data.procedural import ProceduralConfig, build_procedural

TINY = ProceduralConfig(
    families=("chair", "teapot", "dog"), held_out_families=("mug",), train_objects=8, val_objects=2, test_objects=4,
    views=4, image_size=32, objects_per_shard=5,
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_config() -> ProceduralConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training objects of 3 families, 4 views of 32 x 32 pixels each; splits train, val, test."""
    folder = tmp_path_factory.mktemp("tiny") / "3diebench-p"
    build_procedural(folder, TINY, ("train", "val", "test"), workers=1, show_progress=False)
    return folder
