"""Solids against the formulas of solid geometry: volumes, areas, closed surfaces, faces that look outwards."""

from collections import Counter

import numpy as np
import pytest

from ssl_equi.scenes.primitives import (
    Part,
    arc,
    axis_rotation,
    box,
    circle,
    cylinder,
    ear_clip,
    ellipsoid,
    in_plane,
    lathe,
    loft,
    polygon_area,
    prism,
    shifted,
    torus,
    tube,
)

ARROW = [(0, 0), (2, 0), (2, 2), (1, 0.5), (0, 2)]  # concave
LETTER_U = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]  # concave twice, area 7
STAR = [(np.cos(k * np.pi / 5) * r, np.sin(k * np.pi / 5) * r) for k, r in enumerate([1, 0.4] * 5)]
POLYGONS = {"arrow": ARROW, "letter_u": LETTER_U, "star": STAR, "hexagon": circle(6), "triangle": circle(3)}


def signed_volume(part: Part) -> float:
    """Sum of the tetrahedra between the origin and each face: positive when faces look outwards."""
    a, b, c = (part.vertices[part.faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def is_watertight(part: Part) -> bool:
    """Each edge belongs to two faces, which run along it in opposite directions."""
    directed = Counter()
    for face in part.faces:
        for first, second in zip(face, np.roll(face, -1)):
            directed[int(first), int(second)] += 1
    return all(count == 1 and directed[second, first] == 1 for (first, second), count in directed.items())


CLOSED_PARTS = {
    "box": box((1, 2, 3)),
    "wedge": box((1, 2, 3), top_scale=(0.5, 0.2), top_shift=(0.1, 0.3)),
    "cylinder": cylinder((0, 0, 0), (1, 2, 3), 0.5),
    "truncated cone": cylinder((0, 0, 0), (0, 0, 1), 0.5, 0.2),
    "pointed cone": cylinder((0, 0, 0), (0, 0, 1), 0.5, 0.0),
    "sphere": ellipsoid(1.0),
    "ellipsoid": ellipsoid((1, 2, 3), (4, 5, 6)),
    "torus": torus(1.0, 0.3),
    "torus arc": torus(1.0, 0.3, arc_rad=2.0),
    "bent tube": tube([(0, 0, 0), (1, 0, 0), (1, 1, 1), (1, 1, 2)], [0.1, 0.2, 0.2, 0.1]),
    "vessel": lathe([(0, 0), (1, 0), (1, 1), (0.9, 1), (0.9, 0.1), (0, 0.1)]),
    "prism": prism(LETTER_U, 0.5),
}


@pytest.mark.parametrize("name", CLOSED_PARTS)
def test_closed_solids_are_watertight_and_face_outwards(name):
    part = CLOSED_PARTS[name]
    assert is_watertight(part)
    assert signed_volume(part) > 0


def test_open_ends_are_left_open():
    assert not is_watertight(cylinder((0, 0, 0), (0, 0, 1), 0.5, caps=False))
    assert not is_watertight(lathe([(1, 0), (1, 1)], caps=False))


def test_box_volume_is_exact_and_the_centre_is_where_it_should_be():
    part = box((1.5, 2.0, 0.5), center=(7, 8, 9))
    assert signed_volume(part) == pytest.approx(1.5, rel=1e-12)
    assert part.vertices.mean(axis=0) == pytest.approx([7, 8, 9])
    assert np.ptp(part.vertices, axis=0) == pytest.approx([1.5, 2.0, 0.5])


def test_tapered_box_volume_is_that_of_a_frustum():
    # Heron: h / 3 (A + B + sqrt(A B)), for a top that shrinks alike in both directions; a shift changes nothing
    bottom, top, height = 6.0, 6.0 * 0.25, 1.5
    part = box((2, 3, height), top_scale=(0.5, 0.5), top_shift=(0.4, -0.2))
    assert signed_volume(part) == pytest.approx(height / 3 * (bottom + top + np.sqrt(bottom * top)), rel=1e-12)


@pytest.mark.parametrize("sides", [3, 6, 14, 40])
def test_cylinder_volume_is_that_of_the_regular_prism(sides):
    radius = 0.7
    start, end = np.array([1.0, 2, 3]), np.array([2.0, 0, 4])
    base_area = sides / 2 * radius**2 * np.sin(2 * np.pi / sides)
    part = cylinder(start, end, radius, sides=sides)
    assert signed_volume(part) == pytest.approx(base_area * np.linalg.norm(end - start), rel=1e-9)


def test_truncated_cone_volume():
    sides, low, high, height = 12, 0.8, 0.3, 2.0
    unit_area = sides / 2 * np.sin(2 * np.pi / sides)
    expected = unit_area * height / 3 * (low**2 + low * high + high**2)
    assert signed_volume(cylinder((0, 0, 0), (0, 0, height), low, high, sides=sides)) == pytest.approx(expected)


def test_ellipsoid_volume_approaches_the_formula_from_below():
    expected = 4 / 3 * np.pi * 1 * 2 * 3
    coarse, fine = (signed_volume(ellipsoid((1, 2, 3), sides=n, stacks=n)) for n in (16, 64))
    assert coarse < fine < expected
    assert fine == pytest.approx(expected, rel=0.01)


def test_ellipsoid_poles_are_single_vertices():
    part = ellipsoid(1.0, sides=16, stacks=10)
    assert len(np.unique(part.faces)) == 9 * 16 + 2
    assert len(part.faces) == 2 * 16 * 9


def test_torus_volume_follows_pappus():
    part = torus(2.0, 0.5, segments=96, sides=48)
    assert signed_volume(part) == pytest.approx(2 * np.pi * 2.0 * np.pi * 0.5**2, rel=0.01)
    half = torus(2.0, 0.5, arc_rad=np.pi, segments=96, sides=48)
    assert signed_volume(half) == pytest.approx(np.pi * 2.0 * np.pi * 0.5**2, rel=0.01)


def test_tube_keeps_its_radius_around_a_bend():
    path = in_plane(arc((0, 0), (1, 1), 0, np.pi, 20), "yz")
    rings = tube(path, 0.2, sides=8, caps=False).vertices.reshape(20, 8, 3)
    assert np.linalg.norm(rings - path[:, None], axis=-1) == pytest.approx(0.2)


def test_tube_flattening_scales_one_axis_of_the_section():
    part = tube([(0, 0, 0), (0, 1, 0)], 1.0, sides=8, flattening=(2.0, 0.5))
    assert np.ptp(part.vertices, axis=0) == pytest.approx([4.0, 1.0, 1.0])


@pytest.mark.parametrize("name", POLYGONS)
@pytest.mark.parametrize("reverse", [False, True])
def test_ear_clipping_covers_the_polygon_once(name, reverse):
    polygon = np.array(POLYGONS[name])[::-1] if reverse else np.array(POLYGONS[name])
    triangles = ear_clip(polygon)
    assert triangles.shape == (len(polygon) - 2, 3)
    areas = [polygon_area(polygon[triangle]) for triangle in triangles]
    assert min(areas) > 0, "triangles are counter-clockwise, whichever way the polygon runs"
    assert sum(areas) == pytest.approx(abs(polygon_area(polygon)))


def test_shoelace_area():
    assert polygon_area(LETTER_U) == pytest.approx(7)
    assert polygon_area(LETTER_U[::-1]) == pytest.approx(-7)


def test_ear_clipping_refuses_a_polygon_that_crosses_itself():
    bow_tie = [(0, 0), (2, 2), (2, 0), (0, 1)]
    pentagram = circle(5)[[0, 2, 4, 1, 3]]
    for outline in (bow_tie, pentagram):
        with pytest.raises(ValueError, match="crosses itself"):
            ear_clip(outline)


def test_ear_clipping_refuses_a_flat_polygon():
    with pytest.raises(ValueError, match="flat"):
        ear_clip([(0, 0), (1, 0), (2, 0), (3, 0)])


@pytest.mark.parametrize("normal", ["x", "y", "z"])
@pytest.mark.parametrize("name", POLYGONS)
def test_prism_volume_is_area_times_thickness_in_each_plane(name, normal):
    polygon = np.array(POLYGONS[name])
    for outline in (polygon, polygon[::-1]):
        part = prism(outline, 0.3, normal)
        assert is_watertight(part)
        assert signed_volume(part) == pytest.approx(0.3 * abs(polygon_area(polygon)))


def test_prism_lies_in_the_plane_that_its_docstring_names():
    outline = [(0, 0), (2, 0), (2, 5), (0, 5)]
    assert np.ptp(prism(outline, 1, "z").vertices, axis=0) == pytest.approx([2, 5, 1])
    assert np.ptp(prism(outline, 1, "y").vertices, axis=0) == pytest.approx([2, 1, 5])
    assert np.ptp(prism(outline, 1, "x").vertices, axis=0) == pytest.approx([1, 2, 5])


@pytest.mark.parametrize(("axis", "before", "after"), [("x", 1, 2), ("y", 2, 0), ("z", 0, 1)])
def test_quarter_turns_take_axis_to_axis(axis, before, after):
    quarter = axis_rotation(axis, np.pi / 2)
    assert quarter @ np.eye(3)[before] == pytest.approx(np.eye(3)[after])
    assert quarter @ quarter.T == pytest.approx(np.eye(3))
    assert np.linalg.det(quarter) == pytest.approx(1)


def test_transforms_of_a_part():
    part = box((1, 1, 1))
    assert signed_volume(part.scaled((1, 2, 3))) == pytest.approx(6)
    assert signed_volume(part.rotated("x", 0.7).moved((1, 2, 3))) == pytest.approx(1)
    assert part.moved((1, 2, 3)).vertices.mean(axis=0) == pytest.approx([1, 2, 3])
    assert not ellipsoid(1.0).faceted().smooth
    with pytest.raises(ValueError, match="inside out"):
        part.scaled((1, -1, 1))


def test_planes_and_points():
    assert in_plane([(1, 2)], "yz", height=3) == pytest.approx(np.array([[3, 1, 2]]))
    assert in_plane([(1, 2)], "xz") == pytest.approx(np.array([[1, 0, 2]]))
    assert shifted((1, 2, 3), y=0.5) == pytest.approx([1, 2.5, 3])
    quarter = arc((1, 1), (2, 3), 0, np.pi / 2, 3)
    assert quarter[0] == pytest.approx([3, 1])
    assert quarter[-1] == pytest.approx([1, 4])


def test_loft_refuses_what_is_not_a_stack_of_rings():
    with pytest.raises(ValueError, match=r"\(1, 4, 3\)"):
        loft(np.zeros((1, 4, 3)))
    with pytest.raises(ValueError, match="3 or more points"):
        loft(np.zeros((3, 2, 3)))
