"""The recipes as modules."""

from tests.recipes.conftest import load_recipe

__all__ = ["load_recipe"]
