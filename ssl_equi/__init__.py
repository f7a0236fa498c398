"""Self-supervised pretraining, evaluation and export of invariant-equivariant image encoders."""

__version__ = "0.1.0"
