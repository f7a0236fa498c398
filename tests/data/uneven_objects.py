"""Rendered splits whose objects have different numbers of views."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.manifest import Manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.writer import write_split
from tests.fakes import ViewsInMemory

COUNTS = (4, 3, 6, 3, 5, 4)  # of the first objects, then again


def with_views(record: ObjectRecord, count: int) -> ObjectRecord:
    """The record with so many views: its first ones, or all of them and its first ones once more."""
    chosen = [view % len(record.images) for view in range(count)]
    return replace(record, latents=record.latents[chosen], images=[record.images[view] for view in chosen])


def records_of(stored: ShardDataset) -> list[ObjectRecord]:
    """All that a split holds."""
    return [
        ObjectRecord(
            stored.keys[row].decode(), int(stored.labels[row]), np.array(stored.latents[row]),
            [stored.read_encoded(row, view) for view in range(stored.num_views)],
        )
        for row in range(stored.num_objects)
    ]  # fmt: skip


def write_uneven(stored: ShardDataset, folder: Path, counts: Sequence[int] = COUNTS) -> Manifest:
    """A stored split written anew, with `counts` views of its objects in turn."""
    records = [with_views(record, counts[row % len(counts)]) for row, record in enumerate(records_of(stored))]
    manifest = stored.manifest
    return write_split(
        folder, stored.split, records, manifest.class_names, source=manifest.source, seed=0,
        license=manifest.license, objects_per_shard=5, schema=manifest.schema, mean_rgb=manifest.mean_rgb,
        std_rgb=manifest.std_rgb,
    )  # fmt: skip


def cut_short(views: ViewsInMemory, counts: Sequence[int]) -> ViewsInMemory:
    """Views in memory of which objects have `counts` in turn; what is known of the others becomes zero."""
    view_counts = np.resize(counts, views.num_objects).astype(np.int32)
    kept = np.arange(views.num_views) < view_counts[:, None]
    known = {name: getattr(views, name) for name in ("latents", "quats_xyzw") if getattr(views, name) is not None}
    cut = {name: np.where(kept[..., None], array, 0) for name, array in known.items()}
    others = {name: getattr(views, name) for name in ("split", "class_names", "labels", "schema")}
    return ViewsInMemory(views.pixels, **others, **cut, view_counts=view_counts)
