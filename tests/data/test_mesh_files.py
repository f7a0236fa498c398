"""Mesh files: what of geometry and colour is read of each format, and one sentence for what can't be rendered."""

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from ssl_equi.data.rendering import mesh_files
from ssl_equi.data.rendering.mesh_files import MESH_SUFFIXES, linear_from_srgb, read_model
from ssl_equi.errors import DataError
from ssl_equi.scenes.mesh import Mesh
from ssl_equi.scenes.scene import SceneSettings, main_camera
from tests.painted import BLUE, FOUR_COLORS, GREEN, GREY, RED, latent, shown_albedo
from tests.real_data import shared_data
from tests.scenes.test_textures import bilinear, quarters

# Seen from +z with y up, as files are: a unit square whose texture's upper left corner is at (0, 1).
SQUARE_OBJ = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
SQUARE_FACE = "f 1/1 2/2 3/3 4/4\n"
# A model that is y up faces the scene's camera with its +z. It then looks down at it by 45 degrees.
FACING = (np.pi / 4, 0.0, 0.0)


def srgb_bytes(linear: np.ndarray) -> np.ndarray:
    linear = np.asarray(linear, dtype=float)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def four_colors_image() -> Image.Image:
    return Image.fromarray(srgb_bytes(FOUR_COLORS)).resize((64, 64), Image.Resampling.NEAREST)


def write_square(folder: Path, image: Image.Image | None = None, suffix: str = ".png", mtl: str = "") -> Path:
    """square.obj with its material and texture."""
    folder.mkdir(parents=True, exist_ok=True)
    if image is not None:
        image.save(folder / f"texture{suffix}")
    (folder / "square.mtl").write_text(mtl or f"newmtl paint\nKd 0 0 0\nmap_Kd texture{suffix}\n")
    path = folder / "square.obj"
    path.write_text(f"mtllib square.mtl\n{SQUARE_OBJ}usemtl paint\n{SQUARE_FACE}")
    return path


def shown(path: Path, **options: str) -> dict[str, np.ndarray]:
    """What the quarters of a square in a file show when it faces the camera."""
    return quarters(shown_albedo(read_model(path, **options).mesh, latent(FACING), resolution=64))


def save_glb(path: Path, visual: object, vertices: np.ndarray | None = None) -> Path:
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) if vertices is None else vertices
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    path.write_bytes(trimesh.Scene(mesh).export(file_type="glb"))
    return path


@pytest.mark.parametrize("file_type", ["obj", "glb", "gltf", "ply"])
def test_textures_stand_upright_in_every_format(file_type: str, tmp_path: Path) -> None:
    path = tmp_path / f"square.{file_type}"
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    if file_type == "obj":
        path = write_square(tmp_path, four_colors_image())
    elif file_type == "ply":
        four_colors_image().save(tmp_path / "texture.png")
        rows = "\n".join(f"{x} {y} 0 {x} {y}" for x, y in uv)
        properties = "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
        path.write_text(
            f"ply\nformat ascii 1.0\ncomment TextureFile texture.png\nelement vertex 4\n{properties}element face 2\n"
            f"property list uchar int vertex_indices\nend_header\n{rows}\n3 0 1 2\n3 0 2 3\n"
        )
    else:
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=four_colors_image())
        save_glb(tmp_path / "square.glb", trimesh.visual.TextureVisuals(uv=uv, material=material))
        if file_type == "gltf":
            files = trimesh.load_scene(tmp_path / "square.glb").export(file_type="gltf")
            for name, content in files.items():
                (tmp_path / name.replace("model.gltf", "square.gltf")).write_bytes(content)
    found = shown(path)
    expected = {"upper left": RED, "upper right": GREEN, "lower left": BLUE, "lower right": GREY}
    for place, color in expected.items():
        assert found[place] == pytest.approx(color, abs=0.03), place


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16", "CMYK"])
def test_textures_of_any_mode_are_read(mode: str, tmp_path: Path) -> None:
    color = (188, 188, 188)  # linear 0.5
    image = Image.new("RGB", (8, 8), color)
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 188 * 257, dtype=np.uint16))
    elif mode == "1":
        image = Image.new("1", (8, 8), 1)
    else:
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    if "A" in mode:
        image.putalpha(10)
    path = write_square(tmp_path, image, suffix=".tif" if mode == "CMYK" else ".png")
    (texture,) = read_model(path).mesh.paint.textures
    assert texture.shape == (8, 8, 3) and texture.dtype == np.float32
    np.testing.assert_allclose(texture, 1.0 if mode == "1" else 0.503, atol=0.01)


