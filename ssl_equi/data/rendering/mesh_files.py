"""Mesh files (OBJ, PLY, GLB, glTF, STL, OFF) as meshes for the renderer; the border of the library trimesh.

What is read is geometry and colour: triangles of all parts with their places in the scene, base colours, textures of
base colours, vertex and face colours. Normals of the file are not: some scans have none, and some have them turned
over. The renderer's own, from the triangles, are right for all.
"""

import io
import logging
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_equi.errors import DataError, visible
from ssl_equi.scenes.mesh import Mesh, Paint, mesh_of_triangles

UpAxis = Literal["y", "z"]

INSTALLATION = "pip install 'ssl-equi[meshes]'"
MESH_SUFFIXES = (".obj", ".ply", ".glb", ".gltf", ".stl", ".off")
MOST_FACES = 4_000_000  # of more, most are smaller than what the rasteriser draws, and 6 GB of memory don't suffice
UNPAINTED = 0.4  # linear albedo of surfaces whose file says no colour

# The scene's z points up and its camera stands on the side of +y. Models whose y points up mostly face +z (glTF says
# so), and are turned to face the camera.
_SCENE_FROM_FILE = {
    "y": np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
    "z": np.eye(3),
}
_TEXT_SUFFIXES = (".obj", ".off", ".mtl")
_LINEAR_SUFFIXES = (".glb", ".gltf")  # state factors and vertex colours in linear light, and textures in sRGB


@dataclass(frozen=True, eq=False)
class Model:
    """A mesh file that was read.

    missing: names in it of material and texture files that aren't there or can't be read
    """

    mesh: Mesh
    missing: tuple[str, ...]


def import_trimesh() -> ModuleType:
    """The module `trimesh`.

    Raises:
        DataError: it is missing; the message says what to type.
    """
    try:
        import trimesh
    except ImportError as error:
        raise DataError(f"mesh files are read by trimesh, which can't be imported ({error}): {INSTALLATION}") from error
    # It logs the traceback of what it survives.
    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    return trimesh


def read_model(path: Path, up: UpAxis = "y", texture_side: int = 1024) -> Model:
    """Read a mesh file; textures are shrunk to at most `texture_side` texels a side.

    Raises:
        DataError: the file can't be read, or holds no triangle that can be seen.
    """
    name, suffix = visible(str(path)), path.suffix.lower()
    files = _FilesBeside(path.parent)
    parts = _parts_of(path, files)
    count = sum(len(part.faces) for part in parts)
    if not count:
        raise DataError(f"{name} holds no triangle: export a surface, not points or lines, or remove the file")
    if count > MOST_FACES:
        raise DataError(f"{name} has {count:,} faces and at most {MOST_FACES:,} are rendered: simplify it")
    first_vertex = np.cumsum([0, *(len(part.vertices) for part in parts)])
    with np.errstate(invalid="ignore", over="ignore"):
        vertices = np.concatenate([part.vertices for part in parts]) @ _SCENE_FROM_FILE[up].T
    faces = np.concatenate([part.faces + first for part, first in zip(parts, first_vertex)])
    finite = np.isfinite(vertices).all(axis=1)[faces]
    if not finite.all():
        raise DataError(f"{name} has {(~finite).sum():,} corners of faces that are not finite: export it again")
    try:
        textures = _Textures(texture_side)
        painted = [part.paint(suffix in _LINEAR_SUFFIXES, textures) for part in parts]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"a texture of {name} does not decode ({visible(str(error))}): save it again") from error
    colors = np.concatenate([color for color, _ in painted])
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # of an object without extent
            mesh = mesh_of_triangles(vertices, faces, colors, _joined([paint for _, paint in painted]))
    except ValueError as error:
        raise DataError(f"{name} shows nothing ({error}): export it again, or remove the file") from error
    return Model(mesh, tuple(files.missing))


