"""Procedural objects and a batched rasteriser: images of a 3DIEBench-like scene with known latents."""
