"""Object families: things found about the house.

Like in every family file, a function draws the dimensions of one instance, then adds its parts in the units of these
dimensions (the finished mesh is rescaled). z is up and the front of an object looks along +y.
"""

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import (
    Part,
    arc,
    axis_rotation,
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


def teapot(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Round pot with a lid, its spout in front and its handle behind."""
    body_radius = 0.5
    body_height = rng.uniform(0.75, 1.1)
    spout_reach = rng.uniform(0.5, 0.75)
    handle_radius = rng.uniform(0.3, 0.4)
    half_height = body_height / 2

    mesh.add(ellipsoid((body_radius, body_radius, half_height), (0, 0, half_height)), palette.main)
    mesh.add(lathe([(0.34, 0), (0.37, 0.08)]), palette.second)
    lid = [(0.3, -0.1), (0.28, 0.02), (0.05, 0.08), (0.08, 0.17), (0, 0.2)]
    mesh.add(lathe(lid).moved((0, 0, body_height)), palette.second)
    along = np.linspace(0, 1, 8)
    spout = np.stack([0.36 + spout_reach * along, half_height * (0.6 + 1.3 * along**1.7)], axis=-1)
    mesh.add(tube(in_plane(spout, "yz"), 0.16 - 0.1 * along, sides=10), palette.main)
    handle = arc((-0.42, half_height + 0.1), (handle_radius, handle_radius), PI - 1.9, PI + 1.9)
    mesh.add(tube(in_plane(handle, "yz"), 0.055), palette.third)


def wateringcan(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Can with a long spout that ends in a rose, a handle behind and a filling hole."""
    body_height = rng.uniform(0.6, 0.9)
    body_radius = rng.uniform(0.38, 0.55)
    spout_reach = rng.uniform(0.7, 1.0)
    spout_rise = rng.uniform(1.0, 1.3)
    handle_radius = rng.uniform(0.32, 0.45)

    body = [(body_radius, 0), (body_radius * 0.95, body_height), (0, body_height * 0.97)]
    mesh.add(lathe(body, sides=24), palette.main)
    mesh.add(lathe([(body_radius * 1.02, 0), (body_radius * 1.02, 0.06)], sides=24), palette.second)
    hole_center = np.array([0, -body_radius * 0.35, body_height])
    mesh.add(cylinder(hole_center, shifted(hole_center, z=0.02), body_radius * 0.35), palette.dark)
    spout_end = np.array([0, body_radius + spout_reach, body_height * spout_rise])
    mesh.add(cylinder((0, body_radius * 0.7, body_height * 0.2), spout_end, 0.09, 0.05), palette.main)
    mesh.add(cylinder(spout_end, shifted(spout_end, y=0.1, z=0.1), 0.05, 0.18), palette.second)
    handle = arc((-body_radius * 0.8, body_height * 0.8), (handle_radius, handle_radius), 0.15 * PI, 1.6 * PI, 14)
    mesh.add(tube(in_plane(handle, "yz"), 0.05), palette.third)


def faucet(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Kitchen tap: column, bent spout with a mouthpiece, lever on the right."""
    column_height = rng.uniform(0.5, 1.0)
    bend_radius = rng.uniform(0.28, 0.45)
    bend_end_rad = rng.uniform(-0.1, 0.1) * PI
    lever_reach = rng.uniform(0.35, 0.6)
    lever_height = rng.uniform(0.35, 0.55)

    mesh.add(lathe([(0.24, 0), (0.24, 0.08), (0.12, 0.14), (0.1, column_height)], sides=16), palette.main)
    bend = arc((bend_radius, column_height), (bend_radius, bend_radius), PI, bend_end_rad, 14)
    spout = in_plane(np.concatenate([[(0, column_height * 0.8)], bend]), "yz")
    mesh.add(tube(spout, 0.09, sides=10), palette.main)
    mesh.add(ellipsoid((0.11, 0.11, 0.08), spout[-1], sides=10, stacks=6), palette.third)
    lever_end = np.array([lever_reach, -0.05, lever_height])
    mesh.add(cylinder((0, 0, 0.3), lever_end * (0.5, 1, 1), 0.07), palette.second)
    mesh.add(cylinder(lever_end * (0.4, 1, 1), shifted(lever_end, x=0.1, z=0.15), 0.05, 0.07), palette.second)


def desklamp(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Jointed lamp: foot, two arms, a conical shade with its bulb."""
    lower_length = rng.uniform(0.7, 1.1)
    upper_length = rng.uniform(0.6, 0.95)
    lower_lean_rad = rng.uniform(0.05, 0.5)
    upper_lean_rad = rng.uniform(0.6, 1.2)
    shade_dip_rad = rng.uniform(0.3, 0.8)
    shade_radius = rng.uniform(0.26, 0.4)
    shade_length = rng.uniform(0.3, 0.45)

    foot = [(0.42, 0), (0.4, 0.09), (0, 0.11)]
    mesh.add(lathe(foot), palette.main)
    mesh.add(cylinder((0.18, 0.22, 0.08), (0.18, 0.22, 0.15), 0.06, sides=10), palette.second)
    joint = np.array([0, -lower_length * np.sin(lower_lean_rad), 0.1 + lower_length * np.cos(lower_lean_rad)])
    head = joint + upper_length * np.array([0, np.sin(upper_lean_rad), np.cos(upper_lean_rad)])
    mesh.add(cylinder((0, 0, 0.08), joint, 0.045, sides=8), palette.dark)
    mesh.add(cylinder(joint, head, 0.045, sides=8), palette.dark)
    mesh.add(ellipsoid(0.085, joint, sides=10, stacks=6), palette.second)
    forward = np.array([0, np.cos(shade_dip_rad), -np.sin(shade_dip_rad)])
    mesh.add(cylinder(head - 0.1 * forward, head + 0.14 * forward, 0.1, 0.13), palette.second)
    shade = cylinder(
        head + 0.12 * forward, head + (0.12 + shade_length) * forward, 0.13, shade_radius, sides=18, caps=False
    )
    mesh.add(shade, palette.main)
    mesh.add(ellipsoid(0.12, head + 0.3 * forward, sides=10, stacks=6), palette.light)


def boot(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Boot with its toe in front: foot, shaft with a cuff, sole and heel."""
    shaft_height = rng.uniform(0.5, 1.2)
    foot_length = rng.uniform(0.8, 1.05)
    foot_width = rng.uniform(0.2, 0.27)
    heel_height = rng.uniform(0.06, 0.25)

    section = circle(14)
    # from the toe to the heel: share of the width, place along the foot, height of the middle, half-height
    foot_rings = [
        (0.35, 0.82, 0.16, 0.08),
        (0.95, 0.65, 0.18, 0.12),
        (1.0, 0.4, 0.21, 0.16),
        (0.9, 0.15, 0.28, 0.22),
        (0.85, -0.12, 0.3, 0.24),
        (0.5, -0.24, 0.28, 0.2),
    ]
    foot = [
        in_plane(section * (foot_width * width, half_height) + (0, middle), "xz", foot_length * along)
        for width, along, middle, half_height in foot_rings
    ]
    mesh.add(loft(foot), palette.main)
    shaft_rings = [(0.15, 1.0), (0.3 + 0.4 * shaft_height, 0.9), (0.3 + shaft_height, 1.05)]
    shaft = [in_plane(section * (foot_width, 0.25) * scale + (0, -0.02), "xy", z) for z, scale in shaft_rings]
    mesh.add(loft(shaft), palette.second)
    cuff_heights = (0.22 + shaft_height, 0.32 + shaft_height)
    cuff = [in_plane(section * (foot_width, 0.25) * 1.12 + (0, -0.02), "xy", z) for z in cuff_heights]
    mesh.add(loft(cuff), palette.third)
    mesh.add(box((foot_width * 1.9, 0.75 * foot_length, 0.08), (0, 0.45 * foot_length, 0.02)), palette.dark)
    heel_center = (0, -0.12 * foot_length, 0.02 - heel_height / 2)
    mesh.add(box((foot_width * 1.6, 0.3, heel_height), heel_center), palette.dark)


def camera(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Photo camera: body with a grip on its right, lens, viewfinder hump, dial, shutter button and screen."""
    width = rng.uniform(1.0, 1.4)
    depth = rng.uniform(0.3, 0.45)
    height = rng.uniform(0.6, 0.85)
    lens_length = rng.uniform(0.3, 0.8)
    lens_x = rng.uniform(0.02, 0.15)

    mesh.add(box((width, depth, height)), palette.dark)
    lens_start = np.array([lens_x, depth / 2, -0.03])
    lens_end = shifted(lens_start, y=lens_length)
    mesh.add(cylinder(lens_start, lens_end, height * 0.36, height * 0.4, sides=18), palette.main)
    mesh.add(cylinder(shifted(lens_end, y=-0.1), shifted(lens_end, y=0.01), height * 0.33, sides=18), palette.light)
    mesh.add(box((0.36, depth * 0.8, 0.22), (lens_x, -0.02, height / 2 + 0.1), (0.7, 0.8)), palette.second)
    mesh.add(box((0.22, depth * 1.3, height * 0.95), (0.1 - width / 2, 0.08, 0)), palette.second)
    button_foot = np.array([0.14 - width / 2, 0, height / 2])
    mesh.add(cylinder(button_foot, shifted(button_foot, z=0.08), 0.07), palette.third)
    dial_foot = np.array([width / 2 - 0.18, 0, height / 2])
    mesh.add(cylinder(dial_foot, shifted(dial_foot, z=0.1), 0.13), palette.light)
    mesh.add(box((width * 0.55, 0.03, height * 0.6), (0.05, -depth / 2, 0)), palette.fourth)


def laptop(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Open laptop: keyboard and touch pad towards the user in front, screen leaning back, logo behind it."""
    width = rng.uniform(1.2, 1.5)
    depth = rng.uniform(0.8, 1.0)
    lean_rad = rng.uniform(-0.1, 0.55)

    mesh.add(box((width, depth, 0.07)), palette.main)
    mesh.add(box((width * 0.88, depth * 0.45, 0.02), (0, -0.1, 0.04)), palette.dark)
    mesh.add(box((width * 0.3, depth * 0.25, 0.02), (0, depth * 0.3, 0.04)), palette.second)
    hinge = (0, -depth / 2, 0.03)
    lid = box((width, 0.05, depth), (0, 0, depth / 2))
    screen = box((width * 0.9, 0.02, depth * 0.86), (0, 0.03, depth / 2))
    logo = box((0.22, 0.02, 0.22), (0, -0.03, depth * 0.55))
    for part, color in ((lid, palette.main), (screen, palette.third), (logo, palette.fourth)):
        mesh.add(part.rotated("x", lean_rad).moved(hinge), color)


def mug(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Mug with its handle on the right and a printed band that covers part of the front."""
    height = rng.uniform(0.9, 1.4)
    top_radius = rng.uniform(0.38, 0.52)
    base_share = rng.uniform(0.7, 0.95)
    handle_height = rng.uniform(0.58, 0.64) * height
    handle_radius = rng.uniform(0.27, 0.32) * height
    handle_thickness = rng.uniform(0.07, 0.1)
    print_end_rad = rng.uniform(0.6, 0.9) * PI
    wall = 0.05
    base_radius = top_radius * base_share

    inner_base, inner_top = base_radius - wall, top_radius - wall
    vessel = [(0, 0), (base_radius, 0), (top_radius, height), (inner_top, height), (inner_base, 0.08), (0, 0.08)]
    mesh.add(lathe(vessel, sides=24), palette.main)
    handle = arc((top_radius * 0.9, handle_height), (handle_radius * 1.6, handle_radius), -PI / 2 - 0.2, PI / 2 + 0.2)
    mesh.add(tube(in_plane(handle, "xz"), handle_thickness), palette.second)
    mesh.add(_band(base_radius, top_radius, height, 0.25, print_end_rad), palette.third)
    mesh.add(cylinder((0, 0, 0.09), (0, 0, height * 0.8), inner_base * 0.9, inner_top * 0.95), palette.fourth)


def _band(base_radius: float, top_radius: float, height: float, start_rad: float, end_rad: float) -> Part:
    """Thin sheet on the outside of a cone, from a quarter to 70 % of its height."""
    angles = np.linspace(start_rad, end_rad, 10) + PI / 2
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rings = []
    for share in (0.25, 0.7):
        radius = base_radius + (top_radius - base_radius) * share
        sheet = np.concatenate([direction * (radius + 0.015), direction[::-1] * (radius - 0.015)])
        rings.append(in_plane(sheet, "xy", height * share))
    return loft(rings, caps=False)


def pitcher(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Jug with a lip drawn out to the front, a tall handle behind and a stripe around its belly."""
    height = rng.uniform(1.0, 1.5)
    belly_radius = rng.uniform(0.38, 0.48)
    neck_share = rng.uniform(0.5, 0.7)
    lip_length = rng.uniform(0.14, 0.22)
    handle_reach = rng.uniform(0.45, 0.6)
    neck_radius = belly_radius * neck_share

    outside = [(belly_radius * 0.8, 0), (belly_radius, height * 0.3), (neck_radius, height * 0.75)]
    inside = [(neck_radius * 1.12, height), (neck_radius * 0.9, height * 0.75), (0, height * 0.7)]
    vessel = lathe([(0, 0), *outside, (neck_radius * 1.2, height), *inside], sides=24)
    vertices = vessel.vertices.copy()
    on_lip = (vertices[:, 2] > 0.9 * height) & (vertices[:, 1] > 0)
    vertices[on_lip, 1] += lip_length * (vertices[on_lip, 1] / neck_radius) ** 3
    mesh.add(replace(vessel, vertices=vertices), palette.main)
    stripe = [(1.01, 0.22), (1.04, 0.3), (0.98, 0.38)]
    mesh.add(lathe([(belly_radius * r, height * z) for r, z in stripe], sides=24, caps=False), palette.second)
    along = np.linspace(0, 1, 12)
    handle_y = 0.08 - neck_radius - handle_reach * np.sin(along * PI) - 0.2 * (1 - along)
    handle = np.stack([handle_y, height * (0.25 + 0.68 * along)], axis=-1)
    mesh.add(tube(in_plane(handle, "yz"), 0.07), palette.third)


def spraybottle(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Flat bottle with a spray head: nozzle in front, trigger below it, a label in front."""
    body_height = rng.uniform(0.7, 0.95)
    half_width = rng.uniform(0.2, 0.26)
    half_depth = rng.uniform(0.34, 0.44)
    head_length = rng.uniform(0.6, 0.8)

    section = circle(16) * (half_width, half_depth)
    # height, size of the section
    body = [(0, 0.95), (0.05, 1), (body_height * 0.6, 1), (body_height * 0.85, 0.5), (body_height, 0.35)]
    mesh.add(loft([in_plane(section * scale, "xy", z) for z, scale in body]), palette.main)
    label_size = (half_width * 1.3, 0.05, body_height * 0.4)
    mesh.add(box(label_size, (0, half_depth, body_height * 0.35)), palette.second)
    mesh.add(cylinder((0, 0, body_height), (0, 0, body_height + 0.15), 0.12), palette.third)
    head_z = body_height + 0.27
    head_front = head_length * 0.7
    mesh.add(box((0.2, head_length, 0.24), (0, head_front - head_length / 2, head_z), (0.9, 0.75)), palette.third)
    nozzle_start = (0, head_front - 0.02, head_z + 0.02)
    mesh.add(cylinder(nozzle_start, shifted(nozzle_start, y=0.14), 0.08, 0.06, sides=10), palette.light)
    trigger = [(0.24, head_z - 0.08), (0.4, head_z - 0.26), (0.34, head_z - 0.55)]
    mesh.add(tube(in_plane(trigger, "yz"), 0.055, sides=6), palette.fourth)


def guitar(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Electric guitar, strings in front: body with one cutaway and a pick guard, all tuners on one side."""
    half_width = rng.uniform(0.4, 0.5)
    waist = rng.uniform(0.25, 0.4)
    cutaway = rng.uniform(0.3, 0.5)
    thickness = rng.uniform(0.16, 0.28)
    neck_length = rng.uniform(0.6, 0.8)
    head_length = rng.uniform(0.3, 0.4)

    angles = np.arange(28) * (2 * PI / 28)
    along = np.cos(angles)
    across = np.sin(angles) * half_width * (1 - waist * np.exp(-(((along - 0.15) / 0.28) ** 2)))
    across = np.where(along > 0.2, 0.78 * across, across)
    across = np.where((along > 0.35) & (across > 0), cutaway * across, across)
    outline = np.stack([across, 0.55 * along], axis=-1)
    mesh.add(prism(outline, thickness, "y", smooth=True), palette.main)
    front = thickness / 2
    mesh.add(prism(0.9 * outline, 0.04, "y", (0, front, 0)), palette.fourth)
    guard = [(0.08, 0.12), (0.3, 0.05), (0.34, -0.3), (0.08, -0.42), (-0.1, -0.2)]
    mesh.add(prism(guard, 0.03, "y", (0, front + 0.03, 0)), palette.second)
    for pickup_z in (0.05, -0.15):
        mesh.add(box((0.2, 0.05, 0.06), (0, front + 0.05, pickup_z)), palette.dark)
    mesh.add(box((0.26, 0.06, 0.07), (0, front + 0.05, -0.33)), palette.light)
    neck_start, neck_end = 0.1, 0.45 + neck_length
    neck_center = (0, front, (neck_start + neck_end) / 2)
    mesh.add(box((0.11, 0.09, neck_end - neck_start), neck_center), palette.third)
    head = [(-0.06, 0), (0.06, 0), (0.16, head_length), (-0.2, head_length * 0.8)]
    mesh.add(prism(head, 0.08, "y", (0, front - 0.03, neck_end)), palette.main)
    for tuner in range(3):
        z = neck_end + head_length * (0.2 + 0.25 * tuner)
        mesh.add(cylinder((-0.24, front - 0.03, z), (-0.05, front - 0.03, z), 0.035, sides=6), palette.light)


def parasol(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Cantilever garden parasol: foot and mast behind, an arm that holds a tilted canopy with coloured panels."""
    canopy_radius = rng.uniform(0.6, 0.8)
    canopy_depth = rng.uniform(0.25, 0.4)
    mast_height = rng.uniform(1.2, 1.6)
    tilt_rad = rng.uniform(0.1, 0.4)
    accent_panels = rng.integers(2, 4)
    panels = 8

    canopy_center = np.array([0, 0.15, mast_height - 0.2])
    mast_y = -canopy_radius * 0.95
    mesh.add(box((0.6, 0.4, 0.1), (0, mast_y, 0.05)), palette.dark)
    mesh.add(cylinder((0, mast_y, 0.1), (0, mast_y, mast_height), 0.05, sides=8), palette.third)
    arm = [(0, mast_y - 0.12, mast_height - 0.15), (0, mast_y, mast_height), shifted(canopy_center, z=canopy_depth)]
    mesh.add(tube(np.array(arm), 0.045, sides=8), palette.third)
    crank = cylinder((0, mast_y, mast_height * 0.5), (0.2, mast_y, mast_height * 0.5), 0.04, sides=8)
    mesh.add(crank, palette.fourth)
    along = np.linspace(0, 1, 5)
    radius = canopy_radius * np.sin(along * PI / 2)
    drop = canopy_depth * (1 - along**1.7)
    outline = np.concatenate([np.stack([radius, drop], -1), np.stack([radius, drop - 0.03], -1)[::-1]])
    for panel in range(panels):
        edges = [in_plane(outline, "xz").dot(axis_rotation("z", 2 * PI * (panel + end) / panels).T) for end in (0, 1)]
        sheet = loft(edges, caps=False).faceted().rotated("x", -tilt_rad).moved(canopy_center)
        mesh.add(sheet, palette.second if panel < accent_panels else palette.main)
