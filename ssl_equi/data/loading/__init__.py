"""Batches for a trainer: one loader, and the ways in which the images of a batch come about."""
