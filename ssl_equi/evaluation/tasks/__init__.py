"""Tasks of frozen features and of further images, one topic per file; importing this package registers them all."""

import pkgutil
from importlib import import_module

# Tables show tasks in this order; those of other files in this folder follow.
FIRST = ("classification", "pose", "appearance", "feature_space", "feature_action")

for _name in dict.fromkeys((*FIRST, *sorted(module.name for module in pkgutil.iter_modules(__path__)))):
    import_module(f"{__name__}.{_name}")
