"""Object families: animals and plants. See `families_household` for the conventions of a family."""

import numpy as np
from numpy.random import Generator

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import (
    arc,
    box,
    circle,
    cylinder,
    ellipsoid,
    in_plane,
    lathe,
    loft,
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


def fish(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Fish: deep body with a coloured belly, forked tail, back fin, side fins and eyes."""
    half_height = rng.uniform(0.3, 0.5)
    half_width = rng.uniform(0.14, 0.24)
    tail_height = rng.uniform(0.3, 0.5)
    fin_height = rng.uniform(0.15, 0.35)

    along = np.linspace(1, -1, 11)
    thickness = np.clip(1 - along**2, 0, 1) ** 0.6 * (1 + 0.3 * along) + 0.02
    section = circle(14) * (half_width, half_height)
    mesh.add(loft([in_plane(section * t, "xz", 0.85 * y) for y, t in zip(along, thickness)]), palette.main)
    belly_radii = (half_width * 0.8, 0.5, half_height * 0.6)
    mesh.add(ellipsoid(belly_radii, (0, 0.1, -half_height * 0.45), sides=12, stacks=8), palette.fourth)
    tail = [(-0.75, 0), (-1.15, tail_height), (-1.0, 0.02), (-1.15, -tail_height * 0.7)]
    mesh.add(prism(tail, 0.05, "x"), palette.second)
    back_fin = [(0.25, half_height * 0.8), (-0.1, half_height + fin_height), (-0.45, half_height * 0.7)]
    mesh.add(prism(back_fin, 0.05, "x"), palette.second)
    for side in SIDES:
        side_fin = [(side * half_width * 0.8, 0.2), (side * (half_width + 0.3), -0.1), (side * half_width * 0.8, 0)]
        mesh.add(prism(side_fin, 0.04, center=(0, 0, -0.08)), palette.third)
        mesh.add(ellipsoid(0.07, (side * half_width * 0.62, 0.58, 0.12), sides=8, stacks=5), palette.light)


def cactus(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Potted cactus: a low long arm on one side, a short one higher up on another, and a flower."""
    height = rng.uniform(1.1, 1.4)
    arm_heights = (rng.uniform(0.45, 0.6), rng.uniform(0.75, 0.9))
    arm_reaches = (rng.uniform(0.5, 0.62), rng.uniform(0.35, 0.45))
    arm_rises = (rng.uniform(0.4, 0.7), rng.uniform(0.15, 0.3))
    second_azimuth_rad = rng.uniform(1.7, 2.6)

    mesh.add(lathe([(0.28, 0), (0.36, 0.32), (0.3, 0.32)], sides=16), palette.second)
    trunk = [(0, 0, 0.2), (0, 0, 0.5), (0, 0, height - 0.1), (0, 0, height)]
    mesh.add(tube(trunk, [0.19, 0.2, 0.19, 0.08], sides=12), palette.main)
    mesh.add(ellipsoid((0.13, 0.13, 0.1), (0.05, 0.05, height + 0.02), sides=8, stacks=5), palette.third)
    for index, azimuth_rad in enumerate((0.0, second_azimuth_rad)):
        reach, base_z = arm_reaches[index], arm_heights[index]
        elbow = arc((reach - 0.15, base_z + 0.15), (0.15, 0.15), -PI / 2, 0, 5)
        tip = (reach, base_z + 0.15 + arm_rises[index])
        outline = in_plane([(0, base_z), *elbow, tip], "xz")
        radii = np.where(np.arange(len(outline)) < len(outline) - 1, 0.12, 0.07)
        arm = tube(outline, radii, sides=10).rotated("z", azimuth_rad)
        mesh.add(arm, palette.fourth if index else palette.main)


def elephant(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Elephant: barrel body, thick legs, big ears, a raised or hanging trunk and tusks, a saddle cloth."""
    body_length = rng.uniform(0.5, 0.62)
    body_radius = rng.uniform(0.36, 0.44)
    leg_height = rng.uniform(0.35, 0.5)
    ear_size = rng.uniform(0.22, 0.32)
    trunk_curl_rad = rng.uniform(-0.6, 1.2)
    body_z = leg_height + body_radius * 0.8

    mesh.add(ellipsoid((body_radius, body_length, body_radius), (0, 0, body_z)), palette.main)
    cloth = ellipsoid((body_radius * 1.04, body_length * 0.45, body_radius * 0.6), (0, -0.05, body_z + 0.2), 14, 8)
    mesh.add(cloth, palette.third)
    head = np.array([0, body_length + 0.12, body_z + 0.22])
    mesh.add(ellipsoid((0.25, 0.25, 0.28), head, sides=14, stacks=8), palette.main)
    along = np.linspace(0, 1, 9)
    trunk_dip_rad = -1.1 + trunk_curl_rad * along * 1.6
    steps = np.stack([np.cos(trunk_dip_rad), np.sin(trunk_dip_rad)], axis=-1) * 0.09
    trunk = np.cumsum(steps, axis=0) + head[1:] + np.array([0.12, -0.02])
    mesh.add(tube(in_plane(trunk, "yz"), 0.11 - 0.06 * along), palette.main)
    for side in SIDES:
        ear = ellipsoid((0.04, ear_size, ear_size * 1.2), sides=10, stacks=6).rotated("z", side * 0.9)
        mesh.add(ear.moved(shifted(head, x=side * 0.3, y=-0.1)), palette.second)
        tusk_root = shifted(head, x=side * 0.13, y=0.16, z=-0.14)
        tusk_tip = shifted(tusk_root, x=side * 0.04, y=0.3, z=-0.03)
        mesh.add(cylinder(tusk_root, tusk_tip, 0.045, 0.012, sides=8), palette.light)
        for end in SIDES:
            foot = (side * body_radius * 0.55, end * body_length * 0.55, 0)
            mesh.add(cylinder(foot, shifted(foot, z=body_z), 0.13, 0.15, sides=10), palette.main)
    tail_root = (0, -body_length * 0.95, body_z + 0.1)
    mesh.add(cylinder(tail_root, shifted(tail_root, y=-0.12, z=-0.4), 0.04, 0.03, sides=6), palette.second)


def rabbit(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Crouching rabbit: round haunches, tall ears of which one can hang, front paws and a white tail."""
    body_length = rng.uniform(0.45, 0.6)
    body_height = rng.uniform(0.32, 0.42)
    ear_length = rng.uniform(0.28, 0.42)
    ear_leans_rad = rng.uniform(-0.2, 1.1, size=2)
    head_rise = rng.uniform(0.3, 0.5)

    body = ellipsoid((0.3, body_length, body_height)).rotated("x", 0.3)
    mesh.add(body.moved((0, 0, 0.4)), palette.main)
    head = np.array([0, body_length * 0.95, 0.42 + head_rise])
    mesh.add(ellipsoid((0.19, 0.25, 0.2), head, sides=14, stacks=8), palette.main)
    mesh.add(ellipsoid((0.12, 0.12, 0.1), shifted(head, y=0.18, z=-0.06), sides=10, stacks=6), palette.second)
    mesh.add(ellipsoid(0.14, (0, -body_length - 0.02, 0.3), sides=10, stacks=6), palette.light)
    for side, lean_rad in zip(SIDES, ear_leans_rad):
        ear = ellipsoid((0.07, 0.05, ear_length), (0, 0, ear_length), sides=8, stacks=6)
        ear = ear.rotated("y", side * 0.2).rotated("x", lean_rad)
        mesh.add(ear.moved(shifted(head, x=side * 0.09, y=-0.05, z=0.1)), palette.third)
        mesh.add(ellipsoid(0.045, shifted(head, x=side * 0.16, y=0.1, z=0.06), sides=6, stacks=4), palette.dark)
        mesh.add(ellipsoid((0.15, 0.26, 0.24), (side * 0.22, -body_length * 0.45, 0.24), 10, 6), palette.main)
        mesh.add(ellipsoid((0.08, 0.28, 0.06), (side * 0.24, -body_length * 0.25, 0.06), 8, 5), palette.second)
        paw = (side * 0.13, body_length * 0.85, 0.04)
        mesh.add(cylinder((side * 0.13, body_length * 0.65, 0.4), paw, 0.09, 0.06, sides=8), palette.main)
