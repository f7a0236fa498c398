"""Every named configuration of every recipe does what its reference says: loss, terms, gradients, running statistics.

The references are in this folder and use nothing of the package; `table` says which configuration is held to what.
"""

import ast
from pathlib import Path

import pytest
import torch

from ssl_equi.training.provenance import OWN, provenance_of
from tests.fakes import load_recipe
from tests.recipes.test_named_configurations import named_configurations
from tests.references.comparison import (
    Differences,
    configuration,
    differences,
    random_batch,
    small_objective,
    state,
    unlike,
    with_other_options,
)
from tests.references.table import REFERENCES

WITH_THE_PACKAGE = {
    "comparison",
    "test_references",
    "test_seq_jepa",
    "test_training",
}  # the files here that may import it
# One observed view makes one call either way.
WITHOUT_EFFECT = {("seq_jepa tiny_imagenet", "--objective.separate-batch-norm True")}


def noticed(found: Differences) -> bool:
    """Whether they are far above what rounding does."""
    return bool(unlike(found, factor=1000))


@pytest.mark.parametrize("key", REFERENCES)
def test_the_package_agrees(key: str) -> None:
    recipe, reference = load_recipe(key.split()[0]), REFERENCES[key]
    config = configuration(recipe, key)
    objective = small_objective(recipe, config)
    assert reference.views == getattr(objective, "num_views", getattr(config, "observed_views", 1) + 1)
    found = unlike(differences(objective, reference, random_batch(reference)))
    assert not found


@pytest.mark.parametrize("key", REFERENCES)
def test_a_changed_weight_is_noticed(key: str) -> None:
    recipe, reference = load_recipe(key.split()[0]), REFERENCES[key]
    config, batch = configuration(recipe, key), random_batch(reference)
    weights = state(small_objective(recipe, config))
    for name, weight in weights.items():
        if not weight.is_floating_point():
            continue
        # Not by the same everywhere, which a softmax takes away again.
        other = weight + torch.linspace(-0.1, 0.2, weight.numel(), dtype=weight.dtype).view(weight.shape)
        assert noticed(differences(small_objective(recipe, config), reference, batch, weights | {name: other})), name


@pytest.mark.parametrize("key", REFERENCES)
def test_a_changed_option_is_noticed(key: str) -> None:
    recipe, reference = load_recipe(key.split()[0]), REFERENCES[key]
    batch = random_batch(reference)
    for option, config in with_other_options(configuration(recipe, key)):
        found = differences(small_objective(recipe, config), reference, batch)
        assert noticed(found) != ((key, option) in WITHOUT_EFFECT), option


def test_every_named_configuration_has_a_reference() -> None:
    """Of a recipe that follows no paper, none or all."""
    held = {key.split()[0] for key in REFERENCES}
    follows = {
        recipe for recipe, name in named_configurations() if provenance_of(load_recipe(recipe).CONFIGS[name]) != OWN
    }
    assert follows <= held
    named = {f"{recipe} {name}" for recipe, name in named_configurations() if recipe in held}
    assert named == {key for key in REFERENCES if "--" not in key}


def test_the_references_use_nothing_of_the_package() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.stem not in WITH_THE_PACKAGE else ():
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.split(".")[0] not in ("ssl_equi", "recipes", "lightly"), f"{path.name} imports {module}"
                assert module.rpartition(".")[2] not in WITH_THE_PACKAGE, f"{path.name} imports {module}"
