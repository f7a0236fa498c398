"""Object families: tools, machines and abstract shapes. See `families_household` for the conventions of a family."""

import numpy as np
from numpy.random import Generator

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import (
    box,
    cylinder,
    ellipsoid,
    lathe,
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