def test_large_textures_are_shrunk(tmp_path: Path) -> None:
    path = write_square(tmp_path, Image.new("RGB", (300, 120), (255, 0, 0)))
    (texture,) = read_model(path, texture_side=100).mesh.paint.textures
    assert texture.shape == (40, 100, 3)
    np.testing.assert_allclose(texture, np.broadcast_to([1, 0, 0], texture.shape), atol=1e-6)


@pytest.mark.parametrize(
    "line", ["map_Kd -s 1 1 1 maps/image.png", "map_Kd maps\\image.png", "map_Kd ./maps/image.png"]
)
def test_textures_are_found_however_they_are_spelt(line: str, tmp_path: Path) -> None:
    path = write_square(tmp_path, mtl=f"newmtl paint\n{line}\n")
    (tmp_path / "maps").mkdir()
    four_colors_image().save(tmp_path / "maps" / "image.png")
    model = read_model(path)
    assert len(model.mesh.paint.textures) == 1 and model.missing == ()


@pytest.mark.parametrize("lost", ["texture.png", "square.mtl", "undecodable"])
def test_what_is_missing_is_named_and_left_out(lost: str, tmp_path: Path) -> None:
    path = write_square(tmp_path, four_colors_image(), mtl="newmtl paint\nKd 0.8 0.2 0.2\nmap_Kd texture.png\n")
    if lost == "undecodable":
        (tmp_path / "texture.png").write_bytes(b"no image")
    else:
        (tmp_path / lost).unlink()
    model = read_model(path)
    assert model.missing == ("square.mtl" if lost == "square.mtl" else "texture.png",)
    assert model.mesh.paint.textures == ()
    stated = linear_from_srgb(np.array([0.8, 0.2, 0.2]))
    expected = np.full(3, mesh_files.UNPAINTED) if lost == "square.mtl" else stated
    np.testing.assert_allclose(model.mesh.face_colors[0], expected, atol=0.01)


def test_a_model_without_texture_coordinates_has_the_colour_of_its_material(tmp_path: Path) -> None:
    path = write_square(tmp_path, mtl="newmtl paint\nKd 1 0.5 0\nmap_Kd texture.png\n", image=four_colors_image())
    path.write_text(path.read_text().replace(SQUARE_FACE, "f 1 2 3 4\n"))
    mesh = read_model(path).mesh
    assert (mesh.paint.face_textures == -1).all()
    np.testing.assert_allclose(mesh.face_colors, np.tile(linear_from_srgb(np.array([1, 0.5, 0])), (2, 1)), atol=0.01)


def test_a_model_of_no_colour_is_grey(tmp_path: Path) -> None:
    path = tmp_path / "plain.obj"
    path.write_text(SQUARE_OBJ + "f 1 2 3 4\n")
    np.testing.assert_allclose(read_model(path).mesh.face_colors, mesh_files.UNPAINTED)


def test_colours_of_vertices_and_faces_are_srgb_in_ply_and_linear_in_glb(tmp_path: Path) -> None:
    half = np.array([[128, 0, 255, 255]] * 4, dtype=np.uint8)
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    coloured = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], vertex_colors=half, process=False)
    faces = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], face_colors=half[:2], process=False)
    for name, mesh in (("vertices.ply", coloured), ("vertices.glb", coloured), ("faces.ply", faces)):
        (tmp_path / name).write_bytes(mesh.export(file_type=name[-3:]))
    srgb, linear = linear_from_srgb(np.array([128, 0, 255]) / 255), np.array([128, 0, 255]) / 255
    for name, expected in (("vertices.ply", srgb), ("vertices.glb", linear), ("faces.ply", srgb)):
        mesh = read_model(tmp_path / name).mesh
        albedo = mesh.paint.corner_colors * mesh.face_colors[:, None]
        np.testing.assert_allclose(albedo, np.broadcast_to(expected, (2, 3, 3)), atol=0.004, err_msg=name)


def test_factors_multiply_textures_and_vertex_colours_in_glb(tmp_path: Path) -> None:
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.new("RGB", (4, 4), (188, 188, 188)), baseColorFactor=[0.8, 0.8, 0.8, 1.0]
    )
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    visual.vertex_attributes["color"] = np.full((4, 4), 128, dtype=np.uint8)
    mesh = read_model(save_glb(tmp_path / "square.glb", visual)).mesh
    assert mesh.face_colors == pytest.approx(0.8, abs=0.003)
    assert mesh.paint.corner_colors == pytest.approx(0.502, abs=0.003)
    assert mesh.paint.textures[0] == pytest.approx(0.503, abs=0.003)


