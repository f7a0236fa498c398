"""Pictures: geometry, light, determinism and malformed input."""

import colorsys
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssl_equi.scenes.mesh import Mesh
from ssl_equi.scenes.render import Renderer, SceneSettings
from ssl_equi.scenes.sampling import sample_latents
from ssl_equi.scenes.sheet import contact_sheet

FOCAL = 1 / math.tan(0.691111 / 2)  # in half picture widths
SUNK = [0.0, 0.0, -9.0]  # a translation that hides the object under the floor


def box_mesh(size: tuple[float, float, float], turned: Rotation | None = None) -> Mesh:
    """A box around the origin with a colour for each pair of faces and flat normals."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    faces, normals, colors = [], [], []
    for axis in range(3):
        for sign in (-1, 1):
            corners = np.flatnonzero(signs[:, axis] == sign)
            normal = sign * np.eye(3)[axis]
            first, second, third, fourth = corners
            for triangle in ([first, second, third], [fourth, third, second]):
                a, b, c = signs[triangle]
                faces.append(triangle if np.cross(b - a, c - a) @ normal > 0 else triangle[::-1])
                normals.append([normal] * 3)
                colors.append(np.roll([0.8, 0.3, 0.1], axis) * (0.6 if sign < 0 else 1.0))
    vertices = signs * np.array(size) / 2
    normals = np.array(normals)
    if turned is not None:
        vertices = turned.apply(vertices)
        normals = turned.apply(normals.reshape(-1, 3)).reshape(-1, 3, 3)
    return Mesh(
        vertices=vertices.astype(np.float32),
        faces=np.array(faces, dtype=np.int32),
        corner_normals=normals.astype(np.float32),
        face_colors=np.array(colors, dtype=np.float32),
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures this small are drawn faster by one thread, and much faster on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LONG_BOX = box_mesh((0.8, 0.4, 0.2))
CUBE = box_mesh((0.5, 0.5, 0.5))


def latent(
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0),
    floor_hue: float = 0.2,
    theta: float = 0.0,
    phi: float = 0.0,
    light_hue: float = 0.6,
    translation: list[float] | None = None,
) -> Tensor:
    values = [*rotation, floor_hue, theta, phi, light_hue, *(translation or [])]
    return torch.tensor([values], dtype=torch.float64)


def draw(mesh: Mesh, latents: Tensor, **settings: float) -> np.ndarray:
    """The first picture, as int64 so that differences have a sign."""
    renderer = Renderer([mesh], SceneSettings(**settings))  # type: ignore[arg-type]
    return renderer.render(torch.zeros(len(latents), dtype=torch.int64), latents)[0].numpy().astype(int)


def linear_from_srgb(picture: np.ndarray) -> np.ndarray:
    value = picture / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def pinhole(point: np.ndarray, resolution: int) -> np.ndarray:
    """Picture coordinates (x, y) of a world point for the camera at (0, 1.768, 1.768) that looks at the origin."""
    x, y, z = point
    depth = 2.5 - (y + z) / math.sqrt(2)
    return (np.array([-x, (y - z) / math.sqrt(2)]) * FOCAL / depth + 1) * resolution / 2 - 0.5


def covered_pixels(mesh: Mesh, latents: Tensor, **settings: float) -> np.ndarray:
    """Which pixels [H, W] the mesh covers by half or more: painted black, it takes most of the floor's light away."""
    black = Mesh(mesh.vertices, mesh.faces, mesh.corner_normals, np.zeros_like(mesh.face_colors))
    sunk = torch.cat([latents[:, :7], torch.tensor([SUNK], dtype=torch.float64)], dim=1)
    left = linear_from_srgb(draw(black, latents, **settings)).sum(-1)
    floor = linear_from_srgb(draw(black, sunk, **settings)).sum(-1)
    return left / floor < 0.45


