"""Does an object look different in every pose? A pose is only well defined for objects that do.

An object in pose R is compared with the same object in pose R Q, for 28 rotations Q that everyday objects are often
symmetric under, and the difference of the images is divided by the difference for random rotations: a ratio near 0
says that R and R Q cannot be told apart, a ratio near 1 that they differ like any two poses do. The score is the
smallest ratio. A mug whose handle is out of sight now and then scores .5, a bottle 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.geometry.rotations import (
    euler_xyz_from_matrix,
    quat_exp,
    quat_from_euler_xyz,
    quat_to_matrix,
    random_quat,
)
from ssl_equi.scenes.mesh import Mesh
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.scene import SceneSettings

# scores from here on are safe: the pose can be told from one image nearly always
SAFE_SCORE = 0.4

RANDOM_ROTATIONS = 8
# one floor and one light for all images: hue of the floor, polar and azimuth angle of the light, hue of the light
FLOOR_AND_LIGHT = (0.6, 0.4, 1.2, 0.12)
# random rotations of an object that is round all over differ by rendering noise only (in grey levels of 255)
NOISE_GREY_LEVELS = 0.01


@dataclass(frozen=True)
class AsymmetryScore:
    """Smallest ratios of an object family.

    score: mean over the instances of each one's smallest ratio
    worst_instance: smallest ratio of any instance
    symmetry: the candidate symmetry with the smallest mean ratio, e.g. "C2z" for a half turn about z
    """

    score: float
    worst_instance: float
    symmetry: str


def candidate_symmetries() -> dict[str, Tensor]:
    """28 rotation matrices [3, 3] by name: 2-, 3-, 4-, 5-, 6- and 8-fold about x, y and z, half turns about the six
    face diagonals of a cube and third turns about its four body diagonals."""
    axis_vectors = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}
    turns = [(f"C{fold}{name}", axis, fold) for name, axis in axis_vectors.items() for fold in (2, 3, 4, 5, 6, 8)]
    face_diagonals = [(1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1)]
    body_diagonals = [(1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)]
    turns += [(f"C2{axis}", axis, 2) for axis in face_diagonals]
    turns += [(f"C3{axis}", axis, 3) for axis in body_diagonals]
    symmetries = {}
    for name, axis, fold in turns:
        direction = torch.tensor(axis, dtype=torch.float64)
        rotation_vector = direction / direction.norm() * (2 * torch.pi / fold)
        symmetries[name] = quat_to_matrix(quat_exp(rotation_vector))
    return symmetries


def asymmetry_score(
    meshes: Sequence[Mesh],
    *,
    poses: int = 5,
    resolution: int = 48,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AsymmetryScore:
    """Score of a few instances of one family, over `poses` base poses of the Euler box."""
    if not meshes:
        raise ValueError("no meshes to score: give at least one instance of the family")
    symmetries = candidate_symmetries()
    generator = torch.Generator().manual_seed(seed)
    box_angles_rad = (torch.rand(poses, 3, generator=generator, dtype=torch.float64) - 0.5) * torch.pi
    base = quat_to_matrix(quat_from_euler_xyz(box_angles_rad))
    by_symmetries = base @ torch.stack(list(symmetries.values()))[:, None]
    random_turns = quat_to_matrix(random_quat(RANDOM_ROTATIONS * poses, generator)).view(-1, poses, 3, 3)
    rotations = torch.cat([base[None], by_symmetries, base @ random_turns])

    renderer = Renderer(meshes, SceneSettings(resolution=resolution), device)
    ratios = torch.stack([_ratios(renderer, index, rotations, len(symmetries)) for index in range(len(meshes))])
    smallest = ratios.min(dim=1).values
    worst_symmetry = int(ratios.mean(dim=0).argmin())
    return AsymmetryScore(float(smallest.mean()), float(smallest.min()), list(symmetries)[worst_symmetry])


def _ratios(renderer: Renderer, mesh_index: int, rotations: Tensor, symmetry_count: int) -> Tensor:
    """Ratio for each symmetry; rotations [1 + symmetries + random ones, poses, 3, 3] start with the base poses."""
    angles_rad = euler_xyz_from_matrix(rotations).reshape(-1, 3)
    floor_and_light = torch.tensor(FLOOR_AND_LIGHT, dtype=torch.float64).expand(len(angles_rad), -1)
    latents = torch.cat([angles_rad, floor_and_light], dim=1)
    images = renderer.render(torch.full((len(latents),), mesh_index), latents)
    by_rotation = images.cpu().float().reshape(len(rotations), -1)
    differences = (by_rotation[1:] - by_rotation[0]).abs().mean(dim=1)
    random_difference = differences[symmetry_count:].mean().clamp(min=NOISE_GREY_LEVELS)
    return differences[:symmetry_count] / random_difference
