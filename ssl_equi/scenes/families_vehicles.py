"""Object families: vehicles and whatever else has wheels, tracks, wings or sails.

See `families_household` for the conventions of a family; vehicles drive, fly and sail along +y.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from ssl_equi.scenes.mesh import MeshBuilder, Palette
from ssl_equi.scenes.primitives import (
    box,
    circle,
    cylinder,
    ellipsoid,
    in_plane,
    lathe,
    loft,
    prism,
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


def airplane(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Jet: fuselage that tapers towards the tail, swept wings with engines, tail fin and tailplane."""
    fuselage_radius = rng.uniform(0.16, 0.23)
    half_span = rng.uniform(0.75, 1.05)
    sweep = rng.uniform(0.25, 0.65)
    chord = rng.uniform(0.35, 0.5)
    wing_z = rng.uniform(-0.1, 0.0)
    fin_height = rng.uniform(0.5, 0.65)

    y = np.linspace(-1, 1, 12)
    behind = np.clip(-y, 0, 1)
    radii = fuselage_radius * np.sqrt(np.clip(1 - np.abs(y) ** 5, 0, 1)) * (1 - 0.55 * behind**1.5) + 0.004
    mesh.add(tube(in_plane(np.stack([y, 0.12 * behind**2], axis=-1), "yz"), radii, sides=14), palette.main)
    cockpit_center = (0, 0.72, fuselage_radius * 0.55)
    mesh.add(ellipsoid((fuselage_radius * 0.65, 0.18, fuselage_radius * 0.5), cockpit_center, 10, 6), palette.dark)
    for side in SIDES:
        root, tip = side * 0.05, side * half_span
        wing = [(root, 0.25), (tip, 0.25 - sweep), (tip, 0.25 - sweep - chord * 0.4), (root, 0.25 - chord)]
        mesh.add(prism(wing, 0.05, center=(0, 0, wing_z)), palette.second)
        tail_tip = tip * 0.45
        tailplane = [(side * 0.03, -0.65), (tail_tip, -0.82), (tail_tip, -0.98), (side * 0.03, -0.96)]
        mesh.add(prism(tailplane, 0.04, center=(0, 0, 0.14)), palette.second)
        engine_front = np.array([tip * 0.45, 0.32 - sweep * 0.45, wing_z - 0.1])
        mesh.add(cylinder(engine_front, shifted(engine_front, y=-0.4), 0.09, 0.06, sides=10), palette.third)
    fin = [(-0.5, 0.1), (-0.95, 0.12), (-1.08, fin_height), (-0.88, fin_height)]
    mesh.add(prism(fin, 0.05, "x"), palette.fourth)