def random_batch(count: int, meshes: int, seed: int = 0, translation: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    indices = torch.from_numpy(generator.integers(meshes, size=count))
    return indices, torch.from_numpy(sample_latents(count, generator, translation=translation))


# --- geometry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [(0.0, 0.0, 0.0), (0.7, -0.4, 1.2)])
@pytest.mark.parametrize("translation", [[0.4, 0.1, -0.2], [-0.3, -0.45, 0.3], [0.1, 0.5, 0.5]])
@pytest.mark.parametrize("object_scale", [0.1, 0.2])
def test_the_object_stands_where_a_pinhole_camera_sees_r_t(
    rotation: tuple[float, float, float], translation: list[float], object_scale: float
) -> None:
    # the translation is in world units: the object's scale must not change it
    latents = latent(rotation, translation=translation)
    covered = covered_pixels(CUBE, latents, resolution=128, object_scale=object_scale)
    rows, columns = np.nonzero(covered)
    found = np.array([columns.mean(), rows.mean()])
    position = Rotation.from_euler("xyz", rotation).apply(translation)
    assert 3 < covered.sum() < 400
    np.testing.assert_allclose(found, pinhole(position, 128), atol=0.5)


def test_a_vertex_falls_on_its_pixel() -> None:
    # a thin spike along x: its tip is the outermost covered pixel
    mesh = box_mesh((1.0, 0.03, 0.03))
    rotation = (0.0, 0.0, 0.6)
    columns = np.flatnonzero(covered_pixels(mesh, latent(rotation), resolution=128).any(axis=0))
    tips = [Rotation.from_euler("xyz", rotation).apply([1.3 * end, 0, 0]) for end in (0.5, -0.5)]
    expected = [pinhole(tip, 128)[0] for tip in tips]
    np.testing.assert_allclose([columns.min(), columns.max()], expected, atol=1.0)


@pytest.mark.parametrize("rotation", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, -1.2, 0.8), (3.0, 0.2, -2.5)])
def test_a_turned_mesh_looks_like_the_mesh_turned_by_the_latent(rotation: tuple[float, float, float]) -> None:
    turned_mesh = box_mesh((0.8, 0.4, 0.2), Rotation.from_euler("xyz", rotation))
    by_latent = draw(LONG_BOX, latent(rotation))
    by_mesh = draw(turned_mesh, latent())
    assert np.abs(by_latent - by_mesh).mean() < 0.05
    assert np.abs(by_latent - draw(LONG_BOX, latent())).mean() > 1


def test_half_a_turn_about_the_vertical_axis_mirrors_nothing_but_the_object() -> None:
    # the box and the light overhead are symmetric under this turn, up to the colours of opposite faces
    first, second = draw(LONG_BOX, latent()), draw(LONG_BOX, latent((0.0, 0.0, math.pi)))
    assert np.abs(first - second)[48:].max() <= 1
    # and the scene is symmetric in x
    np.testing.assert_allclose(first[48:], first[48:, ::-1], atol=1)


def test_object_scale_is_the_diagonals_length() -> None:
    areas = [covered_pixels(CUBE, latent(), resolution=128, object_scale=scale).sum() for scale in (0.5, 1.0)]
    # twice the size, and a little nearer to the camera
    assert 4 < areas[1] / areas[0] < 5


# --- light and floor --------------------------------------------------------------------------------------------


def expected_floor_pixel(pixel: tuple[int, int], floor_hue: float, light_hue: float, light: np.ndarray) -> np.ndarray:
    """Linear colour of the bare floor at (row, column) of a 64-pixel picture."""
    right, up = (pixel[1] - 31.5) / 32 / FOCAL, (31.5 - pixel[0]) / 32 / FOCAL
    camera = 2.5 * np.array([0, math.sqrt(0.5), math.sqrt(0.5)])
    ray = right * np.array([-1, 0, 0]) + math.sqrt(0.5) * (up * np.array([0, -1, 1]) + np.array([0, -1, -1]))
    point = camera - ray * (camera[2] + 1) / ray[2]
    to_light = light - point
    distance = np.linalg.norm(to_light)
    cosine = to_light @ light / (4 * distance)
    edge = np.clip((cosine - math.cos(math.pi / 16)) / ((1 - math.cos(math.pi / 16)) * 0.33), 0, 1)
    spot = 500 / (4 * math.pi * distance**2) * to_light[2] / distance * (3 * edge**2 - 2 * edge**3)
    floor, color = (np.array(colorsys.hsv_to_rgb(*hsv)) for hsv in ((floor_hue, 0.6, 0.6), (light_hue, 1.0, 0.8)))
    return floor / math.pi * (1.5 + 0.05 * math.pi + spot * color)


