"""Prints the asymmetry score and the size of every object family of the procedural renderer.

    python tools/check_families.py
    python tools/check_families.py --families mug teapot --instances 8 --device cuda

A family whose score is below .4 has poses that cannot be told apart; see ssl_equi/scenes/symmetry.py. Takes a few
minutes on one core.
"""

import time
from dataclasses import dataclass

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ssl_equi.scenes.families import DEFAULT_FAMILIES, FAMILIES, HELD_OUT_FAMILIES, build_object
from ssl_equi.scenes.symmetry import SAFE_SCORE, asymmetry_score


@dataclass(frozen=True)
class Config:
    families: tuple[str, ...] = tuple(FAMILIES)
    instances: int = 3  # scored instances of each family, seeds 0, 1, ...
    poses: int = 5  # base poses of each instance
    resolution: int = 48  # pixels
    device: str = "cpu"


def family_set(family: str) -> str:
    if family in DEFAULT_FAMILIES:
        return "default"
    return "held out" if family in HELD_OUT_FAMILIES else "extra"


def main(config: Config) -> None:
    rows = []
    for family in config.families:
        start_s = time.process_time()
        meshes = [build_object(family, seed) for seed in range(config.instances)]
        build_ms = 1000 * (time.process_time() - start_s) / config.instances
        score = asymmetry_score(meshes, poses=config.poses, resolution=config.resolution, device=config.device)
        triangles = round(float(np.mean([len(mesh.faces) for mesh in meshes])))
        rows.append((family, score, triangles, build_ms))

    table = Table("family", "set", "score", "worst instance", "nearest symmetry", "triangles", "ms a mesh")
    for family, score, triangles, build_ms in sorted(rows, key=lambda row: row[1].score):
        name = family if score.score >= SAFE_SCORE else f"[red]{family}"
        scores = f"{score.score:.2f}", f"{score.worst_instance:.2f}", score.symmetry
        table.add_row(name, family_set(family), *scores, str(triangles), f"{build_ms:.1f}")
    Console().print(table)
    unsafe = sum(row[1].score < SAFE_SCORE for row in rows)
    triangles = np.mean([row[2] for row in rows])
    print(f"{len(rows)} families, {unsafe} below {SAFE_SCORE}; {triangles:.0f} triangles a mesh on average")


if __name__ == "__main__":
    main(tyro.cli(Config))
