"""Capsules: their layers, and a network of any backbone with capsules on top."""
