"""Shards of views with known latents: write, verify, read, draw batches, make actions."""

from ssl_equi.data.actions import action_from_batch, relative_hues, relative_rotation
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
    "action_from_batch",
    "relative_hues",
    "relative_rotation",
    "verify_split",
    "write_split",
]
