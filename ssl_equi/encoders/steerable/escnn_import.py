"""The library escnn, imported when the first steerable network is made; no other file imports it.

escnn (Cesa, Lang and Weiler, "A Program to Build E(N)-Equivariant Steerable CNNs", ICLR 2022) solves for the kernels
that commute with rotations. Two of its dependencies are left out on purpose: py3nj is only built with a Fortran
compiler, and lie-learn's wheels need NumPy 1. Both only serve rotations in three dimensions, which no encoder here has.
"""

import functools
import importlib
import sys
import warnings
from types import ModuleType
from typing import Any, NoReturn

from ssl_equi.errors import EncoderError

INSTALLATION = "uv sync --extra steerable (in a clone), or pip install scipy joblib && pip install --no-deps escnn"
"""What a user types to get it."""

_WIGNER_MODULE = "lie_learn.representations.SO3.wigner_d"


@functools.cache
def import_escnn() -> ModuleType:
    """The module `escnn`, with `escnn.nn` and `escnn.gspaces`; the first call takes seconds.

    Where lie-learn can't be imported, escnn gets a function that raises EncoderError in place of the one that it takes
    from there; the modules that carry it are gone again when this returns.

    Raises:
        EncoderError: escnn is missing or can't be imported; the message says what to type.
    """
    stand_ins = {} if _has_lie_learn() else _stand_ins_for_lie_learn()
    known = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`py3nj` package not found")
            # `import escnn` alone hides what can't be imported.
            import escnn.group
            import escnn.gspaces
            import escnn.nn
    except (ImportError, AttributeError, OSError) as error:
        raise EncoderError(
            f"steerable encoders need the library escnn, which can't be imported ({error}): {INSTALLATION}"
        ) from error
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
        sys.modules.update(known)
    return escnn


def _has_lie_learn() -> bool:
    try:
        importlib.import_module(_WIGNER_MODULE)
    except (ImportError, ValueError, AttributeError):  # ValueError: it was compiled for another NumPy
        return False
    return True


def _stand_ins_for_lie_learn() -> dict[str, ModuleType]:
    """The modules of lie-learn that escnn names, by name."""
    parts = _WIGNER_MODULE.split(".")
    modules = {name: ModuleType(name) for name in (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))}
    vars(modules[_WIGNER_MODULE])["wigner_D_matrix"] = refuse_wigner_matrix
    return modules


def refuse_wigner_matrix(*_args: Any, **_kwargs: Any) -> NoReturn:
    """Stands where escnn expects lie-learn's `wigner_D_matrix`."""
    raise EncoderError(
        "Wigner matrices of SO(3) and O(3) were asked of escnn, which takes them from lie-learn, and that can't be "
        "imported: use groups of the plane, or an environment with lie-learn (its wheels need numpy<2)"
    )
