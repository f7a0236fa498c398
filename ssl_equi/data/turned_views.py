"""A split whose views are turned in the image plane, and with them what is known about their poses.

Turning the camera about its own axis turns the picture and nothing else of the object. The axis passes through the
world's origin, so a picture turned counter-clockwise by an angle shows the object turned by Q, the rotation by that
angle about the direction from the origin to the camera: its pose R becomes Q R, and its centre R t becomes Q R t. The
spot light turns along; floor and sun, which no latent places, would too.
"""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DataSource
from ssl_equi.data.stage_seconds import StageSeconds
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

__all__ = ["TurnedViews", "Turns", "turn_quat_xyzw", "turned_by_any_angle", "turned_source"]

Turns = Literal["quarter", "any"]


def turned_source(data: DataSource, turns: Literal["none"] | Turns, turn_training_views: bool = False) -> DataSource:
    """The data with judged views turned, and if asked the views that heads are trained on.

    Raises:
        DataError: the training views alone would be turned, or views that aren't square.
    """
    if turns == "none":
        if turn_training_views:
            raise DataError("--turn-training-views is given and --turns is none: give --turns quarter or any")
        return data
    probe_train = TurnedViews(data.probe_train, turns) if turn_training_views else data.probe_train
    return dataclasses.replace(data, probe_train=probe_train, evaluation=TurnedViews(data.evaluation, turns))


class TurnedViews:
    """Another split with each view turned by an angle of its own, which depends on (seed, object, view) alone.

    Args:
        stored: its pictures fill their squares.
        turns: "quarter": 0, 90, 180 or 270 degrees, by moving pixels. "any": uniform angles, by bicubic interpolation;
            corners are filled with the mirrored picture.
        seed: of the angles.

    Attributes:
        angles_deg: float64 [n, V], counter-clockwise.

    Raises:
        DataError: the pictures are not square, or don't fill their buffer.
        ValueError: there are no such turns.
    """

    def __init__(self, stored: ViewCollection, turns: Turns = "quarter", seed: int = 0) -> None:
        if turns not in get_args(Turns):
            raise ValueError(f"turns is {turns!r}: choose 'quarter' or 'any'")
        height, width = stored.image_size
        if height != width or not stored.fills_image:
            raise DataError(
                f"views of split {stored.split!r} lie in a buffer of {height} x {width} pixels: only views that fill a "
                "square can be turned, crop them first"
            )
        self._stored, self._turns = stored, turns
        self.angles_deg = _drawn_angles_deg(stored.num_objects, stored.num_views, turns, seed)
        self.latents, self.quats_xyzw = _turned_poses(stored, torch.from_numpy(self.angles_deg))
        self.fingerprint = _hashed(stored.fingerprint, turns, seed)
        self.content_key = _hashed(stored.content_key, turns, seed)
        self.plan_sha256 = _hashed(stored.plan_sha256, turns, seed)

    @property
    def split(self) -> str:
        """Name of the split, and how it is turned."""
        return f"{self._stored.split}_{self._turns}_turns"

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._stored.folder

    @property
    def source(self) -> str:
        """What the images are, in words."""
        return f"{self._stored.source}, turned in the image plane ({self._turns} turns)"

    @property
    def num_objects(self) -> int:
        """Number of objects n."""
        return self._stored.num_objects

    @property
    def num_views(self) -> int:
        """Views V of each object."""
        return self._stored.num_views

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._stored.image_size

    @property
    def fills_image(self) -> bool:
        """True: every picture is as large as `image_size`."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """A label is an index into them."""
        return self._stored.class_names

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]."""
        return self._stored.labels

    @property
    def mean_rgb(self) -> tuple[float, float, float] | None:
        """Mean of the stored pixels in units of [0, 1]."""
        return self._stored.mean_rgb

    @property
    def std_rgb(self) -> tuple[float, float, float] | None:
        """Standard deviation of the stored pixels in units of [0, 1]."""
        return self._stored.std_rgb

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """As `ViewCollection.read_views`."""
        stage_seconds = self._stored.read_views(object_indices, view_indices, out, content_sizes_out)
        turn = _turned_by_quarters if self._turns == "quarter" else turned_by_any_angle
        angles_deg = self.angles_deg[object_indices[:, None], view_indices]
        for image, angle_deg in zip(out.reshape(-1, *out.shape[2:]), angles_deg.flat):
            image[...] = turn(image, float(angle_deg))
        return stage_seconds


def turn_quat_xyzw(angles_rad: Tensor) -> Tensor:
    """The rotation Q [..., 4] of the world that turns pictures counter-clockwise by angles [...]."""
    towards_camera = torch.tensor(CAMERA_POSITION, dtype=torch.float64)
    return quat_exp(angles_rad[..., None] * towards_camera / towards_camera.norm())


def _drawn_angles_deg(num_objects: int, num_views: int, turns: Turns, seed: int) -> np.ndarray:
    """[n, V]; the raw words of a counter-based generator, whose stream NumPy keeps fixed."""
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
    return latents.float().numpy(), quat_positive(quats_xyzw).float().numpy()


def _turned_by_quarters(image: np.ndarray, angle_deg: float) -> np.ndarray:
    return np.rot90(image, round(angle_deg / 90)).copy()


def turned_by_any_angle(image: np.ndarray, angle_deg: float) -> np.ndarray:
    """A square picture uint8 [S, S, 3] turned counter-clockwise by bicubic interpolation, its mirror image around it.

    Quarter turns only move pixels.
    """
    side = image.shape[0]
    margin = math.ceil(side * (math.sqrt(2) - 1) / 2) + 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = np.asarray(Image.fromarray(padded).rotate(angle_deg, resample=Image.Resampling.BICUBIC))
    return turned[margin : margin + side, margin : margin + side]


def _hashed(stored_hash: str, turns: Turns, seed: int) -> str:
    return hashlib.sha256(f"{stored_hash} {turns} turns of seed {seed}".encode()).hexdigest()
