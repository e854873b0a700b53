"""Further families of objects, each of a design of its own: goods, food and parts, for pre-training alone.

Named objects are what teaches the state of objects that were never seen (see the model card). As in `objects.py`, each
family takes a random stream and a size and gives layers.
"""

import numpy as np

from models.embedded.drawing import (
    Array,
    Layers,
    Rng,
    any_colour,
    colour,
    decal,
    flat,
    fractal,
    grains,
    lettering,
    lit,
    log_uniform,
    metal_colour,
    noise,
    paint,
    relief,
    streaks,
)
from models.embedded.objects import Frame, box, place, sectors, stand


def cylinder(f: Frame, body: Array | float) -> Array:
    """Shade (S, S) of a round bar along u that is lit from above; body: its half width."""
    return 0.35 - 1.1 * np.clip(np.abs(f.v + 0.25 * body) / (body + 0.02), 0, 1) ** 2


def coin(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, angle = f.polar
    d, rim = radius - 0.96, rng.uniform(0.84, 0.92)
    image = lit(flat(size, metal_colour(rng)), f.each(rng, 0.08), 0.05 * noise(rng, size, 1 / 120))
    if rng.random() < 0.35:  # of two metals
        image = paint(image, f.cover(radius - rng.uniform(0.55, 0.72)), metal_colour(rng))
    legend = decal(lettering(rng, 22), angle / np.pi - 1, (rim - 0.12 - radius) / 0.08)
    head = fractal(rng, size, 0.25 * f.scale / size + 0.03) * f.cover(radius - rng.uniform(0.45, 0.6))
    image = lit(image, relief(rng, 3 * legend), relief(rng, rng.uniform(2, 6) * head))
    image = lit(image, 0.8 * f.bevel(rng, d, 0.05), 0.7 * f.bevel(rng, rim - radius, 0.04))
    return stand(rng, image, f.cover(d))


def bottle_cap(rng: Rng, size: int) -> Layers:
    """A crown cap seen from above: a crimped skirt around a printed top."""
    f = place(rng, size)
    radius, angle = f.polar
    crimps = np.cos(21 * angle)
    d, top = radius - 0.93 + 0.04 * crimps, rng.uniform(0.66, 0.76)
    image = lit(flat(size, any_colour(rng)), f.each(rng, 0.06), 0.04 * noise(rng, size, 1 / 100))
    image = lit(image, f.cover(top - radius) * 0.3 * crimps, 0.6 * f.bevel(rng, radius - top, 0.12))
    if rng.random() < 0.7:
        image = paint(image, f.cover(np.abs(radius - rng.uniform(0.45, 0.6)) - 0.03), any_colour(rng))
    print_row = decal(lettering(rng, int(rng.integers(3, 6))), f.u / 0.4, f.v / 0.17)
    image = paint(image, rng.uniform(0.5, 1) * print_row, any_colour(rng))
    return stand(rng, lit(image, 0.5 * f.bevel(rng, d, 0.1)), f.cover(d))


def wheel(rng: Rng, size: int) -> Layers:
    """Tyre, rim, spokes and hub."""
    f = place(rng, size)
    radius, angle = f.polar
    inner, hub, n = rng.uniform(0.6, 0.78), rng.uniform(0.14, 0.25), int(rng.integers(3, 11))
    reach = rng.uniform(0.05, 0.5 * inner * np.pi / n) * (1 - rng.uniform(0, 0.5) * radius)
    spokes = np.maximum(np.abs(radius * np.sin(sectors(angle, n))) - reach, radius - inner)
    metal = np.minimum(np.minimum(spokes, radius - hub), np.abs(radius - inner) - 0.05)
    tread = 0.15 * np.sign(np.cos(int(rng.integers(30, 60)) * angle)) * (radius > 0.88)
    image = lit(flat(size, colour(rng, (0, 1), (0, 0.2), (0.08, 0.3))), tread, 0.7 * f.bevel(rng, radius - 0.96, 0.12))
    alloy = lit(flat(size, metal_colour(rng) if rng.random() < 0.7 else any_colour(rng)), f.each(rng, 0.08))
    image = paint(image, f.cover(metal), lit(alloy, 0.9 * f.bevel(rng, metal, 0.06)))
    bolts = np.hypot(radius * np.cos(sectors(angle, 5)) - 0.6 * hub, radius * np.sin(sectors(angle, 5))) - 0.03
    image = lit(image, -0.6 * f.cover(bolts))
    return stand(rng, image, f.cover(np.minimum(metal, np.maximum(radius - 0.96, inner - radius))))


def plate(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, angle = f.polar
    well, n = rng.uniform(0.55, 0.7), int(rng.integers(8, 40))
    image = lit(flat(size, colour(rng, (0, 1), (0, 0.35), (0.6, 1))), 0.02 * noise(rng, size, 1 / 60))
    if rng.random() < 0.5:
        image = paint(
            image, f.cover(np.abs(radius - rng.uniform(0.85, 0.93)) - rng.uniform(0.01, 0.04)), any_colour(rng)
        )
    if rng.random() < 0.6:  # an ornament around the rim
        x, y = radius * np.cos(sectors(angle, n)) - 0.5 * (well + 0.9), radius * np.sin(sectors(angle, n))
        image = paint(image, f.cover(np.hypot(x * rng.uniform(0.4, 1.5), y) - 1 / n), any_colour(rng))
    gleam = np.clip(np.cos(angle - rng.uniform(0, 6)), 0, 1) ** rng.integers(4, 20)
    image = lit(image, 0.7 * f.bevel(rng, radius - well, 0.08), 0.3 * rng.random() * gleam, f.each(rng, 0.06))
    return stand(rng, lit(image, 0.6 * f.bevel(rng, radius - 0.96, 0.05)), f.cover(radius - 0.96))


def cable(rng: Rng, size: int) -> Layers:
    """Cut across: a sheath, insulated conductors, strands."""
    f = place(rng, size)
    radius, angle = f.polar
    n = int(rng.integers(2, 6))
    at, wire = rng.uniform(0.42, 0.5), min(0.38, 0.45 * np.sin(np.pi / n))
    local = np.hypot(radius * np.cos(sectors(angle, n)) - at, radius * np.sin(sectors(angle, n)))
    number = (np.rint(angle * n / (2 * np.pi)) % n).astype(int)
    tints = np.stack([any_colour(rng) for _ in range(n)])
    image = lit(flat(size, colour(rng, (0, 1), (0, 0.3), (0.1, 0.8))), 0.06 * noise(rng, size, 1 / 80))
    image = lit(image, 0.6 * f.bevel(rng, radius - 0.95, 0.1), -0.3 * f.cover(np.abs(radius - 0.86) - 0.015))
    insulation = lit(tints[number], 0.5 * f.bevel(rng, local - wire, 0.05), 0.05 * noise(rng, size, 1 / 90))
    image = paint(image, f.cover(local - wire), insulation)
    distance, _ = grains(rng, size, max(0.09 * f.scale / size, 0.02))
    strands = lit(flat(size, metal_colour(rng)), 0.4 - 0.5 * distance / (0.04 * f.scale))
    return stand(rng, paint(image, f.cover(local - 0.66 * wire), strands), f.cover(radius - 0.95))


def battery(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    b = rng.uniform(0.24, 0.42)
    body, tip = box(f.u + 0.04, f.v, 0.9, b, 0.04), box(f.u - 0.9, f.v, 0.07, 0.35 * b, 0.02)
    seam = rng.uniform(-0.5, 0.6)
    image = paint(flat(size, any_colour(rng)), f.cover(f.u - seam), any_colour(rng))
    image = paint(image, 0.9 * decal(lettering(rng, 6), (f.u - seam + 0.5) / 0.4, f.v / (0.5 * b)), any_colour(rng))
    ends = np.minimum(np.abs(f.u + 0.92) - 0.04, 0.8 - f.u)
    image = paint(image, f.cover(ends), metal_colour(rng))
    d = np.minimum(body, tip)
    return stand(rng, lit(image, f.each(rng, 0.08), cylinder(f, b), 0.3 * f.bevel(rng, d, 0.04)), f.cover(d))


def resistor(rng: Rng, size: int) -> Layers:
    """A body with rings of colour between two wires."""
    f = place(rng, size)
    half, b = rng.uniform(0.4, 0.55), rng.uniform(0.16, 0.24)
    swell = b * (1 + 0.25 * np.clip((np.abs(f.u) - 0.65 * half) * 12, 0, 1))
    body = np.maximum(np.abs(f.v) - swell, np.abs(f.u) - half)
    wires = box(f.u, f.v, 0.97, 0.035)
    image = lit(flat(size, colour(rng, (0, 1), (0.1, 0.6), (0.4, 0.9))), 0.03 * noise(rng, size, 1 / 90))
    for at in np.linspace(-0.7, 0.7, int(rng.integers(4, 7))) * half:
        image = paint(image, f.cover(np.abs(f.u - at) - 0.04), any_colour(rng))
    image = lit(image, cylinder(f, swell), f.each(rng, 0.06))
    metal = lit(flat(size, metal_colour(rng)), cylinder(f, 0.035))
    return stand(rng, paint(metal, f.cover(body), image), f.cover(np.minimum(body, wires)))


def fuse(rng: Rng, size: int) -> Layers:
    """A glass tube between metal caps, with a wire inside."""
    f = place(rng, size)
    b, cap = rng.uniform(0.2, 0.32), rng.uniform(0.5, 0.7)
    d = box(f.u, f.v, 0.95, b, 0.05)
    glass = lit(flat(size, colour(rng, (0, 1), (0, 0.25), (0.5, 0.95))), 0.5 * cylinder(f, b))
    wire = np.abs(f.v - 0.3 * b * np.sin(f.u * rng.uniform(0, 8))) - 0.025
    glass = paint(glass, f.cover(wire), 0.5 * metal_colour(rng))
    metal = lit(flat(size, metal_colour(rng)), cylinder(f, b), -0.3 * f.cover(np.abs(np.abs(f.u) - 0.85) - 0.015))
    image = paint(glass, f.cover(cap - np.abs(f.u)), metal)
    image = paint(image, rng.uniform(0.2, 0.8) * f.cover(box(f.u, f.v + 0.5 * b, 0.85 * cap, 0.03, 0.03)), 1.0)
    return stand(rng, lit(image, f.each(rng, 0.08)), f.cover(d))


def key(rng: Rng, size: int) -> Layers:
    """Bow with a hole to the left, blade with cuts to the right."""
    f = place(rng, size)
    bow, b = rng.uniform(0.3, 0.4), rng.uniform(0.1, 0.15)
    centre = -0.95 + bow
    round_bow = np.hypot(f.u - centre, f.v) if rng.random() < 0.6 else box(f.u - centre, f.v, 0, 0) * 1.1
    hole = np.hypot(f.u - centre + rng.uniform(0, 0.4) * bow, f.v) - 0.35 * bow
    depths = rng.uniform(0, 1.1 * b, 12)[np.clip((f.u * 10 + 1).astype(int), 0, 11)] * (f.u > 0.02)
    blade = np.maximum(np.maximum(f.v - b, -f.v - b + depths), np.maximum(np.abs(f.u + f.v * 0.3) - 0.93, centre - f.u))
    d = np.maximum(np.minimum(round_bow - bow, blade), -hole)
    image = lit(flat(size, metal_colour(rng)), f.each(rng, 0.08), 0.06 * streaks(rng, size, 1 / 120, 20))
    image = lit(image, -0.35 * f.cover(box(f.u - 0.25, f.v - 0.3 * b, 0.6, 0.12 * b)), 0.8 * f.bevel(rng, d, 0.04))
    return stand(rng, image, f.cover(d))


def spring(rng: Rng, size: int) -> Layers:
    """A coil seen from the side: windings before and behind."""
    f = place(rng, size)
    b, turns, wire = rng.uniform(0.25, 0.45), int(rng.integers(5, 11)), rng.uniform(0.035, 0.055)
    inside = np.clip(f.v / b, -1, 1)
    image, d = flat(size, metal_colour(rng)), np.full((size, size), 9.0, np.float32)
    for side in (-1, 1):  # behind, before
        phase = (f.u * turns / 2 + side * np.arcsin(inside) / (2 * np.pi) + 0.5) % 1 - 0.5
        winding = np.maximum(np.abs(phase) * 2 / turns - wire, np.maximum(np.abs(f.v) - b, np.abs(f.u) - 0.95))
        shade = (0.4 if side > 0 else -0.2) - (np.abs(phase) * 2 / turns / wire) ** 2
        image = np.where((winding < 0)[..., None], lit(flat(size, image[0, 0]), shade), image)
        d = np.minimum(d, winding)
    return stand(rng, lit(image, f.each(rng, 0.08)), f.cover(d))


def bread(rng: Rng, size: int) -> Layers:
    """A slice: crust around a crumb with pores."""
    f = place(rng, size)
    ripple = rng.uniform(0.01, 0.05) * noise(rng, size, 0.3 * f.scale / size + 0.02)
    d = np.minimum(box(f.u, f.v - 0.1, 0.75, 0.65, 0.2), box(f.u, f.v + 0.35, 0.86, 0.4, 0.35)) + ripple
    crumb = colour(rng, (0.08, 0.13), (0.15, 0.5), (0.7, 0.95))
    image = lit(flat(size, crumb), f.each(rng, 0.06), 0.1 * fractal(rng, size, 0.05))
    distance, numbers = grains(rng, size, max(rng.uniform(0.07, 0.15) * f.scale / size, 0.015))
    each = rng.uniform(0, rng.uniform(1, 3), numbers.max() + 1)[numbers]
    image = lit(image, -0.3 * np.clip(each - distance, 0, 1))
    crust = np.clip(1 + d / rng.uniform(0.05, 0.12), 0, 1)
    image = paint(image, crust, colour(rng, (0.05, 0.09), (0.5, 0.8), (0.3, 0.6)))
    return stand(rng, lit(image, 0.5 * f.bevel(rng, d, 0.1)), f.cover(d))


def fruit(rng: Rng, size: int) -> Layers:
    """Round, of two shades, with pores, a stalk end and a gleam."""
    f = place(rng, size)
    radius, angle = f.polar
    d = radius - 0.92 + rng.uniform(0, 0.05) * np.cos(int(rng.integers(2, 6)) * angle)
    tint = colour(rng, (0, 0.35), (0.5, 0.9), (0.5, 0.95))
    second = np.clip(tint + rng.normal(0, 0.2, 3), 0, 1)
    image = paint(flat(size, tint), np.clip(0.5 + f.v + 0.3 * noise(rng, size, 0.3), 0, 1), second)
    pores = rng.uniform(0, 0.15) * noise(rng, size, max(log_uniform(rng, 0.02, 0.06) * f.scale / size, 1 / 150))
    x, y = f.u - rng.uniform(-0.3, 0.3), f.v - rng.uniform(-0.3, 0.3)
    stalk = np.hypot(x, y) - 0.1
    image = lit(image, pores, f.each(rng, 0.08), f.bevel(rng, d, 0.7), 0.8 * f.bevel(rng, -stalk, 0.12))
    image = paint(image, f.cover(stalk + 0.05), colour(rng, (0.07, 0.25), (0.4, 0.7), (0.2, 0.4)))
    gleam = np.exp(-(((f.u - 0.4) ** 2 + (f.v + 0.4) ** 2) * rng.uniform(6, 30)))
    return stand(rng, paint(image, rng.uniform(0, 0.7) * gleam, 1.0), f.cover(d))


def leaf(rng: Rng, size: int) -> Layers:
    """A blade with a rib, veins and a stalk."""
    f = place(rng, size)
    wide, n = rng.uniform(0.3, 0.6), rng.uniform(6, 14)
    shape = wide * np.clip(np.cos(f.u * np.pi / 1.9), 0, 1) ** rng.uniform(0.6, 1.2)
    saw = rng.uniform(0, 0.04) * np.abs((f.u * 3 * n) % 1 - 0.5)
    blade = np.maximum(np.abs(f.v) - shape + saw, np.abs(f.u) - 0.93)
    d = np.minimum(blade, box(f.u + 0.85, f.v, 0.14, 0.025))
    tint = colour(rng, (0.08, 0.4), (0.3, 0.8), (0.25, 0.8))
    image = lit(flat(size, tint), f.each(rng, 0.1), 0.1 * fractal(rng, size, 0.1))
    veins = np.abs(((f.u - rng.uniform(0.5, 1) * np.abs(f.v)) * n) % 1 - 0.5) / n - 0.012
    rib = np.minimum(np.abs(f.v) - 0.02, veins)
    return stand(rng, lit(image, rng.uniform(-0.3, 0.4) * f.cover(rib), 0.4 * f.bevel(rng, blade, 0.1)), f.cover(d))


def pencil(rng: Rng, size: int) -> Layers:
    """Eraser, ferrule, lacquered shaft, cut wood and lead."""
    f = place(rng, size)
    b = rng.uniform(0.07, 0.12)
    taper = np.clip((0.97 - f.u) / 0.3, 0, 1) * b
    d = np.maximum(np.abs(f.v) - taper, np.abs(f.u) - 0.97)
    image = lit(flat(size, any_colour(rng)), 0.25 * np.sign(np.abs(f.v) - 0.4 * b) * -np.sign(f.v + 0.02))
    image = paint(image, 0.9 * decal(lettering(rng, 8), (f.u + 0.1) / 0.3, f.v / (0.4 * b)), any_colour(rng))
    ripple = 0.02 * np.sign(np.sin(f.v * 50))
    image = paint(image, f.cover(0.66 + ripple - f.u), colour(rng, (0.07, 0.12), (0.3, 0.6), (0.6, 0.9)))
    image = paint(image, f.cover(0.88 - f.u), 0.4 * any_colour(rng))
    ferrule = lit(flat(size, metal_colour(rng)), 0.3 * np.sign(np.sin(f.u * 90)))
    image = paint(image, f.cover(f.u + 0.72), ferrule)
    image = paint(image, f.cover(f.u + 0.85), any_colour(rng))
    return stand(rng, lit(image, cylinder(f, b), f.each(rng, 0.06)), f.cover(d))


def grid(f: Frame, a: float, b: float, columns: int, rows: int) -> tuple[Array, Array, Array]:
    """Coordinates u, v (S, S) from the middle of the nearest cell of a table of half sides a, b, and the cell's number."""
    parts = []
    for w, half, n in ((f.u, a, columns), (f.v, b, rows)):
        index = np.clip(np.floor((w + half) * n / (2 * half)), 0, n - 1)
        parts.append((w - (-half + (2 * index + 1) * half / n), index))
    (u, column), (v, row) = parts
    return u, v, (row * columns + column).astype(int)


def blister(rng: Rng, size: int) -> Layers:
    """Tablets in a tray of foil."""
    f = place(rng, size)
    columns, rows = int(rng.integers(3, 6)), int(rng.integers(2, 4))
    a, b = 0.82, 0.82 * rows / columns
    u, v, _ = grid(f, a, b, columns, rows)
    d, cell = box(f.u, f.v, a + 0.08, b + 0.08, 0.08), a / columns
    size_of = rng.uniform(0.6, 0.75) * cell
    tablet = np.hypot(u, v) - size_of if rng.random() < 0.6 else box(u, v, size_of, 0.6 * size_of, 0.6 * size_of)
    foil = lit(flat(size, colour(rng, (0, 1), (0, 0.3), (0.5, 0.9))), 0.2 * streaks(rng, size, 1 / 60, 8))
    foil = lit(foil, 0.5 * f.bevel(rng, tablet - 0.15 * cell, 0.1 * cell), 0.4 * f.bevel(rng, d, 0.03))
    pills = lit(flat(size, any_colour(rng)), 0.8 * f.bevel(rng, tablet, 0.4 * cell))
    image = paint(foil, f.cover(tablet), pills)
    gleam = rng.uniform(0.2, 0.8) * f.cover(np.hypot(u + 0.3 * cell, v + 0.3 * cell) - 0.12 * cell)
    return stand(rng, lit(paint(image, gleam, 1.0), f.each(rng, 0.06)), f.cover(d))


def keypad(rng: Rng, size: int) -> Layers:
    """Keys with letters in a case."""
    f = place(rng, size)
    columns, rows = int(rng.integers(3, 6)), int(rng.integers(3, 5))
    a, b = 0.62, 0.62 * rows / columns
    u, v, number = grid(f, a, b, columns, rows)
    d, cell = box(f.u, f.v, a + 0.06, b + 0.06, 0.06), a / columns
    keys = box(u, v, 0.8 * cell, 0.8 * cell, 0.2 * cell)
    case = lit(flat(size, any_colour(rng)), 0.04 * noise(rng, size, 1 / 80), 0.5 * f.bevel(rng, d, 0.05))
    caps = lit(flat(size, any_colour(rng)), 0.8 * f.bevel(rng, keys, 0.3 * cell))
    letters = lettering(rng, columns * rows)
    x = (u / (0.5 * cell)).clip(-1, 1)
    printed = decal(letters, (2 * number + 1 + x) / (columns * rows) - 1, v / (0.5 * cell)) * (np.abs(u) < 0.5 * cell)
    image = paint(case, f.cover(keys), paint(caps, rng.uniform(0.6, 1) * printed, any_colour(rng)))
    return stand(rng, lit(image, f.each(rng, 0.05)), f.cover(d))


def chocolate(rng: Rng, size: int) -> Layers:
    """A bar of bevelled pieces."""
    f = place(rng, size)
    columns, rows = int(rng.integers(3, 7)), int(rng.integers(2, 5))
    a = 0.9 if columns >= rows else 0.6
    b = min(a * rows / columns, 0.72)
    u, v, _ = grid(f, a, b, columns, rows)
    d, cell = box(f.u, f.v, a, b, 0.03), (a / columns, b / rows)
    piece = box(u, v, 0.9 * cell[0], 0.9 * cell[1], 0.05 * cell[1])
    image = lit(flat(size, colour(rng, (0.02, 0.12), (0.2, 0.75), (0.2, 0.9))), 0.04 * noise(rng, size, 1 / 90))
    image = lit(image, f.bevel(rng, piece, rng.uniform(0.2, 0.5) * min(cell)), f.each(rng, 0.06))
    if rng.random() < 0.5:
        stamp = decal(lettering(rng, 3), u / (0.5 * cell[0]), v / (0.4 * cell[1]))
        image = lit(image, relief(rng, -3 * stamp))
    return stand(rng, image, f.cover(d))


def connector(rng: Rng, size: int) -> Layers:
    """A housing with rows of contacts and a latch."""
    f = place(rng, size)
    columns, rows = int(rng.integers(3, 10)), int(rng.integers(1, 4))
    a = 0.72
    b = max(a * rows / columns, 0.15)
    u, v, _ = grid(f, a, b, columns, rows)
    cell = min(a / columns, b / rows)
    body = box(f.u, f.v, a + 0.14, b + 0.12, 0.04)
    latch = box(f.u, f.v + b + 0.16, rng.uniform(0.1, 0.3), 0.07, 0.02)
    d = np.minimum(body, latch)
    image = lit(flat(size, any_colour(rng)), 0.04 * noise(rng, size, 1 / 100), 0.7 * f.bevel(rng, d, 0.05))
    well = box(u, v, 0.75 * cell, 0.75 * cell, 0.1 * cell)
    image = lit(image, -0.6 * f.cover(well), 0.5 * f.bevel(rng, -well, 0.03))
    contact = np.hypot(u, v) - 0.4 * cell if rng.random() < 0.5 else box(u, v, 0.4 * cell, 0.4 * cell)
    metal = lit(flat(size, metal_colour(rng)), 0.6 * f.bevel(rng, contact, 0.3 * cell))
    return stand(rng, lit(paint(image, f.cover(contact), metal), f.each(rng, 0.06)), f.cover(d))
