"""Self-supervised pretraining, evaluation and export of invariant-equivariant image encoders."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["create_encoder", "load_encoder"]

if TYPE_CHECKING:
    from ssl_equi.encoders import create_encoder
    from ssl_equi.export.encoder import load_encoder


def __getattr__(name: str) -> Any:
    """Imports on first use: `import ssl_equi` alone must not take the seconds that torch and timm need."""
    if name == "load_encoder":
        from ssl_equi.export.encoder import load_encoder

        return load_encoder
    if name == "create_encoder":
        from ssl_equi.encoders import create_encoder

        return create_encoder
    raise AttributeError(f"module 'ssl_equi' has no attribute {name!r}")
