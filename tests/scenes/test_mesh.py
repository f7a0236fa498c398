"""The mesh builder: normalisation, smooth and sharp shading normals, colours, malformed input."""

import numpy as np
import pytest

from ssl_equi.scenes.mesh import MeshBuilder, Palette, corner_normals, draw_palette
from ssl_equi.scenes.primitives import Part, box, cylinder, ellipsoid

RED, GREY = (0.8, 0.1, 0.1), (0.5, 0.5, 0.5)


def mesh_of(*parts: Part):
    builder = MeshBuilder()
    for part in parts:
        builder.add(part, RED)
    return builder.build()


def face_normals(mesh):
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def test_bounding_box_is_centred_with_diagonal_one():
    mesh = mesh_of(box((1, 2, 3), (10, 20, 30)), ellipsoid(0.5, (11, 20, 30)))
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    assert (low + high) / 2 == pytest.approx([0, 0, 0], abs=1e-6)
    assert np.linalg.norm(high - low) == pytest.approx(1, abs=1e-6)


def test_arrays_have_the_documented_types_and_shapes():
    mesh = mesh_of(box((1, 2, 3)))
    assert mesh.vertices.dtype == mesh.corner_normals.dtype == mesh.face_colors.dtype == np.float32
    assert mesh.faces.dtype == np.int32
    assert mesh.vertices.shape == (8, 3)
    assert mesh.faces.shape == mesh.face_colors.shape == (12, 3)
    assert mesh.corner_normals.shape == (12, 3, 3)


def test_box_is_shaded_flat():
    mesh = mesh_of(box((1, 2, 3)))
    expected = np.repeat(face_normals(mesh)[:, None], 3, axis=1)
    assert mesh.corner_normals == pytest.approx(expected, abs=1e-6)


def test_sphere_is_shaded_smooth():
    mesh = mesh_of(ellipsoid(1.0, sides=32, stacks=24))
    radial = mesh.vertices[mesh.faces]
    radial = radial / np.linalg.norm(radial, axis=-1, keepdims=True)
    assert (mesh.corner_normals * radial).sum(axis=-1).min() > 0.995


def test_faceted_sphere_is_shaded_flat():
    mesh = mesh_of(ellipsoid(1.0).faceted())
    agreement = (mesh.corner_normals * face_normals(mesh)[:, None]).sum(axis=-1)
    assert agreement.min() > 0.999


def test_cylinder_has_a_smooth_side_and_a_sharp_rim():
    mesh = mesh_of(cylinder((0, 0, 0), (0, 0, 1), 0.5, sides=24))
    is_cap = np.abs(face_normals(mesh)[:, 2]) > 0.99
    assert np.abs(mesh.corner_normals[is_cap, :, 2]) == pytest.approx(1, abs=1e-5)
    side_normals = mesh.corner_normals[~is_cap]
    assert side_normals[..., 2] == pytest.approx(0, abs=1e-5)
    outwards = mesh.vertices[mesh.faces[~is_cap]] * (1, 1, 0)
    outwards = outwards / np.linalg.norm(outwards, axis=-1, keepdims=True)
    assert (side_normals * outwards).sum(axis=-1).min() > 0.99, "up to the weights of the two triangles of a quad"


def test_corner_normals_average_by_area_within_the_crease_angle():
    # two faces share the edge 0-1; the second is twice as large and bent by 45 degrees
    bend = np.sqrt(0.5)
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 2 * bend, 2 * bend]])
    faces = np.array([[1, 0, 2], [0, 1, 3]])
    flat, bent = np.array([0, 0, 1.0]), np.array([0, -bend, bend])
    sharp = corner_normals(vertices, faces, np.full(2, np.cos(np.radians(30))))
    assert sharp[0] == pytest.approx(np.tile(flat, (3, 1)))
    assert sharp[1] == pytest.approx(np.tile(bent, (3, 1)))
    smooth = corner_normals(vertices, faces, np.full(2, np.cos(np.radians(60))))
    mixed = flat * 0.5 + bent * 1.0
    assert smooth[0, 0] == pytest.approx(mixed / np.linalg.norm(mixed))
    assert smooth[0, 2] == pytest.approx(flat), "the corner away from the shared edge"


def test_colours_stay_with_their_parts():
    builder = MeshBuilder()
    builder.add(box((1, 1, 1)), RED)
    builder.add(ellipsoid(1.0), GREY)
    colors = builder.build().face_colors
    assert colors[:12] == pytest.approx(np.tile(RED, (12, 1)))
    assert colors[12:] == pytest.approx(np.tile(GREY, (len(colors) - 12, 1)))


def test_degenerate_faces_and_unused_vertices_are_left_out():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0], [9, 9, 9]], dtype=float)
    mesh = mesh_of(Part(vertices, np.array([[0, 1, 2], [0, 1, 3]]), smooth=True))
    assert len(mesh.faces) == 1
    assert len(mesh.vertices) == 3
    assert np.linalg.norm(np.ptp(mesh.vertices, axis=0)) == pytest.approx(1)


def test_shading_does_not_leak_between_parts_that_touch():
    # two coinciding spheres: each one's normals are those of a single sphere
    alone = mesh_of(ellipsoid(1.0))
    together = mesh_of(ellipsoid(1.0), box((1, 1, 1)))
    assert together.corner_normals[: len(alone.faces)] == pytest.approx(alone.corner_normals, abs=1e-6)


@pytest.mark.parametrize("color", [(0.5, 0.5), (0.5, 0.5, 1.2), (-0.1, 0, 0), (np.nan, 0, 0)])
def test_what_is_not_an_albedo_is_refused(color):
    with pytest.raises(ValueError, match="not a linear albedo"):
        MeshBuilder().add(box((1, 1, 1)), color)


def test_parts_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        MeshBuilder().add(box((1, 1, np.inf)), RED)


def test_a_mesh_without_parts_is_refused():
    with pytest.raises(ValueError, match="no parts"):
        MeshBuilder().build()


def test_palettes_are_albedos_with_a_dark_and_a_light_end():
    for seed in range(50):
        palette = draw_palette(np.random.default_rng(seed))
        assert isinstance(palette, Palette)
        colors = np.stack(palette)
        assert colors.shape == (7, 3)
        assert colors.min() >= 0
        assert colors.max() <= 1
        assert palette.dark.max() < 0.1
        assert palette.light.min() > 0.5
