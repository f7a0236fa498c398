"""Object families: tools, machines and abstract shapes. See `families_household` for the conventions of a family."""

import itertools

import numpy as np
from numpy.random import Generator

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import (
    FloatArray,
    arc,
    box,
    cylinder,
    ellipsoid,
    in_plane,
    lathe,
    prism,
    shifted,
    torus,
    tube,
)

PI = np.pi
SIDES = (-1, 1)


def drill(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Cordless drill: motor, chuck, bit, grip with its battery, trigger and a switch on the right."""
    motor_radius = rng.uniform(0.17, 0.23)
    bit_length = rng.uniform(0.25, 0.5)
    grip_length = rng.uniform(0.5, 0.7)
    axis_z = 0.5
    grip_end_z = 0.4 - grip_length

    mesh.add(cylinder((0, -0.45, axis_z), (0, 0.35, axis_z), motor_radius, 0.17), palette.main)
    mesh.add(cylinder((0, 0.35, axis_z), (0, 0.6, axis_z), 0.13, 0.07), palette.dark)
    mesh.add(cylinder((0, 0.6, axis_z), (0, 0.6 + bit_length, axis_z), 0.03, 0.02, sides=8), palette.light)
    mesh.add(tube([(0, -0.2, 0.4), (0, -0.3, grip_end_z)], [0.12, 0.11]), palette.second)
    mesh.add(box((0.3, 0.46, 0.2), (0, -0.26, grip_end_z - 0.08)), palette.third)
    mesh.add(box((0.06, 0.08, 0.16), (0, -0.08, 0.25)), palette.dark)
    mesh.add(box((0.04, 0.2, 0.1), (0.2, -0.05, axis_z)), palette.fourth)


def robot(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Toy robot with each arm raised by its own angle, a chest plate and an antenna."""
    chest_width = rng.uniform(0.4, 0.6)
    chest_height = rng.uniform(0.5, 0.7)
    head_size = rng.uniform(0.24, 0.36)
    arm_angles_rad = rng.uniform(-0.3, 2.6, size=2)
    chest_z = 0.9
    neck_z = chest_z + chest_height / 2
    head_z = neck_z + 0.06 + head_size / 2

    mesh.add(box((chest_width, 0.3, chest_height), (0, 0, chest_z), (1.15, 1)), palette.main)
    mesh.add(box((chest_width * 0.5, 0.03, chest_height * 0.35), (0, 0.16, chest_z + 0.05)), palette.fourth)
    mesh.add(cylinder((0, 0, neck_z), (0, 0, neck_z + 0.1), 0.07), palette.dark)
    mesh.add(box((head_size * 1.1, head_size, head_size), (0, 0.02, head_z)), palette.second)
    antenna_foot = (head_size * 0.35, 0, head_z + head_size * 0.4)
    antenna_tip = (head_size * 0.5, 0, head_z + head_size * 0.5 + 0.24)
    mesh.add(cylinder(antenna_foot, antenna_tip, 0.02, sides=6), palette.dark)
    for side, arm_angle_rad in zip(SIDES, arm_angles_rad):
        eye = (side * head_size * 0.28, head_size * 0.52, head_z + head_size * 0.1)
        mesh.add(ellipsoid(0.05, eye, sides=8, stacks=5), palette.light)
        mesh.add(box((0.16, 0.2, 0.6), (side * chest_width * 0.28, 0, 0.35)), palette.third)
        mesh.add(box((0.2, 0.36, 0.1), (side * chest_width * 0.28, 0.08, 0.04)), palette.dark)
        shoulder = np.array([side * (chest_width * 0.6 + 0.06), 0, chest_z + chest_height * 0.4])
        elbow = shoulder + 0.3 * np.array([side * 0.2, np.sin(arm_angle_rad), -np.cos(arm_angle_rad)])
        hand = elbow + 0.3 * np.array([0, np.sin(arm_angle_rad + 0.5), -np.cos(arm_angle_rad + 0.5)])
        mesh.add(tube([shoulder, elbow, hand], 0.07), palette.third)
        mesh.add(ellipsoid(0.1, hand, sides=8, stacks=6), palette.fourth)


def springarm(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Coil spring between a base plate and a disc that carries an arm with a ball, as in a mechanism."""
    turns = rng.uniform(3, 6)
    coil_radius = rng.uniform(0.3, 0.42)
    coil_height = rng.uniform(0.7, 1.1)
    wire_radius = rng.uniform(0.045, 0.07)
    arm_length = rng.uniform(0.7, 1.0)
    top_z = coil_height + 0.1

    along = np.linspace(0, 1, int(14 * turns))
    turn_rad = 2 * PI * turns * along
    coil = np.stack([coil_radius * np.cos(turn_rad), coil_radius * np.sin(turn_rad), 0.1 + coil_height * along], -1)
    mesh.add(tube(coil, wire_radius, sides=7), palette.main)
    mesh.add(box((1.1, 0.9, 0.09), (0.1, 0, 0.04)), palette.second)
    mesh.add(box((0.18, 0.18, 0.3), (-0.36, 0.3, 0.2)), palette.third)
    mesh.add(lathe([(0.42, top_z), (0.42, top_z + 0.1)], sides=16), palette.third)
    mesh.add(box((arm_length, 0.16, 0.1), (0.5, 0, top_z + 0.12)), palette.fourth)
    mesh.add(ellipsoid(0.14, (0.95, 0, top_z + 0.12), sides=10, stacks=6), palette.fifth)


def taperknot(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Open torus knot whose tube thins out from a ball at one end to the other end."""
    turns, windings = ((2, 3), (3, 2), (2, 5), (3, 4))[rng.integers(4)]
    knot_share = rng.uniform(0.8, 0.93)
    winding_radius = rng.uniform(0.35, 0.5)
    start_radius = rng.uniform(0.22, 0.28)
    points = 72

    angle = np.linspace(0, 2 * PI * knot_share, points)
    distance = 1 + winding_radius * np.cos(windings * angle)
    knot = np.stack(
        [distance * np.cos(turns * angle), distance * np.sin(turns * angle), 0.55 * np.sin(windings * angle)], axis=-1
    )
    radii = np.linspace(start_radius, 0.05, points)
    color_change = points * 3 // 5
    mesh.add(tube(knot[: color_change + 1], radii[: color_change + 1]), palette.main)
    mesh.add(tube(knot[color_change:], radii[color_change:]), palette.second)
    mesh.add(ellipsoid(start_radius * 1.35, knot[0], sides=12, stacks=8), palette.third)


def hammer(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Claw hammer: heavy head with its striking face in front, a long claw that curves down behind."""
    handle_length = rng.uniform(0.9, 1.2)
    head_length = rng.uniform(0.35, 0.45)
    claw_length = rng.uniform(0.5, 0.65)
    claw_drop = rng.uniform(0.25, 0.4)
    grip_radius = rng.uniform(0.1, 0.13)

    handle = [(0, -0.06, 0), (0, 0.02, handle_length * 0.3), (0, 0, handle_length)]
    mesh.add(tube(handle, [0.08, 0.07, 0.07], sides=10, flattening=(0.8, 1.2)), palette.main)
    mesh.add(cylinder((0, -0.07, -0.02), (0, 0.02, handle_length * 0.4), grip_radius, 0.09), palette.second)
    top = np.array([0, 0, handle_length])
    mesh.add(box((0.24, 0.3, 0.3), top), palette.third)
    mesh.add(cylinder(top, shifted(top, y=head_length), 0.11, 0.13), palette.third)
    face = shifted(top, y=head_length)
    mesh.add(cylinder(face, shifted(face, y=0.16), 0.19), palette.light)
    along = np.linspace(0, 1, 6)
    for side in SIDES:
        claw = np.stack([side * (0.05 + 0.08 * along), -claw_length * along, -claw_drop * along**2], axis=-1)
        mesh.add(tube(top + claw, 0.11 - 0.08 * along), palette.third)


def key(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Old door key: ring, short shaft, large toothed bit in front; a tag hangs from the ring on the right."""
    ring_radius = rng.uniform(0.26, 0.34)
    ring_thickness = rng.uniform(0.07, 0.1)
    shaft_length = rng.uniform(0.65, 0.85)
    teeth = rng.integers(2, 4)
    tag_length = rng.uniform(0.35, 0.5)

    ring = torus(ring_radius, ring_thickness, segments=20).rotated("y", PI / 2)
    mesh.add(ring, palette.main)
    shaft_top = ring_radius + shaft_length
    mesh.add(cylinder((0, 0, ring_radius), (0, 0, shaft_top), 0.1, sides=10), palette.main)
    mesh.add(lathe([(0.16, ring_radius + 0.08), (0.16, ring_radius + 0.18)], sides=12), palette.second)
    tooth_z = shaft_top - 0.06
    for _ in range(teeth):
        reach = rng.uniform(0.38, 0.6)
        tooth_height = rng.uniform(0.13, 0.18)
        tooth = box((0.14, reach, tooth_height), (0, reach / 2, tooth_z - tooth_height / 2))
        mesh.add(tooth, palette.second)
        tooth_z -= tooth_height + rng.uniform(0.05, 0.08)
    tag = box((0.1, 0.3, tag_length), (0, 0, -tag_length / 2 - 0.1)).rotated("y", -0.6)
    tag_root = (0.03, 0, -ring_radius)
    mesh.add(tag.moved(tag_root), palette.third)
    mesh.add(torus(0.1, 0.03, segments=12, sides=6).rotated("x", PI / 2).moved(tag_root), palette.light)


def crankgear(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Gear wheel on an axle with a crank on its front side and a counterweight sector; axis along y."""
    teeth = int(rng.integers(8, 13))
    outer_radius = rng.uniform(0.55, 0.68)
    tooth_depth_share = rng.uniform(0.78, 0.86)
    thickness = rng.uniform(0.16, 0.26)
    crank_radius = outer_radius * rng.uniform(0.95, 1.15)
    handle_length = rng.uniform(0.5, 0.7)
    weight_angle_rad = rng.uniform(1.9, 2.5)

    # four corners a tooth: two on the outer circle, two between the teeth
    is_tip = np.arange(4 * teeth) % 4 < 2
    radius = np.where(is_tip, outer_radius, outer_radius * tooth_depth_share)
    angles_rad = np.arange(4 * teeth) * (2 * PI / (4 * teeth))
    outline = radius[:, None] * np.stack([np.cos(angles_rad), np.sin(angles_rad)], axis=-1)
    mesh.add(prism(outline, thickness, "y"), palette.main)
    mesh.add(cylinder((0, -0.5, 0), (0, thickness / 2 + 0.08, 0), 0.15), palette.second)
    front = thickness / 2
    mesh.add(box((crank_radius + 0.16, 0.1, 0.2), (crank_radius / 2, front + 0.07, 0)), palette.third)
    knob = np.array([crank_radius, front + 0.05, 0])
    mesh.add(cylinder(knob, shifted(knob, y=handle_length), 0.1), palette.fourth)
    weight = arc((0, 0), (outer_radius * 0.7,) * 2, weight_angle_rad, weight_angle_rad + 1.4, 8)
    sector = np.concatenate([[(0, 0)], weight])
    mesh.add(prism(sector, 0.16, "y", (0, front + 0.07, 0)), palette.fifth)


def microscope(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Microscope: foot, curved arm behind, stage, tilted tube with eyepiece and objective, focus knob."""
    arm_radius = rng.uniform(0.5, 0.62)
    tilt_rad = rng.uniform(0.25, 0.55)
    tube_length = rng.uniform(0.75, 0.95)
    eyepiece_length = rng.uniform(0.15, 0.3)

    foot = [(-0.38, -0.5), (0.38, -0.5), (0.3, 0.5), (-0.3, 0.5)]
    mesh.add(prism(foot, 0.14, center=(0, 0, 0.07)), palette.main)
    mesh.add(cylinder((0, 0.2, 0.14), (0, 0.2, 0.26), 0.12), palette.light)
    bend = arc((-0.15, 0.65), (-0.6 * arm_radius, arm_radius), -1.3, 1.0, 10)
    mesh.add(tube(in_plane(bend, "yz"), 0.11), palette.main)
    mesh.add(box((0.55, 0.6, 0.06), (0, 0.08, 0.5)), palette.dark)
    mesh.add(box((0.3, 0.12, 0.03), (0.1, 0.16, 0.54)), palette.light)
    axis = np.array([0, -np.sin(tilt_rad), np.cos(tilt_rad)])
    objective = np.array([0, 0.16, 0.62])
    mesh.add(cylinder(objective, objective + 0.25 * axis, 0.05, 0.09), palette.light)
    mesh.add(cylinder(objective + 0.2 * axis, objective + tube_length * axis, 0.13), palette.second)
    eyepiece = objective + tube_length * axis
    mesh.add(cylinder(eyepiece, eyepiece + eyepiece_length * axis, 0.09, 0.11), palette.dark)
    mesh.add(cylinder((0.08, -0.35, 0.6), (0.34, -0.35, 0.6), 0.13), palette.third)


# "x,y" corners of each character's outline
GLYPH_OUTLINES = {
    "F": "0,0 0,1.4 .9,1.4 .9,1.15 .28,1.15 .28,.85 .7,.85 .7,.6 .28,.6 .28,0",
    "7": "0,1.15 0,1.4 .95,1.4 .5,0 .2,0 .62,1.15",
    "J": "0,.5 .25,.5 .3,.28 .5,.28 .55,.5 .55,1.4 .85,1.4 .85,.3 .65,0 .2,0 0,.25",
    "L": "0,0 0,1.4 .28,1.4 .28,.28 .9,.28 .9,0",
    "P": "0,0 0,1.4 .7,1.4 .9,1.2 .9,.8 .7,.6 .28,.6 .28,0",
    "4": "0.5,0 .5,.35 0,.35 0,.6 .5,1.4 .78,1.4 .78,.6 .95,.6 .95,.35 .78,.35 .78,0",
}


def glyph(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Thick letter or digit without symmetry, painted in front, on a foot that sticks out to the back."""
    character = list(GLYPH_OUTLINES)[rng.integers(len(GLYPH_OUTLINES))]
    stretch = rng.uniform(0.85, 1.25, size=2)
    thickness = rng.uniform(0.3, 0.5)
    foot_depth = rng.uniform(0.3, 0.5)

    corners = [corner.split(",") for corner in GLYPH_OUTLINES[character].split()]
    outline = np.array(corners, dtype=np.float64) * stretch
    mesh.add(prism(outline, thickness, "y"), palette.main)
    mesh.add(prism(outline, 0.04, "y", (0, thickness / 2 + 0.02, 0)), palette.second)
    left, right = outline[:, 0].min(), outline[:, 0].max()
    foot_size = (right - left, thickness + foot_depth, 0.12)
    mesh.add(box(foot_size, ((left + right) / 2, -foot_depth / 2, -0.06)), palette.third)


def polycube(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Five to seven cubes joined face to face, in three colours, far from every rotational symmetry."""
    while True:
        cells = _grow_cells(rng, count=int(rng.integers(5, 8)))
        extents = np.ptp(cells, axis=0)
        if extents.min() >= 1 and extents.max() <= 2 and _cells_kept_by_turning(cells) <= len(cells) - 2:
            break
    for index, cell in enumerate(cells):
        mesh.add(box((0.97, 0.97, 0.97), cell), palette[index % 3])


CELL_STEPS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


def _grow_cells(rng: Generator, count: int) -> FloatArray:
    """Integer cells [count, 3] of a random connected polycube, sorted."""
    cells = [(0, 0, 0)]
    while len(cells) < count:
        x, y, z = cells[rng.integers(len(cells))]
        step_x, step_y, step_z = CELL_STEPS[rng.integers(len(CELL_STEPS))]
        neighbour = (x + step_x, y + step_y, z + step_z)
        if neighbour not in cells:
            cells.append(neighbour)
    return np.array(sorted(cells), dtype=np.float64)


def _cells_kept_by_turning(cells: FloatArray) -> int:
    """Most cells that any of the 23 rotations of a cube maps onto cells, with the bounding boxes aligned."""
    original = {tuple(cell) for cell in cells - cells.min(axis=0)}
    kept = 0
    for permutation in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.eye(3)[list(permutation)] * signs
            if np.linalg.det(matrix) < 0 or np.array_equal(matrix, np.eye(3)):
                continue
            turned = cells @ matrix.T
            aligned = {tuple(cell) for cell in turned - turned.min(axis=0)}
            kept = max(kept, len(original & aligned))
    return kept


def sewingmachine(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Sewing machine: base, pillar and hand wheel on the right, arm, head with its needle on the left, spool."""
    width = rng.uniform(1.2, 1.5)
    depth = rng.uniform(0.4, 0.55)
    pillar_height = rng.uniform(0.55, 0.8)
    pillar_width = rng.uniform(0.36, 0.46)
    wheel_radius = rng.uniform(0.22, 0.3)
    base_height = 0.16

    mesh.add(box((width, depth, base_height), (0, 0, base_height / 2)), palette.main)
    pillar_x = (width - pillar_width) / 2
    pillar_size = (pillar_width, depth * 0.7, pillar_height)
    mesh.add(box(pillar_size, (pillar_x, 0, base_height + pillar_height / 2)), palette.main)
    arm_z = base_height + pillar_height
    mesh.add(box((width * 0.9, depth * 0.6, 0.26), (width * 0.05, 0, arm_z), (0.98, 0.8)), palette.second)
    head_x = -width * 0.33
    mesh.add(box((0.2, depth * 0.6, 0.36), (head_x, 0, arm_z - 0.1)), palette.main)
    mesh.add(cylinder((head_x, 0, base_height), (head_x, 0, arm_z - 0.2), 0.03, sides=6), palette.light)
    mesh.add(box((0.3, depth * 0.7, 0.03), (head_x, 0.05, base_height + 0.01)), palette.light)
    wheel_start = (width / 2, 0, arm_z)
    mesh.add(cylinder(wheel_start, shifted(wheel_start, x=0.14), wheel_radius), palette.third)
    spool_foot = (width * 0.22, 0, arm_z + 0.12)
    mesh.add(cylinder(spool_foot, shifted(spool_foot, z=0.22), 0.09, 0.06, sides=10), palette.fourth)
    dial_center = (width * 0.2, depth * 0.3, arm_z)
    mesh.add(cylinder(dial_center, shifted(dial_center, y=0.08), 0.09), palette.fifth)


def towercrane(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Building crane: mast on a foot, jib to the front with a hanging load, counterweight behind, cab beside."""
    mast_height = rng.uniform(1.0, 1.4)
    jib_length = rng.uniform(0.9, 1.2)
    counter_length = rng.uniform(0.35, 0.5)
    load_share = rng.uniform(0.5, 0.95)
    rope_length = rng.uniform(0.3, 0.7)

    mesh.add(box((0.6, 0.6, 0.12), (0, 0, 0.06)), palette.dark)
    mesh.add(box((0.16, 0.16, mast_height), (0, 0, mast_height / 2)), palette.main)
    jib_z = mast_height + 0.05
    jib_center = (0, (jib_length - counter_length) / 2, jib_z)
    mesh.add(box((0.12, jib_length + counter_length, 0.12), jib_center), palette.main)
    peak = (0, 0, jib_z + 0.35)
    mesh.add(cylinder((0, 0, jib_z), peak, 0.07, 0.03, sides=8), palette.main)
    for end in (jib_length * 0.8, -counter_length * 0.9):
        mesh.add(cylinder(peak, (0, end, jib_z), 0.02, sides=6), palette.dark)
    mesh.add(box((0.26, 0.2, 0.32), (0, 0.08 - counter_length, jib_z - 0.14)), palette.second)
    mesh.add(box((0.22, 0.26, 0.24), (0.18, 0.12, jib_z - 0.14)), palette.third)
    hook = np.array([0, jib_length * load_share, jib_z])
    load = shifted(hook, z=-rope_length)
    mesh.add(cylinder(hook, load, 0.02, sides=6), palette.dark)
    mesh.add(box((0.4, 0.26, 0.22), shifted(load, z=-0.11)), palette.fourth)
