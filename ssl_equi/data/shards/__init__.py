"""Shards: tar files of records, with a manifest and an index of checksums; written, read, verified, converted to."""