@pytest.mark.parametrize(
    ("floor_hue", "light_hue", "theta", "phi"),
    [(0.0, 0.3, 0.0, 0.0), (0.35, 0.9, 0.3, 1.0), (0.8, 0.1, 0.7, 3.5), (0.55, 0.55, 0.5, 5.0)],
)
def test_floor_hue_light_hue_and_direction_colour_the_floor_as_predicted(
    floor_hue: float, light_hue: float, theta: float, phi: float
) -> None:
    picture = draw(CUBE, latent((0, 0, 0), floor_hue, theta, phi, light_hue, SUNK))
    light = 4 * np.array([math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)])
    colors = [expected_floor_pixel(pixel, floor_hue, light_hue, light) for pixel in np.ndindex(64, 64)]
    expected = np.array(colors).reshape(64, 64, 3)
    np.testing.assert_allclose(linear_from_srgb(picture), np.clip(expected, 0, 1), atol=0.006)


@pytest.mark.parametrize("phi", [0.0, 1.0, 2.5, 4.0, 5.5])
def test_the_bright_spot_is_where_the_lights_axis_meets_the_floor(phi: float) -> None:
    theta = 0.3
    lit = linear_from_srgb(draw(CUBE, latent(theta=theta, phi=phi, translation=SUNK)))
    from_spot = lit.sum(-1) - lit.sum(-1).min()
    # from the light through the origin to z = -1
    spot = -np.array([math.tan(theta) * math.cos(phi), math.tan(theta) * math.sin(phi), 1.0])
    column, row = np.round(pinhole(spot, 64)).astype(int)
    assert from_spot[row, column] > 0.8 * from_spot.max() > 0.1
    # nothing where the light would be if it turned the other way
    opposite = -5 * spot[:2]
    column, row = np.round(pinhole(np.array([*opposite, -1.0]), 64)).clip(0, 63).astype(int)
    assert from_spot[row, column] < 0.05 * from_spot.max()


def test_the_object_casts_a_shadow_on_the_floor_behind_it() -> None:
    column, row = np.round(pinhole(np.array([0.0, 0.0, -1.0]), 64)).astype(int)
    scene = {"floor_hue": 0.2, "light_hue": 0.2}  # light straight above
    shaded = linear_from_srgb(draw(CUBE, latent(**scene), object_scale=0.8))[row, column]
    lit = linear_from_srgb(draw(CUBE, latent(**scene, translation=SUNK), object_scale=0.8))[row, column]
    floor = np.array(colorsys.hsv_to_rgb(0.2, 0.6, 0.6))
    # no spot light at all, and the sun's soft shadow of an object of size 0.8
    expected = floor / math.pi * (1.5 * (1 - 0.168 * 0.8**2) + 0.05 * math.pi)
    np.testing.assert_allclose(shaded, expected, atol=0.01)
    assert (lit[:2] > 1.3 * shaded[:2]).all()


def test_a_sunk_object_neither_shows_nor_casts_shadows() -> None:
    sunk = draw(CUBE, latent(translation=[0.0, 0.0, -1.5]), object_scale=0.8)
    far_away = draw(CUBE, latent(translation=[0.0, 0.0, 400.0]), object_scale=0.8)
    np.testing.assert_allclose(sunk, far_away, atol=1)


def test_the_floor_hides_the_part_of_an_object_below_it() -> None:
    covered = [
        int(covered_pixels(CUBE, latent(translation=[0.0, 0.0, height])).sum()) for height in (-0.6, -1.0, -1.2, -1.4)
    ]
    assert covered[0] > covered[1] > covered[2] > covered[3] == 0


# --- samples, batches, determinism ------------------------------------------------------------------------------


@pytest.mark.parametrize("supersampling", [2, 3])
def test_supersampled_pixels_are_the_mean_of_their_samples(supersampling: int) -> None:
    scene = latent((0.5, 0.4, 0.3), theta=0.4, phi=2.0)
    fine = linear_from_srgb(draw(LONG_BOX, scene, resolution=20 * supersampling, supersampling=1))
    coarse = linear_from_srgb(draw(LONG_BOX, scene, resolution=20, supersampling=supersampling))
    mean = fine.reshape(20, supersampling, 20, supersampling, 3).mean((1, 3))
    # the floor is shaded at the pixel's centre only, which shows at the spot's edge
    assert np.abs(mean - coarse).mean() < 0.003
    assert np.abs(mean - coarse).max() < 0.08


