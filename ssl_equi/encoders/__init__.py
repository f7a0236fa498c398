"""Encoders: any timm backbone by name, our own ones, which are registered with timm, and wrappers of any."""

from typing import TYPE_CHECKING, Any

from ssl_equi.encoders.catalogue import create_encoder
from ssl_equi.errors import EncoderError

__all__ = ["EncoderError", "create_encoder", "wrap"]

if TYPE_CHECKING:
    from ssl_equi.encoders.wrappers import wrap


def __getattr__(name: str) -> Any:
    """Imports on first use what needs timm, which takes seconds to import."""
    if name == "wrap":
        from ssl_equi.encoders.wrappers import wrap

        return wrap
    raise AttributeError(f"module 'ssl_equi.encoders' has no attribute {name!r}")
