"""Splits that are rendered: the embedded sets and users' meshes, drawn by several processes."""
