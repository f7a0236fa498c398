"""Along an orbit: what an encoder makes of views that are turned by 0 to 360 degrees in the image plane.

A mean over a test set hides at which angles an answer breaks; curves around the orbit show it, as in NERO (Wang et al.,
"Non-Equivariance Revealed on Orbits", 2023). Two things are measured for each object and angle: how far the features
leave those of the upright view (nothing, for what is invariant), and how wrong a head is about the turn itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import turn_quat_xyzw, turned_by_any_angle
from ssl_equi.data.images import normalise_images
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.metrics import angle_errors_deg
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.geometry.rotations import quat_multiply, quat_positive, relative_quat
from ssl_equi.runtime.frozen import frozen

ORBIT_ANGLES_DEG: tuple[float, ...] = tuple(range(0, 360, 15))
NUM_ORBIT_OBJECTS = 12
BATCH_SIZE = 512  # images in one forward pass
RotationHead = Callable[[Tensor], Tensor]  # features of two views side by side [N, 2 D] -> quaternions [N, 4]


def orbit_errors(
    encoder_source: EncoderSource,
    collection: ViewCollection,
    angles_deg: Sequence[float] = ORBIT_ANGLES_DEG,
    *,
    mean_rgb: Sequence[float],
    std_rgb: Sequence[float],
    rotation_heads: Mapping[str, RotationHead],
    num_objects: int = NUM_ORBIT_OBJECTS,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Features of the first view of some objects, turned counter-clockwise by each angle, beside the upright ones.

    Turned pictures are filled with their own mirror image in the corners, as `TurnedViews` does.

    Args:
        encoder_source: its module is on `device`, and is left as it was.
        collection: objects are spread over it; its pictures fill squares of the encoder's size.
        mean_rgb, std_rgb: of the data's training images, for an encoder that states none.
        rotation_heads: by part, on the CPU; parts without one have no second array.
        num_objects: at most this many are drawn.

    Returns:
        By the keys of an evaluation's `arrays.npz`: `orbit_angles_deg [A]`, `orbit_objects [n]` (which objects),
        `orbit/PART [n, A]`, 1 - cosine between the features of the turned and the upright view, and
        `orbit_rotation_deg/PART [n, A]`, the angle between the head's answer and the true rotation from the upright
        view to the turned one, in degrees, where a turn of the picture is a known turn of the object.

    Raises TaskSkipped if the pictures are not square, don't fill their buffer, or have another size than the encoder's.
    """
    _check_pictures(collection, encoder_source.image_size)
    # The camera of other data may look from anywhere.
    turns_are_known = collection.quats_xyzw is not None and (
        collection.schema is None or collection.schema.is_of_scenes
    )
    objects = np.unique(np.linspace(0, collection.num_objects - 1, min(num_objects, collection.num_objects)).round())
    objects = objects.astype(np.int64)
    upright_images = np.empty((len(objects), 1, *collection.image_size, 3), dtype=np.uint8)
    collection.read_views(objects, np.zeros((len(objects), 1), dtype=np.int64), upright_images)
    turned_images = [[turned_by_any_angle(image, angle_deg) for angle_deg in angles_deg] for [image] in upright_images]
    images = np.concatenate([upright_images, np.array(turned_images)], axis=1)
    colours = (encoder_source.mean_rgb or mean_rgb, encoder_source.std_rgb or std_rgb)
    features = _encode_orbits(encoder_source.module, images, colours, device)
    arrays = {"orbit_angles_deg": np.asarray(angles_deg, dtype=np.float64), "orbit_objects": objects}
    for part, columns in encoder_source.parts.items():
        upright, turned = features[:, :1, columns], features[:, 1:, columns]
        arrays[f"orbit/{part}"] = _cosine_distance(upright, turned).numpy()
        if turns_are_known and part in rotation_heads:
            pairs = torch.cat([upright.expand_as(turned), turned], dim=-1)
            with torch.inference_mode():
                answers = rotation_heads[part](pairs.flatten(0, 1))
            errors_deg = angle_errors_deg(answers, _true_turns(collection, objects, angles_deg))
            arrays[f"orbit_rotation_deg/{part}"] = errors_deg.reshape(turned.shape[:2]).numpy()
    return arrays


def _check_pictures(collection: ViewCollection, side: int) -> None:
    height, width = collection.image_size
    if height != width or not collection.fills_image:
        raise TaskSkipped(
            f"views of split {collection.split!r} lie in a buffer of {height} x {width} pixels: only views that fill a "
            "square can be turned, crop them first"
        )
    if height != side:
        raise TaskSkipped(
            f"views of split {collection.split!r} have {height} x {height} pixels and the encoder takes {side} x "
            f"{side}: give views of the encoder's size"
        )


def _encode_orbits(
    encoder: nn.Module,
    images: np.ndarray,
    colours: tuple[Sequence[float], Sequence[float]],
    device: torch.device | str,
) -> Tensor:
    """float32 `[n, 1 + A, D]` on the CPU, of images uint8 `[n, 1 + A, S, S, 3]`."""
    flat = torch.from_numpy(images).flatten(0, 1)
    with frozen(encoder):
        batches = [encoder(normalise_images(batch.to(device), *colours)).float() for batch in flat.split(BATCH_SIZE)]
        features = torch.cat(batches).cpu()
    if not bool(torch.isfinite(features).all()):
        raise RuntimeError("the encoder produced features that are not finite: use an earlier checkpoint")
    return features.clone().unflatten(0, images.shape[:2])


def _cosine_distance(upright: Tensor, turned: Tensor) -> Tensor:
    """1 - cosine, float64 `[n, A]`; features that are zero at both places have not moved, at one of them have."""
    distance = 1 - F.cosine_similarity(upright.double(), turned.double(), dim=-1)
    both_zero = (upright == 0).all(dim=-1) & (turned == 0).all(dim=-1)
    return torch.where(both_zero, 0.0, distance.clamp(min=0))


def _true_turns(collection: ViewCollection, objects: np.ndarray, angles_deg: Sequence[float]) -> Tensor:
    """Body-frame rotations float64 `[n * A, 4]` from the upright to the turned view: R^-1 Q R."""
    assert collection.quats_xyzw is not None
    upright_xyzw = torch.from_numpy(np.array(collection.quats_xyzw[objects, 0], dtype=np.float64))[:, None]
    turns_xyzw = turn_quat_xyzw(torch.tensor([math.radians(angle) for angle in angles_deg], dtype=torch.float64))
    turned_xyzw = quat_positive(quat_multiply(turns_xyzw, upright_xyzw))
    return relative_quat(upright_xyzw.expand_as(turned_xyzw), turned_xyzw).flatten(0, 1)