def _parts_of(path: Path, files: "_FilesBeside") -> list["_Part"]:
    """The geometries of a file that have faces. Raises DataError if it can't be read."""
    trimesh = import_trimesh()
    name, suffix = visible(str(path)), path.suffix.lower()
    try:
        data = path.read_bytes()
        content = io.BytesIO(_as_utf8(data) if suffix in _TEXT_SUFFIXES else data)
        # "process" would merge and drop vertices in trimesh's own way.
        scene = trimesh.load_scene(content, file_type=suffix.removeprefix("."), resolver=files, process=False)
        parts = [_Part(scene, node) for node in scene.graph.nodes_geometry]
    except OSError as error:
        raise DataError(f"{name} can't be read ({error.strerror or error}): restore it, or remove it") from error
    except Exception as error:  # a file may hold anything, and trimesh raises what comes
        # What can't be decoded as text is given to a library that guesses encodings, where there is one.
        problem = "neither binary nor text of this format" if isinstance(error, ImportError) else visible(str(error))
        raise DataError(f"{name} is no mesh file that can be read ({problem}): export it again") from error
    return [part for part in parts if len(part.faces)]


def _as_utf8(text: bytes) -> bytes:
    """Text in UTF-8; names in another encoding, which older programs write, come out in that of the West."""
    try:
        text.decode()
        return text
    except UnicodeDecodeError:
        return text.decode("latin-1").encode()


@dataclass
class _FilesBeside:
    """What trimesh asks for the material and texture files that a mesh file names; notes those that it can't have."""

    folder: Path
    missing: list[str] = field(default_factory=list)

    def get(self, name: str) -> bytes:
        """A file's bytes, by its path from the folder of the mesh file."""
        # Materials made on Windows have backslashes, glTF escapes blanks, and options may precede an MTL's texture.
        spellings = [name, name.replace("\\", "/"), urllib.parse.unquote(name)]
        spellings += name.split()[-1:] if name.startswith("-") else []
        for spelling in spellings:
            try:
                data = (self.folder / spelling).read_bytes()
                if Path(spelling).suffix.lower() in _TEXT_SUFFIXES:
                    return _as_utf8(data)
                if Path(spelling).suffix.lower() != ".bin":
                    Image.open(io.BytesIO(data)).close()
                return data
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                continue
        self.missing.append(visible(name))
        raise FileNotFoundError(f"{name} is not there")

    __getitem__ = get

    def keys(self) -> Iterator[str]:
        """Names of all files that may be asked for."""
        return (path.name for path in self.folder.iterdir())


class _Part:
    """One placed geometry of a scene."""

    def __init__(self, scene: Any, node: str) -> None:
        matrix, geometry_name = scene.graph[node]
        geometry = scene.geometry[geometry_name]
        # Point clouds and paths are geometries, too.
        self.faces: NDArray[np.int64] = np.asarray(getattr(geometry, "faces", np.zeros((0, 3))), dtype=np.int64)
        with np.errstate(invalid="ignore", over="ignore"):  # of numbers that are refused later where faces use them
            self.vertices: NDArray[np.float64] = np.asarray(geometry.vertices) @ matrix[:3, :3].T + matrix[:3, 3]
        self._visual = getattr(geometry, "visual", None)
        if self.faces.size and not 0 <= self.faces.min() <= self.faces.max() < len(self.vertices):
            raise ValueError(f"a face has a corner beyond its {len(self.vertices)} vertices")

    def paint(self, linear: bool, textures: "_Textures") -> tuple[NDArray[np.float32], Paint]:
        """Albedo of each face [F, 3], and what multiplies it; `linear` if the file states colours in linear light."""
        count, visual = len(self.faces), self._visual
        face_colors = np.full((count, 3), UNPAINTED, dtype=np.float32)
        corner_colors = np.ones((count, 3, 3), dtype=np.float32)
        uv = np.zeros((count, 3, 2), dtype=np.float32)
        face_textures = np.full(count, -1, dtype=np.int32)
        used: tuple[NDArray[np.float32], ...] = ()

        def light(levels: Any) -> NDArray[np.float32]:
            return _as_light(np.asarray(levels), linear)

        material = getattr(visual, "material", None)
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        # Where there is no material, trimesh puts a small grey image of its own, which is of no file format.
        stand_in = image is not None and image.format is None and image.size == (2, 2)
        if visual is None or visual.kind is None or stand_in:
            pass
        elif visual.kind == "face":
            face_colors = light(visual.face_colors)
        elif visual.kind == "vertex":
            face_colors[:] = 1
            corner_colors = light(visual.vertex_colors)[self.faces]
        else:
            if image is not None and np.shape(visual.uv) == (len(self.vertices), 2):
                used, face_textures = (textures.of(image),), np.zeros(count, dtype=np.int32)
                uv = _near_zero(np.asarray(visual.uv, dtype=np.float64)[self.faces])
            # glTF multiplies factor and texture. OBJ does in theory, but many files have a black or grey one beside it.
            factor = getattr(material, "baseColorFactor" if linear else "main_color", None)
            factor = [255, 255, 255] if factor is None or (used and not linear) else factor
            face_colors[:] = light(np.asarray(factor)[:3])
            vertex_colors = getattr(visual, "vertex_attributes", {}).get("color")
            if linear and vertex_colors is not None:
                corner_colors = light(vertex_colors)[self.faces]
        return face_colors, Paint(corner_colors, uv, face_textures, used)


