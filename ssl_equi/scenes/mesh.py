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
# faces that meet at one vertex beyond which shading isn't smooth there: the pairs of them would fill the memory
MAX_SMOOTH_VALENCE = 500
# pairs of corners whose agreement is worked out at once
PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class Paint:
    """What colours the faces of a mesh beyond one albedo each, which these multiply; linear, in [0, 1].

    corner_colors: [F, 3, 3] float32, RGB of each corner of each face, interpolated between them
    corner_uv: [F, 3, 2] float32, where each corner lies in its face's texture: u from left to right, v from the lower
        edge to the upper one, both from 0 to 1; beyond, the texture repeats
    face_textures: [F] int32, index into `textures`, or -1 for none
    textures: images [H, W, 3] float32, upper row first
    """

    corner_colors: NDArray[np.float32]
    corner_uv: NDArray[np.float32]
    face_textures: NDArray[np.int32]
    textures: tuple[NDArray[np.float32], ...] = ()

    def of_faces(self, kept: NDArray[np.bool_]) -> "Paint":
        """The paint of some of the faces."""
        return Paint(self.corner_colors[kept], self.corner_uv[kept], self.face_textures[kept], self.textures)


@dataclass(frozen=True, eq=False)
class Mesh:
    """One object, in NumPy arrays.

    vertices: [V, 3] float32; the bounding box has its centre at 0 and a diagonal of 1
    faces: [F, 3] int32, counter-clockwise from outside
    corner_normals: [F, 3, 3] float32, a unit normal for each corner of each face, on the side from which the face is
        seen counter-clockwise; from the other side it is shaded with the opposite normal
    face_colors: [F, 3] float32, linear albedo in [0, 1]
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    corner_normals: NDArray[np.float32]
    face_colors: NDArray[np.float32]
    paint: Paint | None = None


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

        return _make_mesh(vertices, faces, colors, crease_cosines)


def mesh_of_triangles(vertices: FloatArray, faces: IntArray, face_colors: FloatArray, paint: Paint) -> Mesh:
    """The normalised mesh of triangles made elsewhere, for whose winding and sharing of vertices nobody vouches.

    Vertices at one place are one for shading, so that seams of textures don't show. Neighbours wound in opposite ways
    are shaded smoothly too: which side is the outer one doesn't matter, for each face is lit on the side that is seen.

    Raises ValueError if no face is large enough to be seen.
    """
    normalised = _normalise_bounding_box(vertices, faces).astype(np.float32)
    # Equal places follow one another in this order; `np.unique` of rows takes ten times as long.
    order = np.lexsort(normalised.T)
    is_first = np.append(True, (np.diff(normalised[order], axis=0) != 0).any(axis=1))
    places, place_of_vertex = normalised[order[is_first]], np.empty(len(order), dtype=np.int64)
    place_of_vertex[order] = np.cumsum(is_first) - 1
    corners = place_of_vertex[faces].reshape(-1)
    crowded = np.bincount(corners)[corners] > MAX_SMOOTH_VALENCE
    places = np.concatenate([places, places[corners[crowded]]]).astype(np.float64)
    corners[crowded] = np.arange(len(places) - crowded.sum(), len(places))
    crease_cosines = np.full(len(faces), np.cos(np.radians(SMOOTH_CREASE_DEG)))
    return _make_mesh(places, corners.reshape(-1, 3), face_colors, crease_cosines, paint, either_winding=True)


def _make_mesh(
    vertices: FloatArray,
    faces: IntArray,
    colors: FloatArray,
    crease_cosines: FloatArray,
    paint: Paint | None = None,
    either_winding: bool = False,
) -> Mesh:
    vertices = _normalise_bounding_box(vertices, faces)
    visible = np.linalg.norm(_face_area_vectors(vertices, faces), axis=-1) > MIN_FACE_AREA
    if not visible.any():
        raise ValueError(f"none of its {len(faces)} faces has an area: give triangles with corners in three places")
    faces, colors, crease_cosines = faces[visible], colors[visible], crease_cosines[visible]
    vertices, faces = _drop_unused_vertices(vertices, faces)
    normals = corner_normals(vertices, faces, crease_cosines, either_winding)
    return Mesh(
        vertices=np.ascontiguousarray(_normalise_bounding_box(vertices, faces), dtype=np.float32),
        faces=np.ascontiguousarray(faces, dtype=np.int32),
        corner_normals=np.ascontiguousarray(normals, dtype=np.float32),
        face_colors=np.ascontiguousarray(colors, dtype=np.float32),
        paint=None if paint is None else paint.of_faces(visible),
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


def corner_normals(
    vertices: FloatArray, faces: IntArray, crease_cosines: FloatArray, either_winding: bool = False
) -> FloatArray:
    """Unit shading normals [F, 3, 3] of the face corners.

    A corner's normal is the area-weighted mean over the faces around its vertex, of which only those count whose
    plane is within the face's own crease angle (`crease_cosines` [F]): curved surfaces come out smooth, edges sharp.
    With `either_winding`, a face whose plane turned over is within the angle counts turned over.
    """
    area_vectors = _face_area_vectors(vertices, faces)
    units = area_vectors / np.linalg.norm(area_vectors, axis=-1, keepdims=True)

    # corners sorted by their vertex: those of one vertex are neighbours in `corners`
    corners = np.argsort(faces.reshape(-1), kind="stable")
    valence = np.bincount(faces.reshape(-1), minlength=len(vertices))
    first_corner = np.cumsum(valence) - valence
    sums = np.zeros((faces.size, 3))
    block_of_vertex = np.cumsum(valence**2) // PAIRS_AT_ONCE
    for block in np.unique(block_of_vertex):
        start, stop = np.searchsorted(block_of_vertex, (block, block + 1))
        own, other = _pairs_of_corners(corners, valence[start:stop], first_corner[start:stop])
        own_face, other_face = own // 3, other // 3
        cosines = np.einsum("ij,ij->i", units[own_face], units[other_face])
        turned = np.where(either_winding & (cosines < 0), -1.0, 1.0)
        # the small slack keeps a face's agreement with itself from being lost to rounding
        agree = cosines * turned >= crease_cosines[own_face] - 1e-9
        own, added = own[agree], area_vectors[other_face[agree]] * turned[agree, None]
        for axis in range(3):
            sums[:, axis] += np.bincount(own, weights=added[:, axis], minlength=faces.size)
    return (sums / np.linalg.norm(sums, axis=-1, keepdims=True)).reshape(*faces.shape, 3)


def _pairs_of_corners(corners: IntArray, valence: IntArray, first_corner: IntArray) -> tuple[IntArray, IntArray]:
    """Every ordered pair of corners that meet at one of the vertices, whose corners start at `first_corner` [v]."""
    pairs_per_corner = np.repeat(valence, valence)
    own = np.repeat(corners[first_corner[0] : first_corner[-1] + valence[-1]], pairs_per_corner)
    start = np.repeat(np.repeat(first_corner, valence), pairs_per_corner)
    step = np.arange(len(own)) - np.repeat(np.cumsum(pairs_per_corner) - pairs_per_corner, pairs_per_corner)
    return own, corners[start + step]
