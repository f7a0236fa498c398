"""Splits of rendered objects: drawn by several processes, written as shards, and gone on with where a build stopped."""

import dataclasses
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.manifest import has_manifest, read_manifest
from ssl_equi.data.shards.records import SplitSettings
from ssl_equi.data.shards.writer import SplitWriter
from ssl_equi.errors import DataError
from ssl_equi.files import building_progress, working_alone
from ssl_equi.geometry.latents import FURTHEST_TRANSLATION
from ssl_equi.options import Range
from ssl_equi.runtime.system import usable_cores
from ssl_equi.scenes.mesh import Mesh
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.scene import SceneSettings

ObjectTranslation = Annotated[float, Range(minimum=0, maximum=FURTHEST_TRANSLATION)]
SMALL_BUILD_IMAGES = 1500  # below this, starting worker processes takes longer than the work


def settings_of_plan(config: Any) -> dict[str, Any]:
    """The fields of a set's configuration, as the hashes in its manifests and in names of cache folders have them."""
    # Hashes are older than the choice of how far objects move, when false and true stood for 0 and 3DIEBench-T's 0.5.
    before = {0.0: False, FURTHEST_TRANSLATION: True}
    return dataclasses.asdict(config) | {"translation": before.get(config.translation, config.translation)}


class Planned(Protocol):
    """An object of a split before it is rendered."""

    @property
    def key(self) -> str: ...

    @property
    def label(self) -> int: ...


@dataclass(frozen=True)
class RenderedSplit:
    """A split before it is rendered.

    settings: what its manifest will say
    objects: in the order in which they are written
    views: of each object
    objects_a_task: what a process renders in one go
    render: the records of some of the objects on a device; sent to processes, so a function of a module or a `partial`
    """

    settings: SplitSettings
    objects: Sequence[Any]
    views: int
    objects_a_task: int
    render: Callable[..., list[ObjectRecord]]

    def records(
        self, *, skip: int = 0, pool: ProcessPoolExecutor | None = None, device: str = "cpu"
    ) -> Iterator[ObjectRecord]:
        """The records in their order, after the first `skip`; large splits are rendered by the processes of a pool."""
        objects = self.objects[skip:]
        tasks = [objects[start : start + self.objects_a_task] for start in range(0, len(objects), self.objects_a_task)]
        if pool is None or device != "cpu" or len(objects) * self.views < SMALL_BUILD_IMAGES:
            for task in tasks:
                yield from self.render(task, device=device)
            return
        yield from (record for records in map_in_processes(self.render, tasks, pool) for record in records)


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes of one thread each, which start with the first task; None for a single one, which this one is."""
    if workers <= 1:
        yield None
        return
    # Fresh processes: forking one that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_one_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def map_in_processes(function: Callable[[Any], Any], tasks: Sequence[Any], pool: ProcessPoolExecutor) -> Iterator[Any]:
    """What the function makes of each task, in their order."""
    with _main_module_not_imported(function):
        futures = [pool.submit(function, task) for task in tasks]
    while futures:
        yield futures.pop(0).result()


@contextmanager
def _main_module_not_imported(function: Callable[[Any], Any]) -> Iterator[None]:
    """Lets processes start without importing the script that runs, unless the function is its own.

    Python makes each of them import it, and with a recipe libraries that take seconds and that rendering doesn't use.
    There is no switch for that; the script is found by these two attributes.
    """
    main = sys.modules["__main__"]
    is_its_own = getattr(function, "func", function).__module__ == "__main__"
    found_by = {} if is_its_own else {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    vars(main).update(dict.fromkeys(found_by))
    try:
        yield
    finally:
        vars(main).update(found_by)


def rendered_records(
    objects: Sequence[Planned],
    meshes: Sequence[Mesh],
    latents: Sequence[NDArray[np.float64]],
    settings: SceneSettings,
    jpeg_quality: int,
    device: str,
) -> list[ObjectRecord]:
    """Renders each object's mesh under its latents [V, L] and encodes the views as JPEG."""
    renderer = Renderer(meshes, settings, device=device)
    counts = torch.tensor([len(rows) for rows in latents])
    mesh_indices = torch.arange(len(objects)).repeat_interleave(counts)
    images = renderer.render(mesh_indices, torch.from_numpy(np.concatenate(latents))).cpu().numpy()
    encoded = iter(
        simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=jpeg_quality, colorspace="RGB") for image in images
    )
    return [
        ObjectRecord(key=planned.key, label=planned.label, latents=rows, images=[next(encoded) for _ in rows])
        for planned, rows in zip(objects, latents)
    ]


def build_splits(
    folder: Path,
    splits: Mapping[str, RenderedSplit],
    wanted: Sequence[str],
    *,
    workers: int | None = None,
    device: str = "cpu",
    show_progress: bool = True,
) -> None:
    """Builds the wanted ones of a set's splits that the folder doesn't hold yet; safe to call from several processes.

    Raises:
        DataError: the folder holds a split of another set, or a file can't be written (what is finished stays, and the
            next call goes on from there).
    """
    if missing_splits(folder, wanted):
        with (
            _building_alone(folder, missing_splits(folder, wanted)),
            process_pool(workers or default_workers()) as pool,
        ):
            _refuse_to_mix(folder, splits)
            for name in missing_splits(folder, wanted):
                _build_split(folder, splits[name], pool, device, show_progress)


def missing_splits(folder: Path, splits: Sequence[str]) -> list[str]:
    """The splits that have no manifest yet."""
    return [split for split in splits if not has_manifest(folder, split)]


def _refuse_to_mix(folder: Path, splits: Mapping[str, RenderedSplit]) -> None:
    """Splits of two configurations in one folder would have other classes or poses under the same names."""
    for name, split in splits.items():
        if missing_splits(folder, [name]):
            continue
        if read_manifest(folder, name).plan_sha256 != split.settings.plan_sha256:
            raise DataError(
                f"{folder} holds a split {name!r} of other settings or another data set: choose another folder, "
                "or build the missing splits with the settings of the first"
            )


def _build_split(
    folder: Path, split: RenderedSplit, pool: ProcessPoolExecutor | None, device: str, show_progress: bool
) -> None:
    name, total = split.settings.split, len(split.objects) * split.views
    with SplitWriter(folder, split.settings, resume=True) as writer, building_progress(show_progress) as progress:
        done = writer.num_records * split.views
        bar = progress.add_task(f"rendering {name}", total=total, completed=done)
        for record in split.records(skip=writer.num_records, pool=pool, device=device):
            writer.add(record)
            progress.advance(bar, split.views)
        writer.finish()
    if show_progress and not progress.console.is_terminal:
        print(f"rendered {name}: {total:,} images in {folder}", flush=True)


@contextmanager
def _building_alone(folder: Path, splits: Sequence[str]) -> Iterator[None]:
    """Holds the folder's lock: of two processes that want the same set, one builds and the other waits."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {folder} ({error.strerror}): choose another folder") from error
    with working_alone(folder / ".building.lock", f"building {', '.join(splits)} in {folder}"):
        yield


def default_workers() -> int:
    """One process for each usable core, eight at most: rendering more than that at once floods the memory."""
    return min(usable_cores(), 8)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
