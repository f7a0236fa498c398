"""Shards of views with known latents: write, verify, read, draw batches."""

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.manifest import Manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import verify_split
from ssl_equi.data.shards.writer import write_split
from ssl_equi.errors import DataError

__all__ = [
    "DataError",
    "Loader",
    "Manifest",
    "ObjectRecord",
    "ShardDataset",
    "ViewBatch",
    "stored_loader",
    "verify_split",
    "write_split",
]
