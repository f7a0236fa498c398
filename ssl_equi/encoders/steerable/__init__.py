"""ResNets that commute with turns by finer angles than 90 degrees."""
