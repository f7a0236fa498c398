"""Vision transformers whose features no circular shift of the image changes."""
