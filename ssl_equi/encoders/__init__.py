"""Encoders: any timm backbone by name, and our own ones, which are registered with timm."""

from ssl_equi.encoders.create import EncoderError, create_encoder

__all__ = ["EncoderError", "create_encoder"]
