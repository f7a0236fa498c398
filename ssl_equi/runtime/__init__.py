"""The machine: cores, threads, devices."""
