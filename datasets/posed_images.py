"""Build shards of your own posed images from a table: one row for each view, with its image, its object and latents.

    python datasets/posed_images.py --table views.csv --out data/mugs --license CC0-1.0 --class-column kind \
        --latent azimuth:angle:deg --latent elevation:number:deg
    python datasets/posed_images.py --table turntable.csv --out data/turntable --license CC0-1.0 --image-size 128 \
        --val-every-view 4 --latent azimuth=degrees:angle:deg
    python datasets/posed_images.py --table robot.jsonl --images frames --out data/robot --license CC0-1.0 \
        --split-column split --class-column tool --latent joint:angle:rad --latent place:translation \
        --latent pose:rotation:quat_xyzw --latent lamp:category

A latent is NAME[=COLUMN,...]:KIND[:OPTION...]; its columns are NAME, or NAME with _x and so on, when not given.

    KIND            what, and its columns                       OPTIONS
    angle           comes round: azimuth, joint, hue            deg, rad or turn; period=180; range=-90..90
    number          has two ends: elevation, size               deg, rad or turn; range=0..90, else as measured
    translation     place_x, place_y, place_z; or two, or one   range=-1..1,-1..1,0..2, else as measured
    rotation        pose_x, ...; storage is required            quat_xyzw, euler_xyz with a unit, or matrix (_11 to _33)
    direction       light_theta, light_phi; or _x, _y, _z       polar_azimuth with a unit, or xyz
    category        any words                                   none
    viewing_sphere  pose_azimuth, pose_elevation: a rotation    a unit; polar (0 is above); clockwise

viewing_sphere makes the rotation of the object as the camera sees it: R = Rz(elevation) Rx(-azimuth), where x is the
object's vertical, y points to the camera and z to the right. Its azimuth is where the camera stands, counter-clockwise
seen from above (the object then turns clockwise), unless the option clockwise says otherwise.

Train on the result with `--dataset posed --data-dir data/mugs`. An interrupted run goes on where it stopped when
started again with the same options. The card, posed_images.md, has the rest.
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.posed.tables import PosedTable, TableOptions, read_posed_table
from ssl_equi.data.shards.convert import PlannedSplit, in_stored_order, pixel_statistics, write_splits
from ssl_equi.data.shards.manifest import Manifest
from ssl_equi.data.shards.records import SplitSettings
from ssl_equi.options import Count, Seed, Threads
from ssl_equi.runtime.system import usable_cores


@dataclass(frozen=True)
class Config:
    """Options of the converter."""

    views: Annotated[TableOptions, tyro.conf.arg(name="")]
    """What the table says."""
    out: Path
    """Folder of the shards."""
    license: str
    """The licence of the images, for the manifest."""
    source_name: str | None = None
    """Where the images are from, for the manifest; the name of the table by default."""
    objects_per_shard: Count = 500
    """Objects in each tar file but the last."""
    seed: Seed = 0
    """Draws the objects of val, and the order in which objects are stored."""
    workers: Threads = field(default_factory=lambda: min(16, usable_cores()))
    """Threads that read and check images."""
    verify: bool = False
    """Read everything back at the end: every checksum compared, every image decoded."""


def main(config: Config) -> None:
    posed = read_posed_table(config.views, config.seed)
    for warning in posed.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    trained = in_stored_order(posed.splits["train"], config.seed)
    mean_rgb, std_rgb, measured = pixel_statistics(
        [len(item.rows) for item in trained], lambda place, view: posed.read_view(trained[place].rows[view])[1]
    )
    planned = []
    for split, listed in posed.splits.items():
        items = in_stored_order(listed, config.seed)
        settings = SplitSettings(
            split=split,
            class_names=posed.class_names,
            source=config.source_name or f"table {config.views.table.name}",
            license=config.license,
            seed=config.seed,
            schema=posed.schema,
            objects_per_shard=config.objects_per_shard,
            mean_rgb=mean_rgb,
            std_rgb=std_rgb,
            notes=(*posed.notes, measured),
            plan=posed.plan(items),
        )
        planned.append(PlannedSplit(settings, items, posed.record))
    manifests: dict[str, Manifest] = write_splits(config.out, planned, config.workers, config.verify)
    print(summary(config.out, posed, manifests))


def summary(out: Path, posed: PosedTable, manifests: dict[str, Manifest]) -> str:
    """What the splits hold, what is known of their views, and how to train on them."""
    lines = []
    for split, manifest in manifests.items():
        size_gb = sum(entry.bytes for entry in manifest.shards) / 1e9
        classes = len({item.label for item in posed.splits[split]})
        counts = sorted({len(item.rows) for item in posed.splits[split]})
        views = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append(
            f"{split}: {manifest.num_objects:,} objects of {classes:,} classes x {views} views of "
            f"{manifest.image_size[0]} x {manifest.image_size[1]} pixels in {len(manifest.shards):,} shards, "
            f"{size_gb:.2f} GB, fingerprint {manifest.fingerprint[:16]}"
        )
    for latent in posed.schema.latents:
        ranges = []
        for name in posed.schema.column_names[latent.columns]:
            found = [manifest.latent_ranges[name] for manifest in manifests.values()]
            ranges.append(f"{name} {min(low for low, _ in found):.4g} to {max(high for _, high in found):.4g}")
        lines.append(f"latent {latent.kind.kind}: {', '.join(ranges)}")
    side = next(iter(manifests.values())).image_size[0]
    judged = next(split for split in manifests if split != "train")
    names = " ".join(latent.name for latent in posed.schema.latents)
    lines.append(
        f"train on it: accelerate launch recipes/sie.py --dataset posed --data-dir {shlex.quote(str(out))} "
        f"--image-size {side} --evaluation-split {judged} --actions {names}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
