"""Object families: furniture and buildings. See `families_household` for the conventions of a family."""

import numpy as np
from numpy.random import Generator

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import arc, box, cylinder, ellipsoid, prism, shifted

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
        back = [
            (box((0.08, 0.06, back_height), (x, 0, back_height / 2)), palette.second)
            for x in np.linspace(-0.5, 0.5, slats) * (width - 0.1)
        ]
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
        # A little outwards and forwards: two faces of different colours in one plane would flicker.
        mesh.add(box((arm, depth, 0.3), (side * ((width - arm) / 2 + 0.02), 0.02, seat_height + 0.1)), palette.second)
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


def desk(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Writing desk: drawers on the right, two legs on the left, a raised board behind, a screen on the left."""
    width = rng.uniform(1.4, 1.9)
    depth = rng.uniform(0.7, 1.0)
    height = rng.uniform(0.75, 1.05)
    drawer_width = width * rng.uniform(0.28, 0.4)
    drawers = rng.integers(2, 5)
    screen_width = width * rng.uniform(0.3, 0.45)

    mesh.add(box((width, depth, 0.08), (0, 0, height)), palette.main)
    drawer_x = width / 2 - drawer_width / 2 - 0.03
    mesh.add(box((drawer_width, depth * 0.92, height * 0.9), (drawer_x, 0, height * 0.52)), palette.second)
    for index in range(drawers):
        z = height * (0.12 + 0.82 * (index + 0.5) / drawers)
        front_size = (drawer_width * 0.85, 0.03, height * 0.75 / drawers)
        mesh.add(box(front_size, (drawer_x, depth * 0.47, z)), palette.third)
        mesh.add(box((0.14, 0.05, 0.04), (drawer_x, depth * 0.5, z)), palette.dark)
    for end in SIDES:
        leg_center = (0.06 - width / 2, end * (depth / 2 - 0.06), height / 2)
        mesh.add(box((0.08, 0.08, height), leg_center), palette.dark)
    mesh.add(box((width, 0.05, 0.2), (0, 0.03 - depth / 2, height + 0.12)), palette.main)
    screen_center = (-width * 0.22, -depth * 0.2, height + 0.38)
    mesh.add(box((0.1, 0.08, 0.2), shifted(screen_center, z=-0.25)), palette.dark)
    mesh.add(box((screen_width, 0.05, 0.36), screen_center), palette.dark)
    mesh.add(box((screen_width * 0.9, 0.02, 0.3), shifted(screen_center, y=0.03)), palette.fourth)


def piano(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Upright piano with its keyboard in front, a music sheet and mostly a stool."""
    width = rng.uniform(1.1, 1.4)
    depth = rng.uniform(0.35, 0.5)
    height = rng.uniform(1.0, 1.3)
    has_stool = rng.random() < 0.7
    black_keys = 9
    keyboard_z = height * 0.52

    mesh.add(box((width, depth, height), (0, 0, height / 2)), palette.main)
    mesh.add(box((width * 1.04, depth * 1.1, 0.06), (0, 0, height + 0.03)), palette.second)
    mesh.add(box((width, 0.36, 0.12), (0, depth / 2 + 0.17, keyboard_z)), palette.main)
    mesh.add(box((width * 0.9, 0.24, 0.03), (0, depth / 2 + 0.2, keyboard_z + 0.07)), palette.light)
    for key in range(black_keys):
        x = ((key + 0.5) / black_keys - 0.5) * width * 0.9
        mesh.add(box((0.04, 0.13, 0.03), (x, depth / 2 + 0.15, keyboard_z + 0.1)), palette.dark)
    for side in SIDES:
        mesh.add(box((0.1, 0.1, height / 2), (side * width * 0.46, depth / 2 + 0.28, height / 4)), palette.second)
    sheet = box((width * 0.45, 0.05, 0.3), (width * 0.15, depth / 2 + 0.03, height * 0.78))
    mesh.add(sheet, palette.third)
    mesh.add(box((0.14, 0.14, 0.25), (-width * 0.35, 0, height + 0.17)), palette.fourth)
    if has_stool:
        stool_y = depth / 2 + 0.7
        mesh.add(box((width * 0.45, 0.3, 0.08), (-width * 0.1, stool_y, 0.42)), palette.third)
        mesh.add(box((width * 0.4, 0.1, 0.4), (-width * 0.1, stool_y, 0.2)), palette.dark)


def bookshelf(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Low cabinet with a door and, over its left part, open shelves with rows of books; a vase on the right."""
    width = rng.uniform(1.1, 1.5)
    cabinet_height = rng.uniform(0.45, 0.65)
    cabinet_depth = rng.uniform(0.5, 0.65)
    shelf_width = width * rng.uniform(0.5, 0.62)
    shelf_height = rng.uniform(0.9, 1.2)
    shelves = int(rng.integers(2, 4))
    shelf_depth, board = 0.3, 0.06

    mesh.add(box((width, cabinet_depth, cabinet_height), (0, 0, cabinet_height / 2)), palette.main)
    door_size = (width * 0.42, 0.03, cabinet_height * 0.8)
    mesh.add(box(door_size, (-width * 0.24, cabinet_depth / 2, cabinet_height / 2)), palette.second)
    mesh.add(box(door_size, (width * 0.24, cabinet_depth / 2, cabinet_height / 2)), palette.third)
    left, right = -width / 2, shelf_width - width / 2
    shelf_x, shelf_y = (left + right) / 2, (shelf_depth - cabinet_depth) / 2
    back_size = (shelf_width, 0.04, shelf_height)
    back_center = (shelf_x, 0.02 - cabinet_depth / 2, cabinet_height + shelf_height / 2)
    mesh.add(box(back_size, back_center), palette.second)
    for x in (left + board / 2, right - board / 2):
        side_center = (x, shelf_y, cabinet_height + shelf_height / 2)
        mesh.add(box((board, shelf_depth, shelf_height), side_center), palette.main)
    pitch = shelf_height / shelves
    for shelf in range(shelves):
        floor_z = cabinet_height + shelf * pitch
        board_center = (shelf_x, shelf_y, floor_z + pitch)
        mesh.add(box((shelf_width, shelf_depth, board), board_center), palette.main)
        x = left + board
        row_end = right - board - rng.uniform(0.05, 0.4) * shelf_width
        while x < row_end:
            thickness = rng.uniform(0.06, 0.12)
            book_height = pitch * rng.uniform(0.55, 0.85)
            book_center = (x + thickness / 2, shelf_y + 0.03, floor_z + book_height / 2)
            book = box((thickness * 0.92, shelf_depth * 0.8, book_height), book_center)
            mesh.add(book, palette[rng.integers(len(palette))])
            x += thickness
    vase_center = np.array([width * 0.3, 0, cabinet_height])
    mesh.add(ellipsoid((0.13, 0.13, 0.2), shifted(vase_center, z=0.18), sides=12, stacks=8), palette.fifth)
    mesh.add(cylinder(vase_center, shifted(vase_center, z=0.44), 0.06, sides=10), palette.fifth)


def house(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """House with a gable roof: door and porch in front, chimney, and a lower annex on the left."""
    width = rng.uniform(0.8, 1.1)
    depth = rng.uniform(0.9, 1.3)
    wall_height = rng.uniform(0.6, 0.9)
    roof_rise = rng.uniform(0.35, 0.6)
    annex_width = rng.uniform(0.45, 0.7)
    annex_depth = depth * rng.uniform(0.45, 0.65)
    annex_height = wall_height * rng.uniform(0.5, 0.7)

    mesh.add(box((width, depth, wall_height), (0, 0, wall_height / 2)), palette.main)
    eave = width * 0.56
    roof = [(-eave, wall_height), (eave, wall_height), (0, wall_height + roof_rise)]
    mesh.add(prism(roof, depth * 1.1, "y"), palette.second)
    chimney_center = (width * 0.28, -depth * 0.25, wall_height + roof_rise * 0.75)
    mesh.add(box((0.18, 0.18, roof_rise), chimney_center), palette.third)
    door_x = -width * 0.2
    mesh.add(box((0.24, 0.04, 0.48), (door_x, depth / 2, 0.24)), palette.fourth)
    mesh.add(box((0.4, 0.34, 0.05), (door_x, depth / 2 + 0.17, 0.55)), palette.second)
    for side in SIDES:
        mesh.add(box((0.05, 0.05, 0.55), (door_x + side * 0.17, depth / 2 + 0.3, 0.27)), palette.light)
    mesh.add(box((0.26, 0.04, 0.24), (width * 0.25, depth / 2, wall_height * 0.6)), palette.dark)
    for end in SIDES:
        mesh.add(box((0.04, 0.24, 0.22), (width / 2, end * depth * 0.25, wall_height * 0.6)), palette.dark)
    annex_x = -(width + annex_width) / 2
    annex_y = -depth * 0.15
    mesh.add(box((annex_width, annex_depth, annex_height), (annex_x, annex_y, annex_height / 2)), palette.fifth)
    roof_size = (annex_width * 1.1, annex_depth * 1.1, 0.08)
    mesh.add(box(roof_size, (annex_x, annex_y, annex_height + 0.04)), palette.third)


def mailbox(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Letter box on a post: rounded top, door in front, raised flag on the right, newspaper tube on the left."""
    length = rng.uniform(0.9, 1.3)
    half_width = rng.uniform(0.25, 0.35)
    wall_height = rng.uniform(0.2, 0.35)
    post_height = rng.uniform(0.6, 0.9)
    flag_height = rng.uniform(0.3, 0.45)

    top = arc((0, wall_height), (half_width, half_width), 0, PI, 10)
    section = np.concatenate([[(half_width, 0)], top, [(-half_width, 0)]])
    mesh.add(prism(section, length, "y", (0, 0, post_height), smooth=True), palette.main)
    mesh.add(prism(section * 0.9, 0.04, "y", (0, length / 2 + 0.01, post_height + 0.02)), palette.second)
    mesh.add(box((0.1, 0.08, 0.06), (0, length / 2 + 0.05, post_height + wall_height + 0.1)), palette.dark)
    mesh.add(box((0.14, 0.14, post_height), (0, -length * 0.15, post_height / 2)), palette.third)
    mesh.add(box((half_width * 2.4, 0.4, 0.06), (0, -length * 0.15, 0.03)), palette.third)
    flag_x, flag_z = half_width + 0.04, post_height + wall_height
    mesh.add(box((0.05, 0.08, flag_height), (flag_x, 0.1, flag_z + flag_height / 2)), palette.fourth)
    mesh.add(box((0.05, 0.32, 0.18), (flag_x, 0.22, flag_z + flag_height)), palette.fourth)
    tube_start = np.array([-half_width - 0.12, -length * 0.3, post_height - 0.1])
    mesh.add(cylinder(tube_start, shifted(tube_start, y=length * 0.7), 0.14, sides=12), palette.fifth)
