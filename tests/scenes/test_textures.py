"""Painted meshes: which texel shows where, minification, corner colours, winding, malformed paint."""

import dataclasses

import numpy as np
import pytest
import torch

from ssl_equi.scenes.mesh import MAX_SMOOTH_VALENCE, Mesh, MeshBuilder, Paint, corner_normals, mesh_of_triangles
from ssl_equi.scenes.primitives import box, ellipsoid
from ssl_equi.scenes.render import Renderer, SceneSettings
from ssl_equi.scenes.textures import PackedTextures, mip_levels
from tests.painted import (
    BLUE,
    FOUR_COLORS,
    GREEN,
    GREY,
    RED,
    SQUARE,
    SQUARE_UV,
    TO_CAMERA,
    latent,
    linear_picture,
    painted_square,
    shown_albedo,
)


def plain_paint(count: int) -> Paint:
    return Paint(
        np.ones((count, 3, 3), np.float32), np.zeros((count, 3, 2), np.float32), np.full(count, -1, dtype=np.int32)
    )


def sphere() -> tuple[np.ndarray, np.ndarray]:
    part = ellipsoid((1.0, 0.8, 0.6), sides=24, stacks=16)
    return part.vertices, part.faces


def grey(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    return mesh_of_triangles(vertices, faces, np.full((len(faces), 3), 0.5), plain_paint(len(faces)))


def quarters(albedo: np.ndarray) -> dict[str, np.ndarray]:
    """What the middles of the square's four quarters show."""
    rows, columns = np.nonzero(np.isfinite(albedo[..., 0]))
    middle_y, middle_x = rows.mean(), columns.mean()
    offset = (rows.max() - rows.min()) / 4
    return {
        f"{vertical} {horizontal}": albedo[round(middle_y + up * offset), round(middle_x + right * offset)]
        for vertical, up in (("upper", -1), ("lower", 1))
        for horizontal, right in (("left", -1), ("right", 1))
    }


def test_each_texel_shows_where_it_belongs() -> None:
    texture = np.repeat(np.repeat(FOUR_COLORS, 8, axis=0), 8, axis=1)
    shown = quarters(shown_albedo(painted_square(texture), latent(), resolution=64))
    expected = {"upper left": RED, "upper right": GREEN, "lower left": BLUE, "lower right": GREY}
    for place, color in expected.items():
        assert shown[place] == pytest.approx(color, abs=0.02), place


def test_the_back_of_a_square_shows_its_texture_mirrored() -> None:
    texture = np.repeat(np.repeat(FOUR_COLORS, 8, axis=0), 8, axis=1)
    mesh = painted_square(texture)
    mirrored = dataclasses.replace(mesh, vertices=mesh.vertices * np.float32([-1, 1, 1]))
    shown = quarters(shown_albedo(mirrored, latent(), resolution=64))
    expected = {"upper left": GREEN, "upper right": RED, "lower left": GREY, "lower right": BLUE}
    for place, color in expected.items():
        assert shown[place] == pytest.approx(color, abs=0.02), place


def test_textures_repeat_beyond_their_edges() -> None:
    texture = np.repeat(np.repeat(FOUR_COLORS, 8, axis=0), 8, axis=1)
    once = shown_albedo(painted_square(texture), latent(), resolution=64)
    shifted = shown_albedo(painted_square(texture, uv=SQUARE_UV + np.array([3, -2])), latent(), resolution=64)
    np.testing.assert_allclose(shifted, once, atol=0.01)


def test_a_texture_is_straight_in_perspective() -> None:
    # leaning back by 60 degrees, the square's middle line (u of its texture) is where the scene's camera sees it
    texture = np.zeros((2, 64, 3), dtype=np.float32)
    texture[:, 32:] = 0.6
    mesh = painted_square(texture)
    rotation = (TO_CAMERA[0], 1.0, 0.0)
    albedo = shown_albedo(mesh, latent(rotation), resolution=96, supersampling=1)[..., 0]
    row = 47
    columns = np.flatnonzero(np.isfinite(albedo[row]))
    change = columns[np.flatnonzero(np.diff(albedo[row, columns] > 0.3))[0]]
    # the middle line goes through the origin, which is in the middle of the picture
    assert abs(change + 0.5 - 47.5) <= 1
    assert abs((columns[0] + columns[-1]) / 2 - 47.5) > 1.5, "its outline is not symmetric about the middle"


def bilinear(image: np.ndarray, u: float, v: float) -> np.ndarray:
    """Colour at (u, v) of a repeating image [H, W, 3], from texel centres, one by one."""
    height, width, _ = image.shape
    x, y = u * width - 0.5, (1 - v) * height - 0.5
    color = np.zeros(3)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            color += weight * image[row % height, column % width]
    return color


def test_samples_are_bilinear_within_a_level_and_linear_between_two() -> None:
    generator = np.random.default_rng(0)
    images = [generator.random(shape).astype(np.float32) for shape in ((8, 4, 3), (5, 7, 3), (1, 1, 3))]
    textures = PackedTextures(images, torch.device("cpu"))
    levels = [[level.permute(1, 2, 0).numpy() for level in mip_levels(torch.from_numpy(image))] for image in images]
    texture = generator.integers(3, size=60)
    u, v = generator.uniform(-2, 3, size=(2, 60))
    texels = 4.0 ** generator.uniform(-1, 4, size=60)
    inputs = [torch.tensor(values, dtype=torch.float32) for values in (u, v, texels)]
    found = textures.sample(torch.from_numpy(texture), *inputs).numpy()
    for sample in range(60):
        pyramid = levels[texture[sample]]
        depth = min(max(np.log(texels[sample]) / np.log(4), 0), 3)
        finer = int(depth)
        low, high = (
            bilinear(pyramid[min(level, len(pyramid) - 1)], u[sample], v[sample]) for level in (finer, finer + 1)
        )
        expected = low + (high - low) * (depth - finer)
        np.testing.assert_allclose(found[:, sample], expected, atol=2e-4)


def test_mip_levels_halve_and_keep_the_mean() -> None:
    image = torch.rand(16, 8, 3, generator=torch.Generator().manual_seed(0))
    levels = mip_levels(image)
    assert [tuple(level.shape[1:]) for level in levels] == [(16, 8), (8, 4), (4, 2), (2, 1), (1, 1)]
    for level in levels:
        torch.testing.assert_close(level.mean((1, 2)), image.mean((0, 1)))
    assert [tuple(level.shape[1:]) for level in mip_levels(torch.rand(5, 3, 3))] == [(5, 3), (2, 1), (1, 1)]


def test_a_fine_pattern_becomes_its_mean_and_not_noise() -> None:
    # chequers of one texel, some 20 of them under each sample
    chequers = (np.indices((512, 512)).sum(axis=0) % 2).astype(np.float32)
    mesh = painted_square(np.repeat(chequers[..., None], 3, axis=2))
    albedo = shown_albedo(mesh, latent(), resolution=48, supersampling=1)
    inside = albedo[np.isfinite(albedo)]
    assert inside.mean() == pytest.approx(0.5, abs=0.02)
    assert inside.std() < 0.03


def test_corner_colours_are_interpolated_in_linear_light() -> None:
    corners = np.array([RED, BLUE, BLUE, RED])
    albedo = shown_albedo(painted_square(corner_colors=corners), latent(), resolution=64)
    row = albedo[32]
    columns = np.flatnonzero(np.isfinite(row[:, 0]))[1:-1]
    share = (columns - columns[0] + 1) / (columns[-1] - columns[0] + 2)
    expected = np.outer(1 - share, RED) + np.outer(share, BLUE)
    np.testing.assert_allclose(row[columns], expected, atol=0.03)


def test_face_corner_and_texture_colours_multiply() -> None:
    texture = np.full((4, 4, 3), 0.5, dtype=np.float32)
    mesh = painted_square(texture, corner_colors=np.full((4, 3), 0.8))
    mesh = dataclasses.replace(mesh, face_colors=np.full((2, 3), 0.9, dtype=np.float32))
    albedo = shown_albedo(mesh, latent(), resolution=32)
    assert albedo[16, 16] == pytest.approx([0.36] * 3, abs=0.01)


def test_white_paint_changes_no_byte() -> None:
    builder = MeshBuilder()
    builder.add(box((1, 2, 3)), RED)
    plain = builder.build()
    painted = dataclasses.replace(plain, paint=plain_paint(len(plain.faces)))
    latents = latent((0.3, 0.4, 0.5)).repeat(3, 1)
    by_itself = Renderer([plain]).render(torch.tensor([0, 0, 0]), latents)
    assert torch.equal(Renderer([painted]).render(torch.tensor([0, 0, 0]), latents), by_itself)
    among_painted = Renderer([painted_square(FOUR_COLORS), plain]).render(torch.tensor([1, 1, 1]), latents)
    assert torch.equal(among_painted, by_itself)


def test_each_mesh_has_its_own_textures() -> None:
    colors = [np.full((2 + index, 3, 3), value, np.float32) for index, value in enumerate((0.2, 0.4, 0.6))]
    meshes = [painted_square(color) for color in colors]
    together = Renderer(meshes).render(torch.tensor([0, 1, 2]), latent().repeat(3, 1))
    for index, mesh in enumerate(meshes):
        assert torch.equal(together[index], Renderer([mesh]).render(torch.tensor([0]), latent())[0])


@pytest.mark.cuda
def test_cuda_paints_the_same_pictures() -> None:
    texture = np.random.default_rng(0).random((64, 32, 3)).astype(np.float32)
    meshes = [painted_square(texture), painted_square(corner_colors=FOUR_COLORS.reshape(4, 3)), grey(*sphere())]
    latents = latent((0.1, 0.5, 0.3)).repeat(3, 1)
    pictures = [
        Renderer(meshes, device=device).render(torch.arange(3), latents).cpu().int() for device in ("cpu", "cuda")
    ]
    # another order of rounding may hand a sample on an edge to the neighbouring face
    assert (pictures[0] - pictures[1]).abs().float().mean() < 0.05


@pytest.mark.parametrize("turned_over", ["all", "some"])
def test_winding_changes_nothing(turned_over: str) -> None:
    vertices, faces = sphere()
    chosen = np.random.default_rng(0).random(len(faces)) < (1.1 if turned_over == "all" else 0.5)
    other = np.where(chosen[:, None], faces[:, ::-1], faces)
    lit = torch.tensor([[0.5, 0.2, 0.9, 0.2, 0.4, 1.0, 0.6]], dtype=torch.float64)
    right = linear_picture(grey(vertices, faces), lit)
    np.testing.assert_allclose(linear_picture(grey(vertices, other), lit), right, atol=0.012)
    assert right.std() > 0.02


def test_vertices_at_one_place_are_shaded_as_one() -> None:
    vertices, faces = sphere()
    apart = grey(vertices[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3))
    assert len(apart.vertices) == len(grey(vertices, faces).vertices)
    radial = apart.vertices[apart.faces] / np.square([1.0, 0.8, 0.6])
    radial /= np.linalg.norm(radial, axis=-1, keepdims=True)
    assert (apart.corner_normals * radial).sum(-1).min() > 0.97


def test_millimetres_and_metres_give_one_picture() -> None:
    vertices, faces = sphere()
    pictures = [linear_picture(grey(vertices * scale + scale, faces), latent()) for scale in (0.001, 1.0, 1000.0)]
    for picture in pictures[1:]:
        np.testing.assert_allclose(picture, pictures[0], atol=0.012)


def test_a_vertex_of_very_many_faces_is_shaded_face_by_face() -> None:
    count = 3 * MAX_SMOOTH_VALENCE
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    rim = np.stack([np.cos(angles), np.sin(angles), np.full(count, -0.2)], axis=1)
    faces = np.array([[0, 1 + index, 1 + (index + 1) % count] for index in range(count)])
    mesh = grey(np.concatenate([[[0, 0, 0]], rim]), faces)
    assert len(mesh.faces) == count
    across = np.cross(*(mesh.vertices[mesh.faces[:, corner]] - mesh.vertices[mesh.faces[:, 0]] for corner in (1, 2)))
    np.testing.assert_allclose(
        mesh.corner_normals[:, 0], across / np.linalg.norm(across, axis=1, keepdims=True), atol=1e-2
    )


def test_normals_worked_out_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = sphere()
    cosines = np.full(len(faces), 0.6)
    at_once = corner_normals(vertices, faces, cosines)
    monkeypatch.setattr("ssl_equi.scenes.mesh.PAIRS_AT_ONCE", 50)
    assert np.array_equal(corner_normals(vertices, faces, cosines), at_once)


def test_faces_without_area_are_left_out_with_their_paint() -> None:
    vertices = np.concatenate([SQUARE, [[5.0, 5.0, 5.0]]])
    faces = np.array([[0, 1, 1], [0, 1, 2], [3, 3, 3], [0, 2, 3]])
    paint = Paint(
        np.arange(36, dtype=np.float32).reshape(4, 3, 3) / 36,
        np.arange(24, dtype=np.float32).reshape(4, 3, 2),
        np.array([-1, 0, -1, 1], dtype=np.int32),
        (FOUR_COLORS, FOUR_COLORS),
    )
    mesh = mesh_of_triangles(vertices, faces, np.eye(4, 3), paint)
    assert len(mesh.faces) == 2 and len(mesh.vertices) == 4
    assert mesh.paint.face_textures.tolist() == [0, 1]
    assert np.array_equal(mesh.paint.corner_uv, paint.corner_uv[[1, 3]])
    assert np.array_equal(mesh.face_colors, np.eye(4, 3)[[1, 3]])


def test_a_mesh_of_no_area_is_refused() -> None:
    with pytest.raises(ValueError, match="none of its 1 faces has an area"):
        grey(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], dtype=float), np.array([[0, 1, 2]]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corner_uv": np.zeros((1, 3, 2), np.float32)}, r"2 faces and a paint of shapes"),
        ({"face_textures": np.array([0, 1], dtype=np.int32)}, "textures 0 to 1: it has only 0 to 0"),
        ({"face_textures": np.array([-2, 0], dtype=np.int32)}, "textures -2 to 0"),
    ],
)
def test_malformed_paint_is_refused(changed: dict[str, np.ndarray], message: str) -> None:
    mesh = painted_square(FOUR_COLORS)
    with pytest.raises(ValueError, match=message):
        Renderer(
            [dataclasses.replace(mesh, paint=dataclasses.replace(mesh.paint, **changed))], SceneSettings(resolution=8)
        )
