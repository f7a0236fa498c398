"""Small sets of image shards, for tests that write, read and damage them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_equi.data.shards.format import ImageRecord
from ssl_equi.data.shards.manifest import ImageManifest, canonical_json
from ssl_equi.data.shards.records import ImageSplitSettings
from ssl_equi.data.shards.writer import SplitWriter

SETTINGS = ImageSplitSettings(
    split="train", class_names=("cat", "dog", "frog"), source="pictures of the tests", source_version="1",
    license="CC0-1.0", seed=0, images_per_shard=4,
)  # fmt: skip


def write_pictures(
    folder: Path, records: Sequence[ImageRecord], settings: ImageSplitSettings = SETTINGS
) -> ImageManifest:
    """All records as one split, going on after the shards that are there."""
    with SplitWriter(folder, settings, resume=True) as writer:
        for record in records[writer.num_records :]:
            writer.add(record)
        return writer.finish()


def flip(path: Path, offset: int) -> None:
    """Change one bit of the byte at `offset`."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


ABSENT = object()


def edit_manifest(folder: Path, *, keep_fingerprint: bool = False, **changes: Any) -> None:
    """Change fields of the train split's manifest (ABSENT: delete), as a forger would, with a fingerprint that fits."""
    path = folder / "train.manifest.json"
    content = {name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not ABSENT}
    fingerprint = content.pop("fingerprint")
    if not keep_fingerprint:
        fingerprint = hashlib.sha256(canonical_json(content)).hexdigest()
    path.write_text(json.dumps(content | {"fingerprint": fingerprint}))
