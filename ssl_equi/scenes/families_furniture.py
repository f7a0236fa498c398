"""Object families: furniture and buildings. See `families_household` for the conventions of a family."""

import numpy as np
from numpy.random import Generator

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import box, cylinder, ellipsoid, shifted

PI = np.pi
SIDES = (-1, 1)


def chair(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Chair with a solid or slatted back and no, one or two armrests."""
    width = rng.uniform(0.8, 1.1)
    depth = rng.uniform(0.75, 1.0)
    seat_height = rng.uniform(0.7, 1.0)
    back_height = rng.uniform(0.8, 1.3)
    back_lean_rad = rng.uniform(0, 0.25)
    leg_radius = rng.uniform(0.04, 0.075)
    slats = rng.choice([0, 3, 4, 5], p=[0.5, 0.2, 0.15, 0.15])
    arm_sides = [(), (1,), SIDES][rng.choice(3, p=[0.4, 0.25, 0.35])]

    mesh.add(box((width, depth, 0.09), (0, 0, seat_height)), palette.main)
    leg_x, leg_y = width / 2 - leg_radius, depth / 2 - leg_radius
    for side in SIDES:
        for end in SIDES:
            top = np.array([side * leg_x, end * leg_y, seat_height])
            mesh.add(cylinder(top * (1.05, 1.05, 0), top, leg_radius, sides=8), palette.second)
    if slats:
        back = [(box((0.08, 0.06, back_height), (x, 0, back_height / 2)), palette.second)
                for x in np.linspace(-0.5, 0.5, slats) * (width - 0.1)]
        back.append((box((width, 0.08, 0.2), (0, 0, back_height)), palette.main))
    else:
        back = [(box((width, 0.09, back_height), (0, 0, back_height / 2)), palette.main)]
    for part, color in back:
        mesh.add(part.rotated("x", back_lean_rad).moved((0, 0.04 - depth / 2, seat_height)), color)
    for side in arm_sides:
        mesh.add(box((0.09, depth * 0.9, 0.07), (side * width / 2, 0, seat_height + 0.35)), palette.third)
        post_center = (side * width / 2, depth * 0.35, seat_height + 0.18)
        mesh.add(box((0.07, 0.07, 0.34), post_center), palette.second)


def sofa(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Corner sofa: the long seat (chaise) juts out on the right, two or three cushions."""
    width = rng.uniform(1.7, 2.4)
    depth = rng.uniform(0.75, 0.95)
    seat_height = rng.uniform(0.35, 0.5)
    back_height = rng.uniform(0.4, 0.65)
    chaise_length = rng.uniform(0.5, 0.9)
    has_right_arm = rng.random() < 0.6
    cushions = rng.integers(2, 4)
    arm = 0.2

    seat_z = seat_height / 2 + 0.1
    mesh.add(box((width, depth, seat_height), (0, 0, seat_z)), palette.main)
    mesh.add(box((width, arm, back_height), (0, (arm - depth) / 2, seat_height + back_height / 2)), palette.main)
    chaise_width = width * 0.36
    chaise_center = ((width - chaise_width) / 2, (depth + chaise_length) / 2, seat_z)
    mesh.add(box((chaise_width, chaise_length, seat_height), chaise_center), palette.main)
    for side in SIDES if has_right_arm else (-1,):
        mesh.add(box((arm, depth, 0.3), (side * (width - arm) / 2, 0, seat_height + 0.1)), palette.second)
    for index in range(cushions):
        x = ((index + 0.5) / cushions - 0.5) * (width - 2 * arm)
        cushion = box((width / cushions * 0.75, 0.14, 0.34)).rotated("x", 0.25)
        color = palette.second if index % 2 else palette.third
        mesh.add(cushion.moved((x, 0.3 - depth / 2, seat_height + 0.3)), color)
    for side in SIDES:
        mesh.add(box((0.08, depth * 0.9, 0.1), (side * width * 0.45, 0, 0.05)), palette.dark)


def bed(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Bed with its headboard behind, one or two pillows, a blanket and a night stand on the right."""
    width = rng.uniform(1.0, 1.6)
    length = 2.0
    frame_height = rng.uniform(0.3, 0.5)
    headboard_height = rng.uniform(0.6, 1.1)
    pillows = 1 if width < 1.25 else 2

    mesh.add(box((width, length, frame_height / 2), (0, 0, frame_height / 2)), palette.main)
    mesh.add(box((width * 0.95, length * 0.97, 0.22), (0, 0, frame_height)), palette.light)
    mesh.add(box((width * 0.99, length * 0.7, 0.14), (0, 0.28, frame_height + 0.09)), palette.second)
    headboard_size = (width * 1.05, 0.1, headboard_height + 0.2)
    mesh.add(box(headboard_size, (0, -length / 2 - 0.04, headboard_height / 2 + 0.1)), palette.third)
    footboard_size = (width * 1.05, 0.08, headboard_height / 2)
    mesh.add(box(footboard_size, (0, length / 2 + 0.04, headboard_height / 4 + 0.1)), palette.third)
    for index in range(pillows):
        x = ((index + 0.5) / pillows - 0.5) * width * 0.9
        pillow = ellipsoid((width * 0.36 / pillows, 0.2, 0.1), (x, 0.25 - length / 2, frame_height + 0.17), 12, 6)
        mesh.add(pillow, palette.fourth)
    stand_center = np.array([width / 2 + 0.25, 0.2 - length / 2, 0.25])
    mesh.add(box((0.36, 0.36, 0.5), stand_center), palette.fifth)
    mesh.add(box((0.28, 0.02, 0.16), shifted(stand_center, y=0.18, z=0.08)), palette.light)


def stairs(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Flight of stairs that rises towards the back, with a railing on the right."""
    steps = int(rng.integers(4, 8))
    length = 1.6
    total_height = rng.uniform(0.8, 1.3)
    width = rng.uniform(0.6, 0.9)
    railing_height = 0.45
    tread, rise = length / steps, total_height / steps
    railing_x = width / 2 - 0.04

    for step in range(steps):
        top = rise * (step + 1)
        y = length / 2 - tread * (step + 0.5)
        mesh.add(box((width, tread, top), (0, y, top / 2)), palette.second if step % 2 else palette.main)
        if step % 2 == 0:
            post = cylinder((railing_x, y, top), (railing_x, y, top + railing_height), 0.03, sides=6)
            mesh.add(post, palette.dark)
    front = (railing_x, (length - tread) / 2, rise + railing_height)
    back = (railing_x, (tread - length) / 2, total_height + railing_height)
    mesh.add(cylinder(front, back, 0.045, sides=8), palette.third)
