"""Object families: vehicles and whatever else has wheels, tracks, wings or sails.

See `families_household` for the conventions of a family; vehicles drive, fly and sail along +y.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import (
    box,
    cylinder,
    ellipsoid,
    lathe,
    shifted,
    torus,
    tube,
)

PI = np.pi
SIDES = (-1, 1)


def _add_wheel(
    mesh: MeshBuilder, center: ArrayLike, radius: float, width: float, tire: ArrayLike, hub: ArrayLike
) -> None:
    """Wheel that turns about x; the hub shows on both faces."""
    middle = np.asarray(center, dtype=np.float64)
    half_axle = np.array([width / 2, 0, 0])
    mesh.add(cylinder(middle - half_axle, middle + half_axle, radius), tire)
    mesh.add(cylinder(middle - 1.1 * half_axle, middle + 1.1 * half_axle, radius * 0.5, sides=10), hub)


def pickup(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Lorry: a cab in front, behind it a closed box or an open bed, two or three axles."""
    length = 2.4
    width = rng.uniform(0.8, 1.0)
    chassis_height = rng.uniform(0.17, 0.25)
    cab_length = rng.uniform(0.3, 0.45) * length
    cab_height = rng.uniform(0.55, 0.8)
    bonnet_length = rng.uniform(0, 0.35)
    has_box = rng.random() < 0.5
    box_height = rng.uniform(0.7, 1.0)
    wheel_radius = rng.uniform(0.2, 0.28)
    axles = [(-0.36, 0.36), (-0.36, -0.12, 0.36)][rng.integers(2)]
    bed_length = length / 2

    mesh.add(box((width, length, chassis_height), (0, 0, 0.44)), palette.second)
    cab_center = np.array([0, length / 2 - cab_length / 2 - bonnet_length, 0.4 + cab_height / 2])
    mesh.add(box((width * 0.96, cab_length, cab_height), cab_center, (0.9, 0.7), (0, -0.08)), palette.main)
    window = box((width * 0.7, 0.06, cab_height * 0.35), (0, cab_length * 0.42, cab_height * 0.18))
    mesh.add(window.moved(cab_center), palette.dark)
    for side in SIDES:
        mesh.add(box((0.14, 0.05, 0.1), (side * width * 0.35, length / 2, 0.47)), palette.light)
    bed_y = (bed_length - length) / 2
    if has_box:
        mesh.add(box((width * 1.05, bed_length, box_height), (0, bed_y, 0.5 + box_height / 2)), palette.third)
    else:
        for side in SIDES:
            mesh.add(box((0.06, bed_length, 0.35), (side * width * 0.48, bed_y, 0.62)), palette.third)
        mesh.add(box((width, 0.06, 0.35), (0, 0.03 - length / 2, 0.62)), palette.third)
    for axle in axles:
        for side in SIDES:
            center = (side * width / 2, axle * length, wheel_radius)
            _add_wheel(mesh, center, wheel_radius, 0.18, palette.dark, palette.light)


