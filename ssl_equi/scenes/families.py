"""The object families by name, and `build_object`, which makes one of their instances.

A family is a function (rng, mesh builder, palette) that adds the coloured parts of one random instance. Every family
looks different in every pose, by the test of `ssl_equi.scenes.symmetry`, so that the pose of a view is well defined.
"""

import difflib
import zlib
from collections.abc import Callable

import numpy as np

from ssl_equi.scenes import families_animals_and_nature as nature
from ssl_equi.scenes import families_furniture as furniture
from ssl_equi.scenes import families_household as household
from ssl_equi.scenes import families_tools_and_abstract as tools
from ssl_equi.scenes import families_vehicles as vehicles
from ssl_equi.scenes.mesh import Mesh, MeshBuilder, Palette, draw_palette

Family = Callable[[np.random.Generator, MeshBuilder, Palette], None]

# the 24 classes of the embedded data set
DEFAULT_FAMILIES: tuple[str, ...] = (
    "bed",
    "bird",
    "boot",
    "camera",
    "cannon",
    "chair",
    "desklamp",
    "dog",
    "drill",
    "excavator",
    "faucet",
    "laptop",
    "pickup",
    "robot",
    "satellite",
    "snail",
    "sofa",
    "springarm",
    "stairs",
    "taperknot",
    "teapot",
    "tractor",
    "wateringcan",
    "wheelbarrow",
)

# eight classes for out-of-distribution tests, never in the embedded data set
HELD_OUT_FAMILIES: tuple[str, ...] = (
    "elephant",
    "fish",
    "helicopter",
    "locomotive",
    "microscope",
    "piano",
    "sewingmachine",
    "towercrane",
)

FAMILIES: dict[str, Family] = {
    function.__name__: function
    for function in (
        household.boot,
        household.camera,
        household.desklamp,
        household.faucet,
        household.guitar,
        household.laptop,
        household.mug,
        household.parasol,
        household.pitcher,
        household.spraybottle,
        household.teapot,
        household.wateringcan,
        furniture.bed,
        furniture.bookshelf,
        furniture.chair,
        furniture.desk,
        furniture.house,
        furniture.mailbox,
        furniture.piano,
        furniture.sofa,
        furniture.stairs,
        vehicles.airplane,
        vehicles.cannon,
        vehicles.car,
        vehicles.excavator,
        vehicles.helicopter,
        vehicles.locomotive,
        vehicles.motorbike,
        vehicles.pickup,
        vehicles.sailboat,
        vehicles.satellite,
        vehicles.tractor,
        vehicles.wheelbarrow,
        nature.bird,
        nature.cactus,
        nature.dog,
        nature.elephant,
        nature.fish,
        nature.rabbit,
        nature.snail,
        tools.crankgear,
        tools.drill,
        tools.glyph,
        tools.hammer,
        tools.key,
        tools.microscope,
        tools.polycube,
        tools.robot,
        tools.sewingmachine,
        tools.springarm,
        tools.taperknot,
        tools.towercrane,
    )
}


def build_object(family: str, seed: int) -> Mesh:
    """The mesh of instance `seed` of a family: the same arrays at every call, whatever other families exist.

    Raises ValueError for an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(_unknown_family_message(family))
    rng = np.random.default_rng([zlib.crc32(family.encode()), seed])
    mesh = MeshBuilder()
    FAMILIES[family](rng, mesh, draw_palette(rng))
    return mesh.build()


def _unknown_family_message(family: str) -> str:
    closest = difflib.get_close_matches(family, FAMILIES, n=1, cutoff=0.0)[0]
    return f"object family {family!r} does not exist: did you mean {closest!r}? (FAMILIES lists all {len(FAMILIES)})"
