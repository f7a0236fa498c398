"""Imports every module and script, and builds the objective of every recipe: is anything missing?

    PYTHONPATH=. python tools/gpu/check_imports.py             what is installed
    PYTHONPATH=. python tools/gpu/check_imports.py --hide      as if only requirements.txt and presupposed.txt were

Whatever neither list names is hidden then, unless something presupposed asks for it.
"""

import argparse
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from fetch_wheels import normalised, requirements

ROOT = Path(__file__).parents[2]
PRESUPPOSED = Path(__file__).with_name("presupposed.txt")
HOOKS = "documentation_site.py"  # of MkDocs, with its libraries
FOLDERS = ("recipes", "evaluation", "datasets", "tools", "tools/gpu")
STEERABLE = "c8_resnet10_small_images"


def asked_for(names: Iterable[str]) -> set[str]:
    """The distributions, and what they ask for, those of extras left out, as far as it is installed."""
    found: set[str] = set()
    waiting = [normalised(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [normalised(re.split(r"[ ;<>=!~\[(]", line)[0]) for line in lines if "extra ==" not in line]
    return found


class Hider:
    """A finder before all others that finds nothing of what it hides."""

    def __init__(self, allowed: set[str]) -> None:
        by_module = packages_distributions()
        self.hidden = {
            module: distributions
            for module, distributions in by_module.items()
            if not any(normalised(distribution) in allowed for distribution in distributions)
        }

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ModuleNotFoundError for a hidden module, which is what an import of a missing one raises."""
        module = name.partition(".")[0]
        if module in self.hidden:
            raise ModuleNotFoundError(f"{name} belongs to {', '.join(self.hidden[module])}, which is hidden", name=name)


def hide_others() -> None:
    """Hides the distributions that neither list names, the package itself excepted."""
    own = {normalised(line.split("==")[0]) for line in requirements()} | {"ssl-equi"}
    hider = Hider(own | asked_for(requirements(PRESUPPOSED)))
    sys.meta_path.insert(0, hider)  # type: ignore[arg-type]
    find_any = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        """Who only asks whether a module is there, as torch does, is told that it isn't."""
        return None if name.partition(".")[0] in hider.hidden else find_any(name, package)

    importlib.util.find_spec = find_spec  # type: ignore[assignment]
    for module in [module for module in sys.modules if module.partition(".")[0] in hider.hidden]:
        del sys.modules[module]


def load_script(file: Path) -> ModuleType:
    """A script as a module; its `main` is not called."""
    name = f"checked_{file.parent.name}_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def import_everything() -> list[ModuleType]:
    """Imports all modules and scripts; returns the recipes."""
    import ssl_equi

    for module in pkgutil.walk_packages(ssl_equi.__path__, "ssl_equi."):
        importlib.import_module(module.name)
    loaded = {
        file: load_script(file)
        for folder in FOLDERS
        for file in sorted((ROOT / folder).glob("*.py"))
        if file != Path(__file__) and file.name != HOOKS
    }
    return [module for file, module in loaded.items() if file.parent.name == "recipes"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hide", action="store_true", help="hide what neither list names")
    if parser.parse_args(arguments).hide:
        hide_others()
    recipes = import_everything()
    for recipe in recipes:
        recipe.build(next(iter(recipe.CONFIGS.values()))())
    from ssl_equi.encoders import create_encoder

    create_encoder(STEERABLE, 32)  # escnn is imported when a steerable network is made
    print(f"all modules and scripts import, and {len(recipes)} objectives are built")


if __name__ == "__main__":
    main()
