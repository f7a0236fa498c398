"""Parametric solids that the object families are put together from: boxes, lathes, tubes, lofts and prisms.

Each function returns a `Part`: vertices, triangles and whether the surface is meant to look smooth. Triangles are
counter-clockwise seen from outside. z is up; a solid of revolution turns about z unless its docstring says otherwise.
Everything is float64; `ssl_equi.scenes.mesh.MeshBuilder` narrows to float32 at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Axis = Literal["x", "y", "z"]

ORIGIN = (0.0, 0.0, 0.0)
# a ring whose points lie this close together is one point (the pole of a sphere, the tip of a cone)
POLE_EXTENT = 1e-9


@dataclass(frozen=True, eq=False)
class Part:
    """A triangulated surface: vertices [V, 3], faces [F, 3] (outward counter-clockwise), smooth or faceted look."""

    vertices: FloatArray
    faces: IntArray
    smooth: bool

    def moved(self, offset: ArrayLike) -> "Part":
        return replace(self, vertices=self.vertices + np.asarray(offset, dtype=np.float64))

    def scaled(self, factors: ArrayLike) -> "Part":
        """Scaled about the origin by one factor or by one per axis (all positive, so that faces keep facing out)."""
        scale = np.asarray(factors, dtype=np.float64)
        if np.any(scale <= 0):
            raise ValueError(f"scale factors {scale} must be positive: a mirrored part would be inside out")
        return replace(self, vertices=self.vertices * scale)

    def rotated(self, axis: Axis, angle_rad: float) -> "Part":
        """Turned counter-clockwise about an axis through the origin, seen from the axis' positive end."""
        return replace(self, vertices=self.vertices @ axis_rotation(axis, angle_rad).T)

    def faceted(self) -> "Part":
        return replace(self, smooth=False)


def axis_rotation(axis: Axis, angle_rad: float) -> FloatArray:
    """Rotation matrix [3, 3] about a coordinate axis."""
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle_rad)
    matrix[first, second], matrix[second, first] = -np.sin(angle_rad), np.sin(angle_rad)
    return matrix


