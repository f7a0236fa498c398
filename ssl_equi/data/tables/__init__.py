"""Tables that describe views: their cells, and the latents that columns hold."""
