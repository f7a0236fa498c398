"""From probe results to what a run leaves behind: records in `results.json`, the printed table, `report.html`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_equi.data.collection import ViewCollection
from ssl_equi.geometry.rotations import geodesic_distance
from ssl_equi.probing.records import append_records, print_records
from ssl_equi.probing.report import Neighbours, ReportFigures, nearest_neighbours, write_report
from ssl_equi.probing.suite import ProbeResults


def publish_results(
    run_folder: Path,
    results: ProbeResults,
    test: ViewCollection,
    *,
    title: str,
    command: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Append the records to `results.json`, print their table, and write `report.html`; returns the report's path.

    Args:
        test: the evaluated split, for the pictures.
        run: what `results.json` shall say of the run as a whole.
    """
    append_records(run_folder / "results.json", results.records, run)
    print_records(results.records, results.notes)
    return write_probe_report(run_folder, results, test, title=title, command=command, config=config, versions=versions)


def write_probe_report(
    folder: Path,
    results: ProbeResults,
    test: ViewCollection,
    *,
    title: str,
    command: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
) -> Path:
    """Write `report.html`; returns its path. `test` is the evaluated split, for the pictures."""
    figures = ReportFigures(
        view_sheet=_view_sheet(test),
        neighbours=_neighbour_strips(results, test),
        angle_errors_deg=results.angle_errors_deg,
        random_angle_errors_deg=results.random_angle_errors_deg,
        constant_angle_errors_deg=results.constant_angle_errors_deg,
        per_class_recall=results.per_class_recall,
        class_names=results.class_names,
        has_poses=test.quats_xyzw is not None,
    )
    return write_report(
        folder,
        title=title,
        records=results.records,
        notes=results.notes,
        figures=figures,
        metrics_path=folder / "metrics.jsonl",
        protocol=asdict(results.protocol),
        config=config,
        versions=versions,
        command=command,
    )


def _view_sheet(test: ViewCollection, max_objects: int = 8, max_views: int = 12) -> np.ndarray:
    """The first views of objects spread over the split, uint8 `[rows, columns, H, W, 3]`.

    A row is an object; objects with one view stand side by side, as many as fill whole rows.
    """
    if test.num_views == 1:
        columns = min(max_views, test.num_objects)
        rows = min(max_objects, test.num_objects // columns)
        objects = _spread(test.num_objects, rows * columns)
        return _read(test, objects, np.zeros((len(objects), 1), np.int64)).reshape(rows, columns, *test.image_size, 3)
    objects = _spread(test.num_objects, max_objects)
    views = np.tile(np.arange(min(max_views, test.num_views)), (len(objects), 1))
    return _read(test, objects, views)


def _neighbour_strips(
    results: ProbeResults, test: ViewCollection, num_queries: int = 6, num_neighbours: int = 6
) -> dict[str, list[Neighbours]]:
    """Strips for the invariant and the equivariant part, or for all features if there are no such parts."""
    k = min(num_neighbours, test.num_objects - 1)
    if k < 1:
        return {}
    cache = results.test_features
    query_objects = torch.from_numpy(_spread(test.num_objects, num_queries))
    queries = torch.stack([query_objects, torch.zeros_like(query_objects)], dim=1)
    query_images = _read(test, queries[:, 0].numpy(), queries[:, 1:].numpy())[:, 0]
    strips = {}
    for part in [part for part in ("inv", "equi") if part in results.parts] or list(results.parts)[:1]:
        found = nearest_neighbours(cache.features[..., results.parts[part]], queries, k)
        objects, views = found.unbind(dim=-1)
        images = _read(test, objects.reshape(-1).numpy(), views.reshape(-1, 1).numpy())[:, 0]
        same_class = cache.labels[objects] == cache.labels[query_objects, None]
        if cache.quats_xyzw is None:
            notes = [[results.class_names[label] for label in row] for row in cache.labels[objects].tolist()]
        else:
            query_quats = cache.quats_xyzw[queries[:, 0], queries[:, 1]]
            angles_rad = geodesic_distance(query_quats[:, None], cache.quats_xyzw[objects, views])
            notes = [[f"{angle:.0f}°" for angle in row] for row in torch.rad2deg(angles_rad).tolist()]
        strips[part] = [
            Neighbours(
                query=query_images[index],
                query_name=results.class_names[int(cache.labels[query_objects[index]])],
                images=images[index * k : (index + 1) * k],
                captions=[
                    f"{'✓ ' if same else ''}{note}" for same, note in zip(same_class[index], notes[index], strict=True)
                ],
            )
            for index in range(len(queries))
        ]
    return strips


def _spread(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` indices, evenly spread over `count`."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))


def _read(dataset: ViewCollection, objects: np.ndarray, views: np.ndarray) -> np.ndarray:
    """uint8 `[n, k, H, W, 3]` of `objects [n]` and `views [n, k]`."""
    images = np.empty((*views.shape, *dataset.image_size, 3), dtype=np.uint8)
    dataset.read_views(objects, views, images)
    return images