def car(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Hatchback: long bonnet in its own colour, cabin at the rear end, spoiler, lamps, four wheels."""
    length = rng.uniform(1.8, 2.2)
    width = rng.uniform(0.85, 1.0)
    body_height = rng.uniform(0.25, 0.34)
    cabin_height = rng.uniform(0.36, 0.48)
    bonnet_share = rng.uniform(0.36, 0.46)
    wheel_radius = rng.uniform(0.2, 0.26)
    ground_clearance = 0.18

    body_z = ground_clearance + body_height / 2
    top_z = ground_clearance + body_height
    bonnet_length = bonnet_share * length
    cabin_length = length - bonnet_length
    mesh.add(box((width, length, body_height), (0, 0, body_z), (0.96, 0.97)), palette.main)
    bonnet_center = (0, (length - bonnet_length) / 2, top_z + 0.02)
    mesh.add(box((width * 0.9, bonnet_length, 0.07), bonnet_center, (0.9, 0.9), (0, -0.05)), palette.second)
    cabin_y = -bonnet_length / 2
    cabin_center = (0, cabin_y, top_z + cabin_height / 2)
    mesh.add(box((width * 0.92, cabin_length, cabin_height), cabin_center, (0.8, 0.66), (0, -0.12)), palette.dark)
    roof_size = (width * 0.76, cabin_length * 0.66, 0.05)
    mesh.add(box(roof_size, (0, cabin_y - 0.12, top_z + cabin_height + 0.02)), palette.main)
    spoiler_center = (0, cabin_y - cabin_length * 0.45, top_z + cabin_height + 0.03)
    mesh.add(box((width * 0.8, 0.2, 0.05), spoiler_center), palette.third)
    for side in SIDES:
        lamp_x = side * width * 0.36
        mesh.add(box((0.2, 0.05, 0.12), (lamp_x, length / 2, body_z + 0.04)), palette.light)
        mesh.add(box((0.14, 0.05, 0.16), (lamp_x, -length / 2, body_z + 0.04)), palette.fourth)
        for end in SIDES:
            wheel_center = (side * width / 2, end * length * 0.31, wheel_radius)
            _add_wheel(mesh, wheel_center, wheel_radius, 0.16, palette.dark, palette.light)


def helicopter(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Helicopter: glazed cabin, tail boom with fin and tail rotor, main rotor, skids, a winch on the right."""
    cabin_half_width = rng.uniform(0.28, 0.36)
    boom_length = rng.uniform(0.9, 1.2)
    blades = rng.integers(2, 5)
    first_blade_rad = rng.uniform(0, 2 * PI)
    blade_length = rng.uniform(0.75, 0.95)

    mesh.add(ellipsoid((cabin_half_width, 0.5, 0.34), (0, 0.2, 0.5), sides=14, stacks=8), palette.main)
    mesh.add(ellipsoid((cabin_half_width * 0.9, 0.34, 0.27), (0, 0.42, 0.52), sides=14, stacks=8), palette.dark)
    mesh.add(tube([(0, -0.1, 0.58), (0, -boom_length, 0.68)], [0.16, 0.06], sides=10), palette.main)
    tail = -boom_length
    fin = [(tail + 0.15, 0.66), (tail - 0.12, 1.1), (tail - 0.26, 1.1), (tail - 0.1, 0.55)]
    mesh.add(prism(fin, 0.05, "x"), palette.second)
    mesh.add(prism(circle(3, 0.24), 0.03, "x", (0.08, tail - 0.08, 0.78)), palette.third)
    hub = np.array([0, 0.15, 0.95])
    mesh.add(cylinder(shifted(hub, z=-0.2), hub, 0.06, sides=8), palette.dark)
    for blade in range(blades):
        azimuth_rad = first_blade_rad + 2 * PI * blade / blades
        wing = box((blade_length, 0.1, 0.02), (blade_length / 2, 0, 0)).rotated("z", azimuth_rad)
        mesh.add(wing.moved(hub), palette.third)
    for side in SIDES:
        skid_x = side * 0.3
        mesh.add(cylinder((skid_x, -0.35, 0.05), (skid_x, 0.75, 0.05), 0.035, sides=8), palette.fourth)
        for strut_y in (0.0, 0.4):
            foot, top = (skid_x, strut_y, 0.05), (side * 0.18, strut_y, 0.3)
            mesh.add(cylinder(foot, top, 0.025, sides=6), palette.fourth)
    winch_x = cabin_half_width + 0.08
    mesh.add(cylinder((winch_x, -0.05, 0.6), (winch_x, 0.35, 0.6), 0.1, sides=10), palette.fifth)


def locomotive(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Steam engine: boiler with chimney and dome, cab behind, cowcatcher in front, two to four axles."""
    boiler_length = rng.uniform(1.1, 1.5)
    boiler_radius = rng.uniform(0.24, 0.33)
    chimney_height = rng.uniform(0.4, 0.7)
    axles = int(rng.integers(2, 5))
    boiler_z = 0.55
    front = boiler_length - 0.3

    mesh.add(cylinder((0, -0.3, boiler_z), (0, front, boiler_z), boiler_radius, sides=18), palette.main)
    mesh.add(cylinder((0, front, boiler_z), (0, front + 0.03, boiler_z), boiler_radius * 0.8), palette.dark)
    mesh.add(box((boiler_radius * 2.3, 0.55, 0.75), (0, -0.55, 0.65)), palette.second)
    mesh.add(box((boiler_radius * 2.7, 0.66, 0.07), (0, -0.55, 1.07)), palette.dark)
    frame_length = boiler_length + 0.5
    mesh.add(box((boiler_radius * 1.8, frame_length, 0.12), (0, front - frame_length / 2, 0.25)), palette.dark)
    chimney_foot = np.array([0, front - 0.2, boiler_z + 0.15])
    mesh.add(cylinder(chimney_foot, shifted(chimney_foot, z=chimney_height), 0.08, 0.14), palette.third)
    dome_center = (0, front - boiler_length * 0.55, boiler_z + boiler_radius)
    mesh.add(ellipsoid((0.11, 0.11, 0.13), dome_center, sides=10, stacks=6), palette.fourth)
    for side in SIDES:
        for axle in range(axles):
            is_front = axle == axles - 1
            y = -0.6 + 0.9 * (boiler_length + 0.1) * axle / (axles - 1)
            radius = 0.14 if is_front else 0.2
            wheel = cylinder((side * boiler_radius * 0.9, y, radius), (side * boiler_radius * 1.15, y, radius), radius)
            mesh.add(wheel, palette.third)
    cowcatcher = [(-boiler_radius, front + 0.05), (boiler_radius, front + 0.05), (0, front + 0.4)]
    mesh.add(prism(cowcatcher, 0.2, center=(0, 0, 0.15)), palette.fifth)


def motorbike(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Motorcycle: tank, seat, engine, fork with handlebar and lamp, exhaust on the right, a box on the left."""
    wheel_radius = rng.uniform(0.28, 0.36)
    tire_radius = rng.uniform(0.06, 0.1)
    half_wheelbase = rng.uniform(0.55, 0.7)
    handlebar_half_width = rng.uniform(0.36, 0.46)

    for end in SIDES:
        axle = np.array([0, end * half_wheelbase, wheel_radius])
        tire = torus(wheel_radius, tire_radius, segments=20, sides=6).rotated("y", PI / 2)
        mesh.add(tire.moved(axle), palette.dark)
        mesh.add(cylinder(shifted(axle, x=-0.06), shifted(axle, x=0.06), wheel_radius * 0.5), palette.light)
    mesh.add(box((0.28, 0.5, 0.36), (0, -0.02, wheel_radius + 0.1)), palette.second)
    mesh.add(ellipsoid((0.18, 0.32, 0.16), (0, 0.18, wheel_radius + 0.42), sides=12, stacks=8), palette.main)
    seat = box((0.24, 0.55, 0.12), (0, -0.38, wheel_radius + 0.4), (0.9, 0.9)).rotated("x", -0.1)
    mesh.add(seat, palette.third)
    mesh.add(box((0.2, 0.45, 0.06), (0, -half_wheelbase - 0.05, wheel_radius * 2.1)), palette.main)
    fork_top = np.array([0, half_wheelbase - 0.22, wheel_radius + 0.7])
    for side in SIDES:
        fork_foot = (side * 0.1, half_wheelbase, wheel_radius)
        mesh.add(cylinder(fork_foot, shifted(fork_top, x=side * 0.1), 0.035, sides=8), palette.light)
        grip = shifted(fork_top, x=side * handlebar_half_width, y=-0.14, z=0.1)
        mesh.add(cylinder(fork_top, grip, 0.04, sides=8), palette.dark)
    mesh.add(ellipsoid(0.14, shifted(fork_top, y=0.14, z=-0.1), sides=10, stacks=6), palette.light)
    exhaust_end = (0.24, -half_wheelbase - 0.25, wheel_radius + 0.1)
    mesh.add(cylinder((0.2, -0.1, wheel_radius - 0.05), exhaust_end, 0.06, 0.09, sides=10), palette.fourth)
    mesh.add(box((0.2, 0.4, 0.3), (-0.22, -0.45, wheel_radius + 0.2)), palette.fifth)


def sailboat(rng: Generator, mesh: MeshBuilder, palette: Palette) -> None:
    """Sloop with its sails out to the right: hull, mast, main sail behind and jib before it, cabin."""
    half_beam = rng.uniform(0.24, 0.36)
    draught = rng.uniform(0.24, 0.36)
    mast_height = rng.uniform(1.3, 1.7)
    boom_angle_rad = rng.uniform(0.15, 0.5)

    section = np.array([(-1, 0), (-0.8, -0.6), (0, -1), (0.8, -0.6), (1, 0)])
    # place along the hull, size of the section, rise of the deck; from bow to stern
    hull_rings = [(1.05, 0.04, 0.06), (0.6, 0.7, 0.03), (0.1, 1, 0), (-0.4, 0.98, 0), (-0.9, 0.75, 0)]
    hull = [in_plane(section * (half_beam, draught) * size + (0, rise), "xz", y) for y, size, rise in hull_rings]
    mesh.add(loft(hull).faceted(), palette.main)
    mast_y = 0.1
    mesh.add(cylinder((0, mast_y, 0), (0, mast_y, mast_height), 0.03, sides=8), palette.dark)
    main_sail = prism([(-0.05, 0.15), (-0.05, mast_height * 0.97), (-0.9, 0.2)], 0.03, "x")
    jib = prism([(0.05, 0.15), (0.02, mast_height * 0.8), (0.85, 0.12)], 0.03, "x")
    mesh.add(main_sail.rotated("z", boom_angle_rad).moved((0, mast_y, 0)), palette.second)
    mesh.add(jib.rotated("z", -0.6 * boom_angle_rad).moved((0, mast_y, 0)), palette.third)
    mesh.add(box((half_beam, 0.4, 0.16), (0, -0.3, 0.06)), palette.fourth)