def tractor(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Farm tractor: big wheels behind, small ones in front, cab, bonnet and an exhaust beside the middle."""
    rear_radius = rng.uniform(0.42, 0.55)
    front_radius = rng.uniform(0.2, 0.28)
    half_track = rng.uniform(0.4, 0.5)
    cab_height = rng.uniform(0.6, 0.8)

    for side in SIDES:
        rear = np.array([side * half_track, -0.4, rear_radius])
        tread = np.array([0.12, 0, 0])
        mesh.add(cylinder(rear - tread, rear + tread, rear_radius, sides=18), palette.dark)
        mesh.add(cylinder(rear - 1.1 * tread, rear + 1.1 * tread, rear_radius * 0.5), palette.second)
        front = (side * half_track * 0.8, 0.7, front_radius)
        _add_wheel(mesh, front, front_radius, 0.16, palette.dark, palette.second)
    mesh.add(box((0.5, 0.9, 0.25), (0, -0.2, rear_radius)), palette.main)
    mesh.add(box((0.4, 0.9, 0.36), (0, 0.45, front_radius + 0.3)), palette.main)
    cab_z = rear_radius + 0.15 + cab_height / 2
    mesh.add(box((0.6, 0.55, cab_height), (0, -0.35, cab_z), (0.85, 0.85)), palette.third)
    mesh.add(box((0.62, 0.6, 0.06), (0, -0.35, cab_z + cab_height / 2)), palette.main)
    exhaust_foot = np.array([0.12, 0.6, front_radius + 0.4])
    mesh.add(cylinder(exhaust_foot, shifted(exhaust_foot, z=0.55), 0.04), palette.dark)


def excavator(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Digger on tracks: cab on the left, boom, stick and bucket in front, counterweight behind."""
    boom_angle_rad = rng.uniform(0.5, 1.0)
    stick_angle_rad = rng.uniform(0.3, 0.9)
    bucket_curl_rad = rng.uniform(0, 0.8)
    boom_length, stick_length = 0.9, 0.7

    for side in SIDES:
        mesh.add(box((0.22, 1.2, 0.26), (side * 0.35, 0, 0.13)), palette.dark)
    mesh.add(box((0.7, 0.8, 0.35), (0, -0.15, 0.45)), palette.main)
    mesh.add(box((0.3, 0.4, 0.45), (-0.2, 0.1, 0.8), (0.9, 0.8)), palette.second)
    mesh.add(box((0.3, 0.25, 0.2), (0.2, -0.45, 0.7)), palette.fourth)
    foot = np.array([0.12, 0.2, 0.5])
    elbow = foot + boom_length * np.array([0, np.cos(boom_angle_rad), np.sin(boom_angle_rad)])
    tip = elbow + stick_length * np.array([0, np.cos(stick_angle_rad), -np.sin(stick_angle_rad)])
    mesh.add(tube([foot, elbow], [0.11, 0.08], sides=4), palette.main)
    mesh.add(tube([elbow, tip], [0.08, 0.06], sides=4), palette.main)
    bucket = box((0.34, 0.28, 0.25), (0, 0, -0.1), (0.7, 0.6)).rotated("x", -bucket_curl_rad)
    mesh.add(bucket.moved(tip), palette.third)


def satellite(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Space probe: one to three solar panels on the right and one on the left, dish on top, thruster, boom."""
    panels = rng.integers(1, 4)
    dish_radius = rng.uniform(0.25, 0.4)

    mesh.add(box((0.45, 0.45, 0.6)), palette.main)
    for index in range(panels):
        mesh.add(box((0.38, 0.03, 0.5), (0.4 + 0.42 * index, 0, 0.05)), palette.second)
    mesh.add(cylinder((0.2, 0, 0.05), (0.4, 0, 0.05), 0.03), palette.dark)
    mesh.add(box((0.36, 0.03, 0.5), (-0.4, 0, 0.05)), palette.second)
    dish_profile = [(0, 0.35), (0.6, 0.4), (1, 0.52), (0.98, 0.55), (0.55, 0.44), (0, 0.4)]
    dish = [(dish_radius * radius, z) for radius, z in dish_profile]
    mesh.add(lathe(dish, sides=18), palette.light)
    mesh.add(cylinder((0, 0, 0.4), (0, 0, 0.62), 0.02, sides=6), palette.dark)
    mesh.add(cylinder((0, 0.2, -0.1), (0, 0.5, -0.1), 0.1, 0.16), palette.third)
    boom_end = (-0.2, -0.2, -0.8)
    mesh.add(cylinder((-0.1, -0.1, -0.3), boom_end, 0.02, sides=6), palette.dark)
    mesh.add(ellipsoid(0.06, boom_end, sides=8, stacks=5), palette.fourth)


def cannon(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Field gun: barrel that points up to the front, two spoked wheels, trail on the ground behind."""
    elevation_rad = rng.uniform(0.1, 0.5)
    barrel_length = rng.uniform(0.9, 1.2)
    wheel_radius = rng.uniform(0.38, 0.5)

    forward = np.array([0, np.cos(elevation_rad), np.sin(elevation_rad)])
    trunnion = np.array([0, 0, 0.55])
    # distance along the barrel, radius
    barrel = [(-0.45, 0.1), (-0.4, 0.24), (0, 0.2)]
    barrel += [(barrel_length * 0.87, 0.13), (barrel_length * 0.9, 0.17), (barrel_length, 0.17)]
    mesh.add(tube([trunnion + d * forward for d, _ in barrel], [r for _, r in barrel], sides=14), palette.main)
    muzzle = trunnion + barrel_length * forward
    mesh.add(cylinder(muzzle - 0.05 * forward, muzzle + 0.01 * forward, 0.1), palette.dark)
    for side in SIDES:
        hub = (side * 0.32, 0, 0.45)
        mesh.add(torus(wheel_radius, 0.06).rotated("y", PI / 2).moved(hub), palette.second)
        for spoke in range(3):
            bar = box((0.05, 0.06, 2 * wheel_radius)).rotated("x", spoke * PI / 3)
            mesh.add(bar.moved(hub), palette.second)
    mesh.add(cylinder((-0.34, 0, 0.45), (0.34, 0, 0.45), 0.06), palette.third)
    mesh.add(tube([(0, 0, 0.5), (0, -1.1, 0.05)], [0.12, 0.09], sides=6), palette.third)


def wheelbarrow(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Wheelbarrow: flared tray, wheel in front, two shafts that end in handles, two legs."""
    flare = rng.uniform(1.2, 1.5)
    tray_height = rng.uniform(0.3, 0.45)
    wheel_radius = rng.uniform(0.22, 0.3)
    handle_height = rng.uniform(0.6, 0.8)

    tray = box((0.55, 0.7, tray_height), (0, 0, 0.6), (flare, flare), (0, 0.05))
    mesh.add(tray, palette.main)
    load = box((0.5 * flare, 0.65 * flare, 0.03), (0, 0.05, 0.6 + tray_height / 2))
    mesh.add(load, palette.dark)
    axle = np.array([0, 0.75, wheel_radius + 0.05])
    mesh.add(torus(wheel_radius, 0.07).rotated("y", PI / 2).moved(axle), palette.dark)
    mesh.add(cylinder(shifted(axle, x=-0.1), shifted(axle, x=0.1), wheel_radius * 0.6), palette.light)
    for side in SIDES:
        shaft_end = (side * 0.36, -1.1, handle_height)
        shaft = [(side * 0.1, 0.8, wheel_radius + 0.05), (side * 0.25, 0, 0.42), shaft_end]
        mesh.add(tube(shaft, 0.04, sides=6), palette.second)
        mesh.add(cylinder((side * 0.25, -0.3, 0.42), (side * 0.25, -0.4, 0), 0.04, sides=8), palette.second)
        grip = cylinder(shifted(shaft_end, y=0.12, z=-0.05), shifted(shaft_end, y=-0.14, z=0.05), 0.06)
        mesh.add(grip, palette.third)
