"""Splits made of other splits: some of the views, views of another size, views turned in the image plane."""

import hashlib
import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import CenterCrop
from ssl_equi.data.view_counts import ViewsOfEach, is_view, shuffled_views
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LIGHT_DIRECTION_COLUMNS, ROTATION_COLUMNS
from ssl_equi.geometry.rotations import (
    euler_xyz_from_matrix,
    quat_exp,
    quat_multiply,
    quat_positive,
    quat_to_matrix,
    rotate_vectors,
)
from ssl_equi.scenes.scene import CAMERA_POSITION, spot_position

Turns = Literal["quarter", "any"]


class DerivedViews(ViewCollection):
    """The views of `stored` with the attributes in `changed`; the others are copied.

    `how` says in bytes what is done to the views, and is hashed into fingerprint, content key and plan; without it
    they are those of `stored`.
    """

    def __init__(self, stored: ViewCollection, how: bytes = b"", **changed: Any) -> None:
        self.stored = stored
        hashes = {name: getattr(stored, name) for name in ("fingerprint", "content_key", "plan_sha256")}
        if how:
            hashes = {name: hashlib.sha256(value.encode() + how).hexdigest() for name, value in hashes.items()}
        for name in ViewCollection.__annotations__:
            value = changed[name] if name in changed else hashes[name] if name in hashes else getattr(stored, name)
            setattr(self, name, value)

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        self.stored.read_views(object_indices, view_indices, out, sizes_out)


class ViewSubset(DerivedViews):
    """The views `view_indices` int64 [m, k] of the objects `object_indices` int64 [m].

    Raises ValueError if the indices don't belong together, nothing is chosen, or an object has no such view.
    """

    def __init__(self, stored: ViewCollection, object_indices: np.ndarray, view_indices: np.ndarray) -> None:
        if view_indices.ndim != 2 or object_indices.shape != view_indices.shape[:1] or view_indices.size == 0:
            raise ValueError(
                f"object_indices {object_indices.shape} and view_indices {view_indices.shape} do not belong together: "
                "give [m] and [m, k] with at least one view"
            )
        if stored.view_counts is not None and (view_indices >= stored.view_counts[object_indices][:, None]).any():
            raise ValueError(f"view_indices hold views that an object of split {stored.split!r} lacks: see view_counts")
        self.object_indices, self.view_indices = object_indices, view_indices
        how = b"".join(
            f" {indices.shape} ".encode() + indices.astype(np.int64).tobytes()
            for indices in (object_indices, view_indices)
        )
        quats_xyzw = stored.quats_xyzw
        super().__init__(
            stored,
            how,
            num_objects=view_indices.shape[0],
            num_views=view_indices.shape[1],
            view_counts=None,
            keys=None if stored.keys is None else stored.keys[object_indices],
            labels=stored.labels[object_indices],
            latents=stored.latents[object_indices[:, None], view_indices],
            quats_xyzw=None if quats_xyzw is None else quats_xyzw[object_indices[:, None], view_indices],
        )

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        chosen_views = self.view_indices[object_indices[:, None], view_indices]
        self.stored.read_views(self.object_indices[object_indices], chosen_views, out, sizes_out)