def _as_light(colors: NDArray[Any], linear: bool) -> NDArray[np.float32]:
    """Linear light [..., 3] of RGB or RGBA, integers up to the largest of their type or floats up to 1."""
    most = np.iinfo(colors.dtype).max if colors.dtype.kind in "iu" else 1
    # Python's integers come as int64 and mean bytes.
    shares = np.nan_to_num(colors[..., :3].astype(np.float64) / (255 if most > 65_535 else most)).clip(0, 1)
    return (shares if linear else linear_from_srgb(shares)).astype(np.float32)


def linear_from_srgb(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


class _Textures:
    """Images as textures; one that several parts have is made once."""

    def __init__(self, most_side: int) -> None:
        self._most_side = most_side
        # With the images themselves, so that no other image gets the number of one that is gone.
        self._made: dict[int, tuple[Image.Image, NDArray[np.float32]]] = {}

    def of(self, image: Image.Image) -> NDArray[np.float32]:
        """Linear light [H, W, 3] of an image."""
        if id(image) not in self._made:
            self._made[id(image)] = image, _texture(image, self._most_side)
        return self._made[id(image)][1]


def _texture(image: Image.Image, most_side: int) -> NDArray[np.float32]:
    """Linear light [H, W, 3] of an image of any mode; transparency is left out."""
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        # 16-bit grey; Pillow cuts it off at 255 instead of scaling it
        image = Image.fromarray((levels / (257 if levels.max(initial=0) > 255 else 1)).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    shrink = max(image.size) / most_side
    if shrink > 1:
        width, height = (max(1, round(side / shrink)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    return linear_from_srgb(np.arange(256) / 255).astype(np.float32)[np.asarray(image)]


def _near_zero(uv: NDArray[np.float64]) -> NDArray[np.float32]:
    """Texture coordinates [F, 3, 2] less whole repeats of the texture, for float32 to hold; those not finite are 0."""
    uv = np.nan_to_num(uv, nan=0.0, posinf=0.0, neginf=0.0)
    # A face over ten thousand repeats is noise whatever they are, and float32 holds no more.
    return (uv - np.floor(uv.min(axis=1, keepdims=True))).clip(0, 1e4).astype(np.float32)


def _joined(paints: list[Paint]) -> Paint:
    """One paint of the faces of all parts, in which each texture is once."""
    number_of: dict[int, int] = {}
    textures: list[NDArray[np.float32]] = []
    numbers = []
    for paint in paints:
        for texture in paint.textures:
            if id(texture) not in number_of:
                number_of[id(texture)] = len(textures)
                textures.append(texture)
        own = [number_of[id(texture)] for texture in paint.textures]
        numbers.append(np.array([*own, -1], dtype=np.int32)[paint.face_textures])  # -1 takes the last, which is -1
    return Paint(
        corner_colors=np.concatenate([paint.corner_colors for paint in paints]),
        corner_uv=np.concatenate([paint.corner_uv for paint in paints]),
        face_textures=np.concatenate(numbers),
        textures=tuple(textures),
    )