def test_parts_of_a_scene_keep_their_places_and_textures(tmp_path: Path) -> None:
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    scene = trimesh.Scene()
    for index, color in enumerate(((255, 0, 0), (0, 0, 255))):
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("RGB", (4, 4), color))
        visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        part = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
        turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1]) if index else np.eye(4)
        scene.add_geometry(part, transform=trimesh.transformations.translation_matrix([3 * index, 0, 0]) @ turn)
    (tmp_path / "two.glb").write_bytes(scene.export(file_type="glb"))
    mesh = read_model(tmp_path / "two.glb", up="z").mesh
    # x from 0 to 1, and, turned by a quarter about the origin, from 2 to 3
    size = np.linalg.norm([3, 1])
    x_extents = [
        (mesh.vertices[mesh.faces[mesh.paint.face_textures == part]][..., 0] * size + 1.5) for part in range(2)
    ]
    assert sorted((round(float(x.min()), 4), round(float(x.max()), 4)) for x in x_extents) == [(0, 1), (2, 3)]
    of_left = int(np.argmin([x.min() for x in x_extents]))
    assert mesh.paint.textures[of_left][0, 0] == pytest.approx([1, 0, 0], abs=1e-6)


def test_a_part_that_stands_in_several_places_has_one_texture(tmp_path: Path) -> None:
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=four_colors_image())
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    part = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    scene = trimesh.Scene({"square": part})
    scene.graph.update(
        frame_to="again", geometry="square", matrix=trimesh.transformations.translation_matrix([2, 0, 0])
    )
    (tmp_path / "two.glb").write_bytes(scene.export(file_type="glb"))
    paint = read_model(tmp_path / "two.glb").mesh.paint
    assert len(paint.textures) == 1 and paint.face_textures.tolist() == [0, 0, 0, 0]


def test_up_is_y_or_z(tmp_path: Path) -> None:
    path = tmp_path / "tall.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 5 0\nv 0 0 2\nf 1 2 3\nf 1 3 4\nf 1 2 4\n")
    size = np.linalg.norm([1, 5, 2])
    by_axis = {up: np.ptp(read_model(path, up=up).mesh.vertices, axis=0) * size for up in ("y", "z")}
    assert by_axis["y"] == pytest.approx([1, 2, 5], abs=1e-5)
    assert by_axis["z"] == pytest.approx([1, 5, 2], abs=1e-5)


def test_a_far_coordinate_of_a_repeating_texture_is_brought_near(tmp_path: Path) -> None:
    path = write_square(tmp_path, four_colors_image())
    path.write_text(path.read_text().replace("vt 0 0", "vt 1000000 0").replace("vt 1 1", "vt 1000001 1"))
    path.write_text(path.read_text().replace("vt 1 0", "vt 1000001 0").replace("vt 0 1", "vt 1000000 1"))
    assert shown(path)["upper left"] == pytest.approx(RED, abs=0.03)


