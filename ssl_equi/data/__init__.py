"""Shards of views with known latents: write, verify, read, draw batches."""

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.manifest import Manifest
from ssl_equi.data.reader import ShardDataset
from ssl_equi.data.verify import verify_split
from ssl_equi.data.writer import ObjectRecord, write_split
from ssl_equi.errors import DataError

__all__ = [
    "DataError",
    "Manifest",
    "ObjectRecord",
    "ShardDataset",
    "ViewBatch",
    "ViewLoader",
    "verify_split",
    "write_split",
]
