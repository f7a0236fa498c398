"""Object families: animals and plants. See `families_household` for the conventions of a family."""

import numpy as np
from numpy.random import Generator

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import (
    box,
    cylinder,
    ellipsoid,
    in_plane,
    prism,
    shifted,
    tube,
)

PI = np.pi
SIDES = (-1, 1)


def dog(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Standing dog, deer or giraffe, by the lengths of its legs and neck."""
    length = rng.uniform(0.5, 0.75)
    leg_height = rng.uniform(0.35, 0.65)
    girth = rng.uniform(0.17, 0.25)
    neck_rise = rng.uniform(0.05, 0.5)
    muzzle_length = rng.uniform(0.15, 0.3)
    ear_height = rng.uniform(0.12, 0.2)
    tail_rise = rng.uniform(-0.1, 0.5)
    body_z = leg_height + girth

    mesh.add(ellipsoid((girth, length * 0.75, girth), (0, 0, body_z)), palette.main)
    for side in SIDES:
        for end in SIDES:
            hip = (side * girth * 0.6, end * length * 0.5, leg_height + girth * 0.8)
            ankle = np.array([side * girth * 0.65, end * length * 0.52 + 0.03, 0])
            mesh.add(cylinder(hip, ankle, 0.07, 0.055, sides=10), palette.main)
            mesh.add(ellipsoid((0.07, 0.11, 0.05), shifted(ankle, y=0.04, z=0.03), sides=8, stacks=5), palette.second)
    head = np.array([0, length * 0.75 + 0.2, body_z + 0.25 + neck_rise])
    mesh.add(cylinder((0, length * 0.5, body_z), head, girth * 0.7, girth * 0.5, sides=10), palette.main)
    mesh.add(ellipsoid((0.16, 0.19, 0.16), head, sides=12, stacks=8), palette.main)
    snout = shifted(head, y=0.12 + muzzle_length, z=-0.08)
    mesh.add(cylinder(shifted(head, y=0.1, z=-0.03), snout, 0.1, 0.06, sides=10), palette.second)
    for side in SIDES:
        ear = ellipsoid((0.045, 0.08, ear_height), sides=8, stacks=6).rotated("y", side * 0.5)
        mesh.add(ear.moved(shifted(head, x=side * 0.13, y=-0.05, z=0.1)), palette.third)
    along = np.linspace(0, 1, 6)
    tail = np.stack([-length * 0.7 - 0.35 * along, body_z + 0.1 + tail_rise * along**2], axis=-1)
    mesh.add(tube(in_plane(tail, "yz"), 0.06 - 0.04 * along), palette.third)


def bird(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Bird with spread wings (not quite the same on both sides), a long tail and flat feet."""
    pitch_rad = rng.uniform(0.1, 0.5)
    head_height = rng.uniform(0.95, 1.15)
    beak_length = rng.uniform(0.25, 0.5)
    wing_spans = rng.uniform(0.7, 1.1, size=2)

    mesh.add(ellipsoid((0.28, 0.52, 0.28)).rotated("x", pitch_rad).moved((0, 0, 0.6)), palette.main)
    head = np.array([0, 0.5, head_height])
    mesh.add(ellipsoid(0.2, head, sides=12, stacks=8), palette.main)
    mesh.add(cylinder((0, 0.35, 0.75), head, 0.2, 0.15, sides=10), palette.main)
    beak = cylinder(shifted(head, y=0.15), shifted(head, y=0.15 + beak_length, z=-0.04), 0.08, 0.01, sides=8)
    mesh.add(beak, palette.second)
    for side, span in zip(SIDES, wing_spans):
        mesh.add(ellipsoid(0.04, shifted(head, x=side * 0.15, y=0.1, z=0.05), sides=6, stacks=4), palette.dark)
        wing = [(side * 0.2, 0.3), (side * span, 0.1), (side * span * 0.9, -0.25), (side * 0.2, -0.3)]
        mesh.add(prism(wing, 0.04, center=(0, 0, 0.7)), palette.third)
        mesh.add(cylinder((side * 0.12, 0, 0.4), (side * 0.14, 0.05, 0), 0.025, sides=6), palette.second)
        mesh.add(box((0.12, 0.22, 0.03), (side * 0.14, 0.12, 0.02)), palette.second)
    tail = [(-0.14, -0.4), (0.14, -0.4), (0.24, -0.95), (-0.24, -0.95)]
    mesh.add(prism(tail, 0.05, center=(0, 0, 0.5)), palette.fourth)


def snail(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Snail: a spiral shell that shifts to the right as it winds inwards, a body and two eye stalks."""
    whorls = rng.uniform(1.6, 2.6)
    shell_shift = 0.35 * rng.uniform(0.8, 1.3)
    stalk_heights = rng.uniform(0.25, 0.4, size=2)

    along = np.linspace(0, 1, 50)
    shrink = np.exp(-1.9 * along)
    turn_rad = 2 * PI * whorls * along + 3.6
    spiral = np.stack(
        [
            shell_shift * along,
            -0.1 + 0.5 * shrink * np.cos(turn_rad),
            0.62 + 0.5 * shrink * np.sin(turn_rad),
        ],
        axis=-1,
    )
    mesh.add(tube(spiral, 0.36 * shrink, sides=10), palette.main)
    body_y = np.linspace(-0.9, 0.95, 9)
    body_radii = [0.02, 0.1, 0.16, 0.18, 0.18, 0.17, 0.15, 0.15, 0.1]
    body = np.stack([body_y, 0.12 + 0.35 * np.clip(body_y - 0.5, 0, 1)], axis=-1)
    mesh.add(tube(in_plane(body, "yz"), body_radii, sides=10), palette.second)
    for side, stalk_height in zip(SIDES, stalk_heights):
        eye = (side * 0.14, 1.05, 0.3 + stalk_height)
        mesh.add(cylinder((side * 0.05, 0.9, 0.3), eye, 0.025, sides=6), palette.second)
        mesh.add(ellipsoid(0.05, eye, sides=8, stacks=5), palette.dark)
