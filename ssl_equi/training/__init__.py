"""The training run: options, processes, loop and ending."""
