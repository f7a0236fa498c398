"""Errors of equivariance under groups that act on images, layer by layer, and orbits of features."""
