"""Every object family makes valid, reproducible and varied meshes."""

import inspect
import zlib

import numpy as np
import pytest

from ssl_equi.scenes import families
from ssl_equi.scenes.families import DEFAULT_FAMILIES, FAMILIES, HELD_OUT_FAMILIES, build_object
from ssl_equi.scenes.mesh import MeshBuilder, draw_palette

SEEDS = range(6)

# name -> (vertices, faces, CRC-32 of the faces, surface area, sum of the vertices weighted 1, 2, 3 on x, y, z)
GOLDEN = {
    "chair": (160, 260, 2221191754, 0.9624837, -28.43570),
    "snail": (690, 1356, 3063449490, 1.0147355, 39.26290),
}


def surface_area(mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum() / 2)


def test_the_sets_of_families():
    assert len(FAMILIES) >= 42
    assert len(DEFAULT_FAMILIES) == len(set(DEFAULT_FAMILIES)) == 24
    assert len(HELD_OUT_FAMILIES) == len(set(HELD_OUT_FAMILIES)) == 8
    assert set(DEFAULT_FAMILIES) | set(HELD_OUT_FAMILIES) <= set(FAMILIES)
    assert not set(DEFAULT_FAMILIES) & set(HELD_OUT_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_function_describes_its_object(family):
    assert inspect.getdoc(FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_meshes_are_valid(family):
    for seed in SEEDS:
        mesh = build_object(family, seed)
        arrays = (mesh.vertices, mesh.corner_normals, mesh.face_colors)
        assert all(np.isfinite(array).all() for array in arrays)
        assert 30 <= len(mesh.faces) <= 1500
        assert mesh.corner_normals.shape == (len(mesh.faces), 3, 3)
        assert mesh.face_colors.shape == (len(mesh.faces), 3)
        assert np.array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        assert (low + high) / 2 == pytest.approx([0, 0, 0], abs=1e-5)
        assert np.linalg.norm(high - low) == pytest.approx(1, abs=1e-5)
        assert np.linalg.norm(mesh.corner_normals, axis=-1) == pytest.approx(1, abs=1e-5)
        assert mesh.face_colors.min() >= 0
        assert mesh.face_colors.max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_face_is_degenerate_and_shading_normals_are_on_the_outer_side(family):
    mesh = build_object(family, 0)
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    doubled_areas = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
    assert doubled_areas.min() > 1e-8
    face_normals = np.cross(b - a, c - a) / doubled_areas[:, None]
    assert (face_normals[:, None] * mesh.corner_normals).sum(axis=-1).min() > 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_no_part_is_inside_out(family):
    class RecordingBuilder(MeshBuilder):
        def add(self, part, color):
            parts.append(part)
            super().add(part, color)

    parts = []
    rng = np.random.default_rng(0)
    FAMILIES[family](rng, RecordingBuilder(), draw_palette(rng))
    for part in parts:
        a, b, c = (part.vertices[part.faces[:, corner]] for corner in range(3))
        middle = part.vertices[part.faces].mean(axis=(0, 1))
        doubled_area_vectors = np.cross(b - a, c - a)
        assert np.einsum("ij,ij->", a - middle, doubled_area_vectors) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_mesh_and_another_seed_another(family):
    first, again, other = build_object(family, 3), build_object(family, 3), build_object(family, 4)
    for name in ("vertices", "faces", "corner_normals", "face_colors"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    same_shape = first.vertices.shape == other.vertices.shape and np.allclose(first.vertices, other.vertices, atol=1e-3)
    assert not same_shape, "shapes differ, not only colours"
    assert not np.array_equal(first.face_colors[0], other.face_colors[0])


@pytest.mark.parametrize("family", GOLDEN)
def test_golden_meshes(family):
    vertices, faces, crc, area, weighted_sum = GOLDEN[family]
    mesh = build_object(family, 7)
    assert mesh.vertices.shape == (vertices, 3)
    assert mesh.faces.shape == (faces, 3)
    assert zlib.crc32(mesh.faces.tobytes()) == crc
    assert surface_area(mesh) == pytest.approx(area, rel=1e-5)
    assert float((mesh.vertices.astype(np.float64) @ [1, 2, 3]).sum()) == pytest.approx(weighted_sum, abs=1e-3)


def test_an_object_does_not_depend_on_the_other_families(monkeypatch):
    before = build_object("chair", 5)
    reordered = {name: FAMILIES[name] for name in sorted(FAMILIES, reverse=True) if name != "bed"}
    monkeypatch.setattr(families, "FAMILIES", reordered)
    assert np.array_equal(build_object("chair", 5).vertices, before.vertices)


def test_meshes_are_small_on_average():
    triangles = [len(build_object(family, seed).faces) for family in FAMILIES for seed in range(2)]
    assert 300 < np.mean(triangles) < 700


@pytest.mark.parametrize(("wrong", "closest"), [("tea_pot", "teapot"), ("Chair", "chair"), ("", "")])
def test_unknown_family_names_the_closest_one(wrong, closest):
    with pytest.raises(ValueError, match=f"family '{wrong}' does not exist: did you mean '{closest}"):
        build_object(wrong, 0)
