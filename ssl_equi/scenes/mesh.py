"""Triangle meshes for the renderer: coloured parts are collected, shaded normals worked out, the size normalised."""

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_equi.scenes.primitives import FloatArray, IntArray, Part

# two faces of a smooth part share their shading across an edge that bends by less than this
SMOOTH_CREASE_DEG = 53.0
# faceted parts share it only between coplanar faces
FLAT_CREASE_DEG = 1.0
# triangles of less than this area (bounding-box diagonal 1) are invisible and have no reliable normal
MIN_FACE_AREA = 1e-8


@dataclass(frozen=True, eq=False)
class Mesh:
    """One object, in NumPy arrays.

    vertices: [V, 3] float32; the bounding box has its centre at 0 and a diagonal of 1
    faces: [F, 3] int32, counter-clockwise from outside
    corner_normals: [F, 3, 3] float32, a unit normal for each corner of each face
    face_colors: [F, 3] float32, linear albedo in [0, 1]
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    corner_normals: NDArray[np.float32]
    face_colors: NDArray[np.float32]


class Palette(NamedTuple):
    """Seven linear albedos [3] of one object: five drawn colours, a near-black and a near-white."""

    main: FloatArray
    second: FloatArray
    third: FloatArray
    fourth: FloatArray
    fifth: FloatArray
    dark: FloatArray
    light: FloatArray


def draw_palette(rng: np.random.Generator) -> Palette:
    """Random palette: the hues are spread around a random first one, many colours are nearly grey."""
    first_hue = rng.random()
    drawn: list[FloatArray] = []
    for index in range(5):
        hue = first_hue if index == 0 else first_hue + rng.uniform(0.12, 0.88)
        saturation = rng.choice([0.08, 0.35, 0.6], p=[0.35, 0.35, 0.3])
        srgb = colorsys.hsv_to_rgb(hue % 1, saturation, rng.uniform(0.35, 0.95))
        drawn.append(np.array(srgb) ** 2.2)
    dark = np.full(3, rng.uniform(0.02, 0.07))
    light = np.full(3, rng.uniform(0.6, 0.9))
    main, second, third, fourth, fifth = drawn
    return Palette(main, second, third, fourth, fifth, dark, light)


class MeshBuilder:
    """Collects coloured parts and makes one normalised `Mesh` of them."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._colors: list[FloatArray] = []

    def add(self, part: Part, color: ArrayLike) -> None:
        """Add a part of one linear RGB albedo."""
        albedo = np.asarray(color, dtype=np.float64)
        if albedo.shape != (3,) or not (albedo.min() >= 0 and albedo.max() <= 1):
            raise ValueError(f"colour {albedo} is not a linear albedo: give three numbers in [0, 1]")
        if not np.isfinite(part.vertices).all():
            raise ValueError(f"part {len(self._parts)} has vertices that are not finite: check its dimensions")
        self._parts.append(part)
        self._colors.append(albedo)

    def build(self) -> Mesh:
        """The mesh of all parts, its bounding box centred at 0 with diagonal 1, degenerate faces left out."""
        if not self._parts:
            raise ValueError("the mesh has no parts: add one before build()")
        first_vertex = np.cumsum([0, *(len(part.vertices) for part in self._parts)])
        vertices = np.concatenate([part.vertices for part in self._parts])
        faces = np.concatenate([part.faces + offset for part, offset in zip(self._parts, first_vertex)])
        face_counts = [len(part.faces) for part in self._parts]
        colors = np.repeat(self._colors, face_counts, axis=0)
        crease_deg = [SMOOTH_CREASE_DEG if part.smooth else FLAT_CREASE_DEG for part in self._parts]
        crease_cosines = np.repeat(np.cos(np.radians(crease_deg)), face_counts)

        vertices = _normalise_bounding_box(vertices, faces)
        visible = np.linalg.norm(_face_area_vectors(vertices, faces), axis=-1) > MIN_FACE_AREA
        faces, colors, crease_cosines = faces[visible], colors[visible], crease_cosines[visible]
        vertices, faces = _drop_unused_vertices(vertices, faces)
        normals = corner_normals(vertices, faces, crease_cosines)
        return Mesh(
            vertices=np.ascontiguousarray(_normalise_bounding_box(vertices, faces), dtype=np.float32),
            faces=np.ascontiguousarray(faces, dtype=np.int32),
            corner_normals=np.ascontiguousarray(normals, dtype=np.float32),
            face_colors=np.ascontiguousarray(colors, dtype=np.float32),
        )


def _face_area_vectors(vertices: FloatArray, faces: IntArray) -> FloatArray:
    """[F, 3]: each face's outward normal, as long as its area."""
    first, second, third = (vertices[faces[:, corner]] for corner in range(3))
    return np.cross(second - first, third - first) / 2


def _normalise_bounding_box(vertices: FloatArray, faces: IntArray) -> FloatArray:
    used = vertices[faces.reshape(-1)]
    low, high = used.min(axis=0), used.max(axis=0)
    return (vertices - (low + high) / 2) / np.linalg.norm(high - low)


def _drop_unused_vertices(vertices: FloatArray, faces: IntArray) -> tuple[FloatArray, IntArray]:
    used, new_index = np.unique(faces, return_inverse=True)
    return vertices[used], new_index.reshape(faces.shape)


def corner_normals(vertices: FloatArray, faces: IntArray, crease_cosines: FloatArray) -> FloatArray:
    """Unit shading normals [F, 3, 3] of the face corners.

    A corner's normal is the area-weighted mean over the faces around its vertex, of which only those count whose
    plane is within the face's own crease angle (`crease_cosines` [F]): curved surfaces come out smooth, edges sharp.
    """
    area_vectors = _face_area_vectors(vertices, faces)
    units = area_vectors / np.linalg.norm(area_vectors, axis=-1, keepdims=True)

    # corners sorted by their vertex: those of one vertex are neighbours in `corners`
    corners = np.argsort(faces.reshape(-1), kind="stable")
    valence = np.bincount(faces.reshape(-1), minlength=len(vertices))
    first_corner = np.cumsum(valence) - valence
    # every ordered pair of corners that meet at a vertex
    pairs_per_corner = np.repeat(valence, valence)
    own = np.repeat(corners, pairs_per_corner)
    start = np.repeat(np.repeat(first_corner, valence), pairs_per_corner)
    step = np.arange(len(own)) - np.repeat(np.cumsum(pairs_per_corner) - pairs_per_corner, pairs_per_corner)
    own_face, other_face = own // 3, corners[start + step] // 3

    # the small slack keeps a face's agreement with itself from being lost to rounding
    agree = np.einsum("ij,ij->i", units[own_face], units[other_face]) >= crease_cosines[own_face] - 1e-9
    own, other_face = own[agree], other_face[agree]
    sums = np.stack(
        [np.bincount(own, weights=area_vectors[other_face, axis], minlength=faces.size) for axis in range(3)], axis=-1
    )
    return (sums / np.linalg.norm(sums, axis=-1, keepdims=True)).reshape(*faces.shape, 3)