PLY_POINTS = (
    "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n1 2 3\n"
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.obj", "", "empty.obj"),
        ("empty.ply", "", "empty.ply is no mesh file"),
        ("empty.glb", "", "empty.glb is no mesh file"),
        ("garbage.ply", "ply\nnonsense", "garbage.ply is no mesh file"),
        ("garbage.stl", "nonsense", "garbage.stl"),
        ("points.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "points.obj"),
        ("points.ply", PLY_POINTS, "points.ply holds no triangle"),
        ("nan.obj", "v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "nan.obj has 1 corners of faces that are not finite"),
        ("flat.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "flat.obj shows nothing"),
        ("point.obj", "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "point.obj shows nothing"),
        ("beyond.obj", "v 0 0 0\nv 1 0 0\nf 1 2 7\n", "beyond.obj is no mesh file"),
    ],
)
def test_what_cannot_be_rendered_is_named_in_one_sentence(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_model(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_names_in_another_encoding_and_corners_counted_from_the_end_are_read(tmp_path: Path) -> None:
    path = write_square(tmp_path, four_colors_image())
    text = path.read_text().replace(SQUARE_FACE, "g cafe\nf -4/-4 -3/-3 -2/-2 -1/-1\n").replace("paint", "caf\xe9")
    path.write_bytes(text.encode("latin-1"))
    (tmp_path / "square.mtl").write_bytes("newmtl caf\xe9\nmap_Kd texture.png\n".encode("latin-1"))
    assert shown(path)["upper left"] == pytest.approx(RED, abs=0.03)


def test_damaged_files_are_read_or_named(tmp_path: Path) -> None:
    """Cut off, changed and with bytes put in, under any name."""
    box = trimesh.creation.box()
    generator = np.random.default_rng(0)
    for suffix in MESH_SUFFIXES:
        whole = box.export(file_type=suffix[1:]) if suffix != ".gltf" else box.export(file_type="glb")
        whole = whole if isinstance(whole, bytes) else whole.encode()
        for number in range(8):
            place = int(generator.integers(len(whole)))
            ends = (b"", whole[place:], b"\xff" + whole[place + 1 :])
            path = tmp_path / f"damaged{suffix}"
            path.write_bytes(whole[:place] + (b"\xf3\x00" if number % 3 == 1 else b"") + ends[number % 3])
            try:
                assert np.isfinite(read_model(path).mesh.corner_normals).all()
            except DataError as error:
                assert f"damaged{suffix}" in str(error) and "charset" not in str(error)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.obj can't be read \(No such file"):
        read_model(tmp_path / "gone.obj")


def test_a_texture_that_is_cut_off_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    path = write_square(tmp_path, Image.fromarray(noise))
    data = (tmp_path / "texture.png").read_bytes()
    (tmp_path / "texture.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a texture of .*square.obj does not decode"):
        read_model(path)


def test_too_many_faces_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_files, "MOST_FACES", 1)
    with pytest.raises(DataError, match="has 2 faces and at most 1 are rendered: simplify it"):
        read_model(write_square(tmp_path, four_colors_image()))


def test_without_trimesh_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(DataError, match=r"can't be imported .*: pip install 'ssl-equi\[meshes\]'"):
        read_model(tmp_path / "any.obj")


def test_all_suffixes_are_formats_of_trimesh() -> None:
    assert {suffix[1:] for suffix in MESH_SUFFIXES} <= trimesh.available_formats()


# --- a real model against a ray caster ------------------------------------------------------------------------------


def nearest_hit(mesh: Mesh, origin: np.ndarray, ray: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Face that a ray meets first and the barycentric coordinates of the place (Moeller and Trumbore, 1997)."""
    first, second, third = (mesh.vertices[mesh.faces[:, corner]].astype(float) for corner in range(3))
    edge_1, edge_2 = second - first, third - first
    across = np.cross(ray, edge_2)
    determinant = np.einsum("ij,ij->i", edge_1, across)
    with np.errstate(divide="ignore", invalid="ignore"):
        from_first = origin - first
        b1 = np.einsum("ij,ij->i", from_first, across) / determinant
        around = np.cross(from_first, edge_1)
        b2 = around @ ray / determinant
        distance = np.einsum("ij,ij->i", edge_2, around) / determinant
    met = (b1 >= 0) & (b2 >= 0) & (b1 + b2 <= 1) & (distance > 0)
    if not met.any():
        return None
    face = int(np.where(met, distance, np.inf).argmin())
    return face, np.array([1 - b1[face] - b2[face], b1[face], b2[face]])


def test_a_scanned_model_shows_the_texels_that_a_ray_caster_meets(tmp_path: Path) -> None:
    with tarfile.open(shared_data("household_models") / "models.tar.xz", "r|xz") as archive:
        for member in archive:
            if "/orion_pie/" in member.name:
                archive.extract(member, tmp_path, filter="data")
                # Reading on to the end of the archive takes as long again as the test.
                if member.name.endswith(".obj"):
                    break
    # 48 texels a side are magnified nearly everywhere, so that the first level is what is seen.
    model = read_model(tmp_path / "orion_pie" / "textured.obj", up="z", texture_side=48)
    assert model.missing == ()
    (texture,) = model.mesh.paint.textures
    rotation, side = (0.4, -0.7, 0.9), 160
    few = (slice(40, 120, 8), slice(42, 122, 8))  # 100 pixels in the middle
    albedo = shown_albedo(model.mesh, latent(rotation), resolution=side, supersampling=1)[few].reshape(-1, 3)

    camera = main_camera(side, torch.device("cpu"))
    rays = camera.rays()[0][:, few[0], few[1]].reshape(3, -1).T.double().numpy()
    turn = Rotation.from_euler("xyz", rotation).as_matrix()
    origin = turn.T @ camera.position[0].double().numpy() / SceneSettings().object_scale
    hits = [nearest_hit(model.mesh, origin, turn.T @ ray) for ray in rays]
    covered = np.isfinite(albedo[:, 0])
    assert np.mean(covered == [hit is not None for hit in hits]) > 0.97
    assert 30 < covered.sum() < 95
    differences = []
    for hit, color in zip(hits, albedo):
        if hit is not None and np.isfinite(color[0]):
            u, v = hit[1] @ model.mesh.paint.corner_uv[hit[0]]
            differences.append(np.abs(bilinear(texture, u, v) - color).max())
    assert np.median(differences) < 0.02 and np.quantile(differences, 0.9) < 0.06
