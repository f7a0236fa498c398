"""Vision transformers that commute with the eight symmetries of the square."""
