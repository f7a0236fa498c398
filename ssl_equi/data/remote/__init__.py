"""Splits that lie elsewhere: fetched whole, read by byte range, or streamed from front to back."""