def shifted(point: ArrayLike, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> FloatArray:
    """A point [3] moved along the axes."""
    return np.asarray(point, dtype=np.float64) + np.array([x, y, z])


def circle(sides: int, radius: float = 1.0) -> FloatArray:
    """Regular polygon [sides, 2], counter-clockwise from (radius, 0)."""
    angles = np.arange(sides) * (2 * np.pi / sides)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def in_plane(points: ArrayLike, plane: Literal["xy", "yz", "xz"], height: float = 0.0) -> FloatArray:
    """Points [n, 2] of a coordinate plane as points [n, 3]; the missing coordinate is `height`."""
    flat = np.asarray(points, dtype=np.float64)
    spatial = np.full((len(flat), 3), float(height))
    spatial[:, ["xyz".index(axis) for axis in plane]] = flat
    return spatial


def arc(
    center: Sequence[float], radii: Sequence[float], start_rad: float, end_rad: float, points: int = 12
) -> FloatArray:
    """Points [points, 2] on an ellipse arc; angles are counter-clockwise from the first axis of the plane."""
    angles = np.linspace(start_rad, end_rad, points)
    return np.asarray(center) + np.asarray(radii) * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def box(
    size: Sequence[float],
    center: ArrayLike = ORIGIN,
    top_scale: tuple[float, float] = (1.0, 1.0),
    top_shift: tuple[float, float] = (0.0, 0.0),
) -> Part:
    """Cuboid; its top face can be scaled about its middle and shifted in x and y (a wedge, a tray, a windscreen)."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * np.asarray(size[:2], dtype=np.float64)
    bottom = in_plane(corners, "xy", -size[2] / 2)
    top = in_plane(corners * top_scale + top_shift, "xy", size[2] / 2)
    quads = [(3, 2, 1, 0), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return Part(np.concatenate([bottom, top]), np.array(faces), smooth=False).moved(center)


def loft(rings: ArrayLike, caps: bool = True, loop: bool = False, smooth: bool = True) -> Part:
    """Skin through a sequence of rings [rings, points, 3].

    Each ring is counter-clockwise for an observer towards whom the sequence advances. `caps` closes the two ends with
    triangle fans; `loop` joins the last ring to the first instead. A ring collapsed to one point becomes one vertex.
    """
    rings = np.asarray(rings, dtype=np.float64)
    if rings.ndim != 3 or rings.shape[0] < 2 or rings.shape[1] < 3 or rings.shape[2] != 3:
        raise ValueError(f"rings have shape {rings.shape}: a loft needs [2 or more rings, 3 or more points, 3]")
    count, points = rings.shape[:2]
    ids = np.arange(count * points).reshape(count, points)
    is_pole = np.ptp(rings, axis=1).max(axis=-1) < POLE_EXTENT
    ids[is_pole] = ids[is_pole, :1]
    start = ids if loop else ids[:-1]
    end = np.roll(ids, -1, axis=0) if loop else ids[1:]
    start_next, end_next = np.roll(start, -1, axis=1), np.roll(end, -1, axis=1)
    lower = np.stack([start, start_next, end_next], axis=-1).reshape(-1, 3)
    upper = np.stack([start, end_next, end], axis=-1).reshape(-1, 3)
    vertices, faces = [rings.reshape(-1, 3)], [lower, upper]
    if caps and not loop:
        for ring, flip in ((0, True), (count - 1, False)):
            if is_pole[ring]:
                continue
            middle = np.full(points, count * points + len(vertices) - 1)
            fan = np.stack([ids[ring], np.roll(ids[ring], -1), middle], axis=-1)
            faces.append(fan[:, ::-1] if flip else fan)
            vertices.append(rings[ring].mean(axis=0, keepdims=True))
    triangles = np.concatenate(faces)
    first, second, third = triangles.T
    collapsed = (first == second) | (second == third) | (third == first)
    return Part(np.concatenate(vertices), triangles[~collapsed], smooth)


def lathe(profile: ArrayLike, sides: int = 20, caps: bool = True, smooth: bool = True) -> Part:
    """Surface of revolution about z of a profile [n, 2] of (radius, z).

    The profile runs from bottom to top along the outside (and back down inside, for a vessel). Ends that do not lie
    on the axis are closed with discs unless `caps` is false.
    """
    profile = np.asarray(profile, dtype=np.float64)
    unit = circle(sides)
    return loft([in_plane(radius * unit, "xy", z) for radius, z in profile], caps, smooth=smooth)


def tube(
    path: ArrayLike | Sequence[ArrayLike],
    radii: ArrayLike,
    sides: int = 8,
    caps: bool = True,
    loop: bool = False,
    flattening: tuple[float, float] = (1.0, 1.0),
) -> Part:
    """Tube along a path [n, 3] with one radius or n radii.

    The cross-section is carried along without twist: each ring's first axis is the previous one's, made orthogonal to
    the new direction. `flattening` scales the two axes of the cross-section (first: horizontal at the start).
    """
    points = np.asarray(path, dtype=np.float64)
    point_radii = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(points),))
    if loop:
        tangents = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    else:
        tangents = np.gradient(points, axis=0)
    tangents = tangents / np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.cross(tangents[0], [0.0, 0.0, 1.0])
    if np.linalg.norm(side) < 1e-3:
        side = np.array([1.0, 0.0, 0.0])
    unit = circle(sides)
    rings = []
    for point, tangent, radius in zip(points, tangents, point_radii):
        side = side - tangent * (side @ tangent)
        side = side / np.linalg.norm(side)
        other = np.cross(tangent, side)
        section = unit[:, :1] * side * flattening[0] + unit[:, 1:] * other * flattening[1]
        rings.append(point + radius * section)
    return loft(rings, caps, loop)


def cylinder(
    start: ArrayLike,
    end: ArrayLike,
    radius: float,
    end_radius: float | None = None,
    sides: int = 14,
    caps: bool = True,
) -> Part:
    """Cylinder between two points, or a truncated cone when `end_radius` differs."""
    return tube([start, end], [radius, radius if end_radius is None else end_radius], sides, caps)


def ellipsoid(radii: float | Sequence[float], center: ArrayLike = ORIGIN, sides: int = 16, stacks: int = 10) -> Part:
    """Ellipsoid with the three half-axes `radii` (one number: a sphere); its poles lie on z."""
    polar = np.linspace(0, np.pi, stacks + 1)
    profile = np.stack([np.sin(polar), -np.cos(polar)], axis=-1)
    profile[[0, -1], 0] = 0.0
    return lathe(profile, sides).scaled(radii).moved(center)


def torus(
    major_radius: float,
    minor_radius: float,
    arc_rad: float = 2 * np.pi,
    start_rad: float = 0.0,
    segments: int = 24,
    sides: int = 8,
) -> Part:
    """Ring about z, or the piece of it from `start_rad` over `arc_rad`, closed with discs."""
    whole = arc_rad > 2 * np.pi - 1e-6
    angles = start_rad + np.linspace(0, arc_rad, segments, endpoint=not whole)
    path = in_plane(major_radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1), "xy")
    return tube(path, minor_radius, sides, loop=whole)


def polygon_area(polygon: ArrayLike) -> float:
    """Signed area of a polygon [n, 2] by the shoelace formula; positive when counter-clockwise."""
    x, y = np.asarray(polygon, dtype=np.float64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _crosses_itself(points: FloatArray) -> bool:
    """Whether any two edges of a polygon [n, 2] cross in their interiors."""

    def side(start: FloatArray, end: FloatArray, other: FloatArray) -> FloatArray:
        """[n, n]: on which side of the line of edge i the point j lies."""
        along = (end - start)[:, None]
        towards = other[None] - start[:, None]
        return np.sign(along[..., 0] * towards[..., 1] - along[..., 1] * towards[..., 0])

    start, end = points, np.roll(points, -1, axis=0)
    separated = side(start, end, start) * side(start, end, end) < 0
    return bool(np.any(separated & separated.T))


def ear_clip(polygon: ArrayLike) -> IntArray:
    """Triangles [n - 2, 3] (vertex indices, counter-clockwise) that fill a simple polygon [n, 2], concave or not.

    Ear clipping (Meisters 1975): cut off a convex corner whose triangle holds no other vertex, and repeat. Raises
    ValueError for a polygon that crosses or touches itself.
    """
    points = np.asarray(polygon, dtype=np.float64)
    if _crosses_itself(points):
        raise ValueError(f"polygon of {len(points)} points crosses itself: reorder the points of its outline")
    remaining = list(range(len(points)))
    if polygon_area(points) < 0:
        remaining.reverse()

    def doubled_area(a: int, b: int, c: int) -> float:
        (ax, ay), (bx, by), (cx, cy) = points[a], points[b], points[c]
        return float((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))

    def inside(p: int, a: int, b: int, c: int) -> bool:
        return doubled_area(a, b, p) >= 0 and doubled_area(b, c, p) >= 0 and doubled_area(c, a, p) >= 0

    triangles = []
    while len(remaining) > 3:
        for position, tip in enumerate(remaining):
            before, after = remaining[position - 1], remaining[(position + 1) % len(remaining)]
            ear = (before, tip, after)
            if doubled_area(*ear) <= 1e-12:
                continue
            if any(inside(other, *ear) for other in remaining if other not in ear):
                continue
            triangles.append(ear)
            del remaining[position]
            break
        else:
            raise ValueError(f"polygon of {len(points)} points touches itself or is flat: give it a simple outline")
    return np.array([*triangles, tuple(remaining)])


def prism(
    polygon: ArrayLike, thickness: float, normal: Axis = "z", center: ArrayLike = ORIGIN, smooth: bool = False
) -> Part:
    """Polygon [n, 2] extruded by `thickness` to both sides of its plane.

    The polygon's coordinates are (x, y) for normal z, (x, z) for normal y and (y, z) for normal x.
    """
    outline = np.asarray(polygon, dtype=np.float64)
    if polygon_area(outline) < 0:
        outline = outline[::-1]
    count = len(outline)
    walls = loft([in_plane(outline, "xy", z) for z in (-thickness / 2, thickness / 2)], caps=False)
    lid = ear_clip(outline)
    faces = np.concatenate([walls.faces, lid[:, ::-1], lid + count])
    vertices = walls.vertices
    if normal == "y":
        # (x, z, thickness) is a left-handed frame: swapping two axes turns every face inside out
        vertices, faces = vertices[:, [0, 2, 1]], faces[:, ::-1]
    elif normal == "x":
        vertices = vertices[:, [2, 0, 1]]
    return Part(vertices, faces, smooth).moved(center)
