"""Frozen features to numbers: encode once, ask tasks, keep records, draw the report."""