def test_pixels_on_the_outline_lie_between_floor_and_object() -> None:
    # coverage within [0, 1]: a black object on the floor is never brighter than the floor, nor below black
    black = Mesh(CUBE.vertices, CUBE.faces, CUBE.corner_normals, np.zeros_like(CUBE.face_colors))
    picture = draw(black, latent((0.3, 0.2, 0.1)), supersampling=4)
    floor = draw(black, latent(translation=SUNK), supersampling=4)
    darkness = 1 - linear_from_srgb(picture).sum(-1) / linear_from_srgb(floor).sum(-1)
    assert darkness.min() > -0.03 and darkness.max() <= 1
    assert ((darkness > 0.3) & (darkness < 0.9)).sum() > 10


def test_pictures_differ_and_are_not_constant() -> None:
    renderer = Renderer([LONG_BOX, CUBE], SceneSettings(resolution=32))
    images = renderer.render(*random_batch(12, 2)).numpy().astype(float)
    assert images.std(axis=(1, 2)).min() > 2
    differences = np.abs(images[:, None] - images[None]).mean((2, 3, 4)) + 255 * np.eye(12)
    assert differences.min() > 1


def test_default_objects_fill_a_good_part_of_the_picture() -> None:
    from ssl_equi.scenes.families import DEFAULT_FAMILIES, build_object

    renderer = Renderer([build_object(family, 0) for family in DEFAULT_FAMILIES], SceneSettings(resolution=48))
    count = len(DEFAULT_FAMILIES)
    latents = latent((0.4, 0.3, 0.2), translation=[0.0, 0.0, 0.0]).repeat(count, 1)
    sunk = latents.clone()
    sunk[:, 7:] = torch.tensor(SUNK)
    indices = torch.arange(count)
    difference = renderer.render(indices, latents).int() - renderer.render(indices, sunk).int()
    covered = (difference.abs().sum(-1) > 40).float().mean(dim=(1, 2))
    assert covered.min() > 0.02 and covered.mean() > 0.08


def test_a_picture_does_not_depend_on_its_batch() -> None:
    renderer = Renderer([LONG_BOX, CUBE], SceneSettings(resolution=32))
    indices, latents = random_batch(20, 2)
    together = renderer.render(indices, latents).int()
    alone = torch.cat([renderer.render(indices[i : i + 1], latents[i : i + 1]) for i in range(20)]).int()
    # rounding may move a level here and there
    assert (together - alone).abs().max() <= 1
    assert (together != alone).float().mean() < 1e-3


def test_batches_larger_than_a_pass_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    indices, latents = random_batch(7, 2)
    at_once = Renderer([LONG_BOX, CUBE], SceneSettings(resolution=16)).render(indices, latents).int()
    monkeypatch.setattr("ssl_equi.scenes.render.SAMPLES_PER_PASS_CPU", 3 * 32**2)
    in_passes = Renderer([LONG_BOX, CUBE], SceneSettings(resolution=16)).render(indices, latents).int()
    assert (at_once - in_passes).abs().max() <= 1


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_input_gives_the_same_bytes(threads: int) -> None:
    renderer = Renderer([LONG_BOX, CUBE], SceneSettings(resolution=64))
    indices, latents = random_batch(4, 2)
    torch.set_num_threads(threads)
    first = renderer.render(indices, latents)
    assert all(torch.equal(first, renderer.render(indices, latents)) for _ in range(3))


def test_seven_latents_are_ten_without_translation() -> None:
    short = latent((0.5, 0.2, 0.1), theta=0.3)
    long = torch.cat([short, torch.zeros(1, 3)], dim=1)
    assert np.array_equal(draw(LONG_BOX, short), draw(LONG_BOX, long))


