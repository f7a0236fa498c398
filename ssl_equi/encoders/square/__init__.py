"""Networks that commute with the symmetries of the square: its quarter turns, and mirrorings."""