def spread_views(num_objects: int, num_views: ViewsOfEach, max_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which views stand for a split of `num_objects` where all of their views are too many.

    First views are left out, down to two and so that equally many of each object stay, then objects: a standard error
    comes from objects, and a pair takes two views.

    Returns objects int64 [m] in order and distinct views int64 [m, k] of each; m * k is at most `max_images`, which is
    at least 2.
    """
    views_per_object = min(int(np.min(num_views)), max(2, max_images // num_objects))
    count = min(num_objects, max_images // views_per_object)
    generator = np.random.default_rng(seed)
    object_indices = np.sort(generator.permutation(num_objects)[:count])
    view_indices = shuffled_views(num_objects, num_views, generator)[object_indices, 0, :views_per_object]
    return object_indices, np.sort(view_indices, axis=1)


class ResizedViews(DerivedViews):
    """Square views brought to squares of `side` pixels: bilinear, with anti-aliasing where a view shrinks.

    Raises DataError if the stored views are not square.
    """

    def __init__(self, stored: ViewCollection, side: int) -> None:
        height, width = stored.image_size
        if height != width:
            raise DataError(
                f"the views of split {stored.split!r} have {height} x {width} pixels and only squares can be resized "
                f"to --image-size {side}: pad or crop the images to squares before converting them"
            )
        self.fit = CenterCrop(side, side)
        super().__init__(
            stored,
            f" resized to {side}".encode(),
            image_size=(side, side),
            source=f"{stored.source}, resized to {side} pixels",
        )

    def __reduce__(self) -> tuple[type["ResizedViews"], tuple[ViewCollection, int]]:
        return ResizedViews, (self.stored, self.fit.side)

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        # One object after the other: a batch of stored views may take much more memory than the resized ones.
        pixels = np.empty((1, view_indices.shape[1], *self.stored.image_size, 3), dtype=np.uint8)
        for row in range(len(object_indices)):
            self.stored.read_views(object_indices[row : row + 1], view_indices[row : row + 1], pixels)
            for view, resized_view in zip(pixels[0], out[row]):
                self.fit.place(view, resized_view)


def resized(stored: ViewCollection, side: int | None) -> ViewCollection:
    """Views as squares of `side` pixels; the same collection if they already are, or no side is given."""
    return stored if side is None or stored.image_size == (side, side) else ResizedViews(stored, side)


class TurnedViews(DerivedViews):
    """Views turned in the image plane, each by an angle of its own, and with them what is known about their poses.

    Turning the camera about its own axis turns the picture and nothing else of the object. The axis passes through the
    world's origin, so a picture turned counter-clockwise by an angle shows the object turned by Q, the rotation by
    that angle about the direction from the origin to the camera: its pose R becomes Q R, and its centre R t becomes
    Q R t. The spot light turns along; floor and sun, which no latent places, would too.

    Turns are "quarter": 0, 90, 180 or 270 degrees, by moving pixels, or "any": uniform angles, by bicubic
    interpolation, with corners filled with the mirrored picture. `angles_deg` float64 [n, V], counter-clockwise, depend
    on (seed, object, view) alone.

    Raises DataError if the pictures are not square or don't fill their buffer, or the latents aren't of our scenes.
    """

    def __init__(self, stored: ViewCollection, turns: Turns = "quarter", seed: int = 0) -> None:
        if turns not in get_args(Turns):
            raise ValueError(f"turns is {turns!r}: choose 'quarter' or 'any'")
        if stored.schema is not None and not stored.schema.is_of_scenes:
            raise DataError(
                f"views of split {stored.split!r} have latents {', '.join(stored.schema.by_name)}, and what a turn of "
                "the picture does to them is not known: leave out --turns"
            )
        height, width = stored.image_size
        if height != width or not stored.fills_image:
            raise DataError(
                f"views of split {stored.split!r} lie in a buffer of {height} x {width} pixels: only views that fill a "
                "square can be turned, crop them first"
            )
        self._turns = turns
        self.angles_deg = _drawn_angles_deg(stored.num_objects, stored.num_views, turns, seed)
        latents, quats_xyzw = _turned_poses(stored, torch.from_numpy(self.angles_deg))
        super().__init__(
            stored,
            f" {turns} turns of seed {seed}".encode(),
            split=f"{stored.split}_{turns}_turns",
            source=f"{stored.source}, turned in the image plane ({turns} turns)",
            latents=latents,
            quats_xyzw=quats_xyzw,
        )

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        self.stored.read_views(object_indices, view_indices, out, sizes_out)
        angles_deg = self.angles_deg[object_indices[:, None], view_indices]
        for image, angle_deg in zip(out.reshape(-1, *out.shape[2:]), angles_deg.flat):
            if self._turns == "quarter":
                image[...] = np.rot90(image, round(angle_deg / 90)).copy()
            else:
                image[...] = turned_by_any_angle(image, float(angle_deg))


def turn_quat_xyzw(angles_rad: Tensor) -> Tensor:
    """The rotation Q [..., 4] of the world that turns pictures counter-clockwise by angles [...]."""
    towards_camera = torch.tensor(CAMERA_POSITION, dtype=torch.float64)
    return quat_exp(angles_rad[..., None] * towards_camera / towards_camera.norm())


def turned_by_any_angle(image: np.ndarray, angle_deg: float) -> np.ndarray:
    """A square picture uint8 [S, S, 3] turned counter-clockwise by bicubic interpolation, its mirror image around it.

    Quarter turns only move pixels.
    """
    side = image.shape[0]
    margin = math.ceil(side * (math.sqrt(2) - 1) / 2) + 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = np.asarray(Image.fromarray(padded).rotate(angle_deg, resample=Image.Resampling.BICUBIC))
    return turned[margin : margin + side, margin : margin + side]


def _drawn_angles_deg(num_objects: int, num_views: int, turns: Turns, seed: int) -> np.ndarray:
    # The raw words of a counter-based generator, whose stream NumPy keeps fixed.
    words = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64)).random_raw(num_objects * num_views)
    shares = (words >> np.uint64(11)).astype(np.float64).reshape(num_objects, num_views) * 2.0**-53
    return 90.0 * np.floor(4 * shares) if turns == "quarter" else 360.0 * shares


def _turned_poses(stored: ViewCollection, angles_deg: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Latents and quaternions of the turned views; both as they are where no poses are known."""
    if stored.quats_xyzw is None:
        return stored.latents, None
    turns_xyzw = turn_quat_xyzw(torch.deg2rad(angles_deg))
    quats_xyzw = quat_multiply(turns_xyzw, torch.from_numpy(np.array(stored.quats_xyzw, dtype=np.float64)))
    latents = torch.from_numpy(np.array(stored.latents, dtype=np.float64))
    latents[..., ROTATION_COLUMNS] = euler_xyz_from_matrix(quat_to_matrix(quats_xyzw))
    theta_rad, phi_rad = latents[..., LIGHT_DIRECTION_COLUMNS].unbind(-1)
    x, y, z = rotate_vectors(turns_xyzw, spot_position(theta_rad, phi_rad)).unbind(-1)
    angles_rad = [torch.atan2(torch.hypot(x, y), z), torch.atan2(y, x) % (2 * math.pi)]
    latents[..., LIGHT_DIRECTION_COLUMNS] = torch.stack(angles_rad, dim=-1)
    turned_latents, turned_xyzw = latents.float().numpy(), quat_positive(quats_xyzw).float().numpy()
    if stored.view_counts is not None:
        for array in (turned_latents, turned_xyzw):
            array[~is_view(stored.view_counts, stored.num_views)] = 0
    return turned_latents, turned_xyzw