@pytest.mark.cuda
def test_cuda_draws_the_same_pictures() -> None:
    settings = SceneSettings(resolution=64)
    indices, latents = random_batch(64, 2)
    on_cpu = Renderer([LONG_BOX, CUBE], settings).render(indices, latents).int()
    on_cuda = Renderer([LONG_BOX, CUBE], settings, "cuda").render(indices, latents).cpu().int()
    # another order of rounding may hand a sample on an edge to the neighbouring face
    assert (on_cpu - on_cuda).abs().float().mean() < 0.05


# --- unusual and malformed input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "translation",
    [[0.0, 1.77, 1.77], [0.0, 1.4, 1.4], [0.0, 0.0, 4.0], [30.0, 0.0, 0.0], [0.0, 5.0, 5.0], [0.5, 0.5, -0.5]],
)
def test_objects_at_the_camera_at_the_light_and_out_of_the_picture_are_drawn(translation: list[float]) -> None:
    picture = draw(CUBE, latent(translation=translation), object_scale=2.0)
    assert picture.shape == (64, 64, 3) and picture.std() > 1


def test_empty_batch() -> None:
    renderer = Renderer([CUBE], SceneSettings(resolution=16))
    images = renderer.render(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 7))
    assert images.shape == (0, 16, 16, 3) and images.dtype == torch.uint8


def test_malformed_latents_are_refused() -> None:
    renderer = Renderer([CUBE], SceneSettings(resolution=16))
    index = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"latents have shape \(1, 8\): give \[n, 7\]"):
        renderer.render(index, torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"latents have shape \(7,\)"):
        renderer.render(index, torch.zeros(7))
    latents = torch.zeros(3, 7)
    latents[1, 4] = math.nan
    with pytest.raises(ValueError, match=r"latents\[1\] is .*nan.*finite"):
        renderer.render(index.expand(3), latents)


@pytest.mark.parametrize("bad", [-1, 2])
def test_meshes_that_do_not_exist_are_refused(bad: int) -> None:
    renderer = Renderer([CUBE, LONG_BOX], SceneSettings(resolution=16))
    with pytest.raises(ValueError, match=rf"mesh_indices\[1\] is {bad}: the renderer holds meshes 0 to 1"):
        renderer.render(torch.tensor([0, bad]), torch.zeros(2, 7))


@pytest.mark.parametrize("indices", [torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 1)])
def test_mesh_indices_must_be_one_integer_a_latent(indices: Tensor) -> None:
    with pytest.raises(ValueError, match=r"mesh_indices have shape .* one integer for each of the 2 latents"):
        Renderer([CUBE], SceneSettings(resolution=16)).render(indices, torch.zeros(2, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 7}, "resolution is 7: use at least 8"),
        ({"supersampling": 0}, "supersampling is 0"),
        ({"object_scale": 0.0}, "object_scale is 0.0"),
        ({"object_scale": math.nan}, "object_scale is nan"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneSettings(**settings)  # type: ignore[arg-type]


def test_malformed_meshes_are_refused() -> None:
    with pytest.raises(ValueError, match="no meshes"):
        Renderer([])
    short_of_colors = Mesh(CUBE.vertices, CUBE.faces, CUBE.corner_normals, CUBE.face_colors[:5])
    with pytest.raises(ValueError, match=r"mesh 1 has 12 faces.*give \(12, 3, 3\) and \(12, 3\)"):
        Renderer([CUBE, short_of_colors])
    short_of_vertices = Mesh(CUBE.vertices[:6], CUBE.faces, CUBE.corner_normals, CUBE.face_colors)
    with pytest.raises(ValueError, match="mesh 0 has faces that use vertices 0 to 7: it has only 0 to 5"):
        Renderer([short_of_vertices])


# --- contact sheet ----------------------------------------------------------------------------------------------


def test_contact_sheet_places_pictures_row_by_row() -> None:
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), dtype=np.uint8)
    sheet = contact_sheet(images, columns=3)
    assert sheet.shape == (4, 9, 3) and sheet.dtype == np.uint8
    assert sheet[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert np.array_equal(sheet[:2, 3:6], images[1])


def test_contact_sheet_refuses_other_arrays() -> None:
    with pytest.raises(ValueError, match="give \\[n, H, W, 3\\] uint8"):
        contact_sheet(np.zeros((2, 4, 4, 3)), columns=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="columns is 0"):
        contact_sheet(np.zeros((2, 4, 4, 3), dtype=np.uint8), columns=0)
