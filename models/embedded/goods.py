"""More families of objects with designs of their own: food, household goods and fittings, for pre-training alone.

As in `objects.py`, each family takes a random stream and a size and gives layers.
"""

import numpy as np

from models.embedded.drawing import (
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
    metal_colour,
    noise,
    paint,
    relief,
    streaks,
)
from models.embedded.objects import box, place, sectors, stand
from models.embedded.wares import cylinder, grid


def clock(rng: Rng, size: int) -> Layers:
    """A dial with marks and two hands in a case."""
    f = place(rng, size)
    radius, angle = f.polar
    face, n = rng.uniform(0.78, 0.88), int(rng.choice([4, 12, 12, 60]))
    ink = colour(rng, (0, 1), (0, 0.8), (0.05, 0.4))
    image = lit(flat(size, colour(rng, (0, 1), (0, 0.3), (0.6, 1))), 0.02 * noise(rng, size, 1 / 80), f.each(rng, 0.05))
    x, y = radius * np.cos(sectors(angle, n)), radius * np.sin(sectors(angle, n))
    image = paint(image, f.cover(box(x - face + 0.13, y, rng.uniform(0.03, 0.08), 0.6 / (n + 10))), ink)
    for length, width in ((0.45, 0.04), (0.68, 0.025)):
        turn = rng.uniform(0, 2 * np.pi)
        along, across = f.u * np.cos(turn) + f.v * np.sin(turn), f.v * np.cos(turn) - f.u * np.sin(turn)
        image = paint(image, f.cover(box(along - length / 2, across, length / 2 + 0.06, width)), ink)
    case = lit(flat(size, metal_colour(rng)), 0.8 * f.bevel(rng, np.maximum(radius - 0.96, face - radius), 0.06))
    return stand(rng, paint(image, f.cover(face - radius), case), f.cover(radius - 0.96))


def record(rng: Rng, size: int) -> Layers:
    """A disc of grooves, or one that mirrors in colours, with a label and a hole in its middle."""
    f = place(rng, size)
    radius, angle = f.polar
    label, turn = rng.uniform(0.25, 0.4), rng.uniform(0, 6)
    if rng.random() < 0.5:
        image = lit(
            flat(size, colour(rng, (0, 1), (0, 0.2), (0.05, 0.25))), 0.2 * np.sin(radius * rng.uniform(90, 160))
        )
        image = lit(image, -0.5 * f.cover(np.abs(radius - rng.uniform(0.5, 0.85)) - 0.012))
    else:
        phases = np.stack([np.cos(2 * angle + turn + k + 3 * radius) for k in (0, 2, 4)], -1)
        image = np.clip(colour(rng, (0, 1), (0, 0.1), (0.5, 0.8)) + rng.uniform(0.05, 0.2) * phases, 0, 1)
    image = lit(image.astype(np.float32), rng.uniform(0, 0.9) * np.cos(angle + turn) ** 16, f.each(rng, 0.06))
    image = paint(image, f.cover(radius - label), any_colour(rng))
    for row in (-0.55, 0.55):
        print_row = decal(lettering(rng, 7), f.u / (0.75 * label), (f.v - row * label) / (0.2 * label))
        image = paint(image, print_row, any_colour(rng))
    d = np.maximum(radius - 0.96, rng.uniform(0.04, 0.12) - radius)
    return stand(rng, lit(image, 0.4 * f.bevel(rng, d, 0.03)), f.cover(d))


def can_lid(rng: Rng, size: int) -> Layers:
    """Rings, the score of the opening, a tab on its rivet."""
    f = place(rng, size)
    radius, _ = f.polar
    image = lit(flat(size, metal_colour(rng)), f.each(rng, 0.08), 0.05 * streaks(rng, size, 1 / 120, 30))
    for edge in (0.88, rng.uniform(0.72, 0.8)):
        image = lit(image, 0.8 * f.bevel(rng, np.abs(radius - edge) - 0.03, 0.04))
    mouth = box(f.u - 0.32, f.v, 0.26, rng.uniform(0.2, 0.34), 0.2)
    image = lit(image, 0.6 * f.bevel(rng, np.abs(mouth) - 0.015, 0.02))
    tab = np.maximum(box(f.u + 0.2, f.v, 0.3, 0.16, 0.14), 0.09 - np.hypot(f.u + 0.32, f.v))
    lever = flat(size, metal_colour(rng) if rng.random() < 0.6 else any_colour(rng))
    image = paint(lit(image, -0.3 * f.cover(tab - 0.03)), f.cover(tab), lit(lever, 0.9 * f.bevel(rng, tab, 0.06)))
    image = lit(image, 0.8 * f.bevel(rng, np.hypot(f.u, f.v) - 0.07, 0.07), 0.6 * f.bevel(rng, radius - 0.96, 0.05))
    return stand(rng, image, f.cover(radius - 0.96))


def flange(rng: Rng, size: int) -> Layers:
    """A disc with a collar around its bore and a ring of bolts or bolt holes."""
    f = place(rng, size)
    radius, angle = f.polar
    n, bore = int(rng.integers(3, 13)), rng.uniform(0.2, 0.4)
    collar, at = bore + rng.uniform(0.08, 0.16), rng.uniform(0.72, 0.78)
    x, y = radius * np.cos(sectors(angle, n)) - at, radius * np.sin(sectors(angle, n))
    bolts = np.hypot(x, y) - min(rng.uniform(0.07, 0.13), 1.8 / n)
    square = rng.random() < 0.25
    rim = box(f.u, f.v, 0.8, 0.8, 0.25) if square else radius - 0.96
    d = np.maximum(rim, bore - radius)
    image = lit(flat(size, metal_colour(rng)), f.each(rng, 0.08), 0.06 * noise(rng, size, 1 / 110))
    image = lit(image, 0.06 * np.sin(radius * rng.uniform(50, 120)), 0.7 * f.bevel(rng, radius - collar, 0.06))
    image = lit(image, 0.8 * f.bevel(rng, d, 0.05), 0.5 * f.bevel(rng, -bolts, 0.04))
    if rng.random() < 0.5:
        head = lit(flat(size, metal_colour(rng)), 0.8 * f.bevel(rng, bolts, 0.05))
        return stand(rng, paint(image, f.cover(bolts), head), f.cover(d))
    return stand(rng, image, f.cover(np.maximum(d, -bolts)))


def fan(rng: Rng, size: int) -> Layers:
    """Curved blades around a hub, at times in a ring."""
    f = place(rng, size)
    radius, angle = f.polar
    n, hub, twist = int(rng.integers(3, 10)), rng.uniform(0.2, 0.35), rng.uniform(-1.5, 1.5)
    local = sectors(angle + twist * radius, n)
    half = rng.uniform(0.45, 0.8) * np.pi / n
    blades = np.maximum((np.abs(local) - half) * np.maximum(radius, 0.2), radius - 0.93)
    pitch = 0.5 * local / half * (1 if twist > 0 else -1)
    tint = any_colour(rng) if rng.random() < 0.6 else metal_colour(rng)
    image = lit(flat(size, tint), pitch, 0.05 * noise(rng, size, 1 / 90), 0.5 * f.bevel(rng, blades, 0.04))
    middle = lit(flat(size, tint), 0.8 * f.bevel(rng, radius - hub, 0.1), -0.5 * f.cover(radius - 0.06))
    image, d = paint(image, f.cover(radius - hub), middle), np.minimum(blades, radius - hub)
    if rng.random() < 0.4:
        ring = np.abs(radius - 0.91) - 0.05
        image = paint(image, f.cover(ring), lit(flat(size, tint), 0.7 * f.bevel(rng, ring, 0.05)))
        d = np.minimum(d, ring)
    return stand(rng, lit(image, f.each(rng, 0.08)), f.cover(d))


def comb(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    b, n, back = rng.uniform(0.2, 0.35), int(rng.integers(14, 36)), rng.uniform(0.25, 0.5)
    d = box(f.u, f.v, 0.95, b, 0.12)
    gap = np.abs((f.u * n / 1.8) % 1 - 0.5) * 1.8 / n - rng.uniform(0.2, 0.32) * 1.8 / n
    gaps = np.maximum(np.maximum(gap, -b + 2 * b * back - f.v), np.abs(f.u) - 0.88)
    d = np.maximum(d, -gaps)
    mottled = rng.uniform(0, 0.3) * fractal(rng, size, 0.15)
    image = lit(flat(size, any_colour(rng)), mottled, f.each(rng, 0.08), 0.7 * f.bevel(rng, d, 0.05))
    print_row = decal(lettering(rng, 8), f.u / 0.45, (f.v + b - b * back) / (0.4 * b * back))
    return stand(rng, paint(image, rng.uniform(0, 0.8) * print_row, any_colour(rng)), f.cover(d))


def spoon(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    b = rng.uniform(0.2, 0.28)
    bowl = (np.hypot((f.u + 0.64) / 0.31, f.v / b) - 1) * b
    width = 0.035 + rng.uniform(0.02, 0.07) * np.clip(f.u, 0, 1) ** 1.5
    handle = np.maximum(np.abs(f.v) - width, np.maximum(f.u - 0.95, -0.5 - f.u))
    d = np.minimum(bowl, handle)
    tint = metal_colour(rng) if rng.random() < 0.7 else any_colour(rng)
    image = lit(flat(size, tint), f.each(rng, 0.08), 0.9 * f.bevel(rng, bowl, 0.2), 0.6 * f.bevel(rng, handle, 0.04))
    if rng.random() < 0.5:
        image = lit(image, 0.5 * f.bevel(rng, box(f.u - 0.6, f.v, 0.28, 0.03, 0.03), 0.03))
    gleam = np.exp(-((f.u + 0.72) ** 2 + (f.v + 0.3 * b) ** 2) * rng.uniform(60, 300))
    return stand(rng, paint(image, rng.uniform(0.2, 0.9) * gleam, 1.0), f.cover(d))


def playing_card(rng: Rng, size: int) -> Layers:
    """Rows of one symbol on white, two corners with a letter; the same upside down."""
    f = place(rng, size)
    a, b = 0.92, rng.uniform(0.55, 0.66)
    d = box(f.u, f.v, a, b, 0.06)
    ink = any_colour(rng) if rng.random() < 0.5 else colour(rng, (0, 0.02), (0.8, 1), (0.6, 0.9))
    image = lit(
        flat(size, colour(rng, (0, 1), (0, 0.12), (0.85, 1))), 0.02 * noise(rng, size, 1 / 80), f.each(rng, 0.04)
    )
    x, y, _ = grid(f, 0.68, 0.66 * b, int(rng.integers(1, 5)), int(rng.integers(1, 4)))
    sharp, lobes = rng.uniform(0.5, 2), int(rng.integers(2, 7))
    angle = np.arctan2(y, x)
    symbol = np.hypot(x, y) - rng.uniform(0.08, 0.13) * (1 + 0.3 * np.abs(np.cos(lobes * angle / 2)) ** sharp)
    image = paint(image, f.cover(symbol), ink)
    corner, turned = lettering(rng, 1), np.where(f.u < 0, 1, -1)
    mark = decal(corner, (f.v * turned - 0.84 * b) / 0.06, (-f.u * turned - 0.8) / 0.08)
    return stand(rng, paint(image, mark, ink), f.cover(d))


def cork(rng: Rng, size: int) -> Layers:
    """From the side: pores, a brand burnt in."""
    f = place(rng, size)
    b = rng.uniform(0.35, 0.5)
    d = box(f.u, f.v, 0.93, b * (1 - 0.1 * rng.random()), 0.08)
    image = lit(flat(size, colour(rng, (0.06, 0.1), (0.3, 0.55), (0.55, 0.9))), 0.08 * fractal(rng, size, 0.06))
    pores = np.clip(noise(rng, size, max(0.1 * f.scale / size, 0.015), 2.0) - rng.uniform(0.4, 0.7), 0, 1)
    image = lit(image, -1.5 * pores, 0.8 * cylinder(f, b), f.each(rng, 0.06))
    brand = decal(lettering(rng, int(rng.integers(4, 8))), f.u / 0.65, f.v / (0.3 * b))
    return stand(rng, paint(image, rng.uniform(0.3, 0.9) * brand, 0.3 * image), f.cover(d))


def cracker(rng: Rng, size: int) -> Layers:
    """A flat biscuit with a scalloped edge and rows of holes."""
    f = place(rng, size)
    b = rng.uniform(0.55, 0.88)
    columns, rows = int(rng.integers(3, 7)), int(rng.integers(2, 6))
    scallops = rng.uniform(0.01, 0.04) * np.cos((f.u + f.v) * 30) * np.cos((f.u - f.v) * 30)
    d = box(f.u, f.v, 0.88, b, rng.uniform(0.03, 0.3)) + scallops
    tint = colour(rng, (0.08, 0.13), (0.3, 0.65), (0.65, 0.95))
    image = lit(flat(size, tint), f.each(rng, 0.06), 0.08 * fractal(rng, size, 0.1), 0.04 * noise(rng, size, 1 / 80))
    browned = np.clip(1 + d / rng.uniform(0.1, 0.3), 0, 1)
    image = paint(image, rng.uniform(0.3, 0.8) * browned, tint * 0.7)
    x, y, _ = grid(f, 0.75, 0.85 * b, columns, rows)
    holes = np.hypot(x, y) - rng.uniform(0.02, 0.045)
    image = lit(image, -0.7 * f.cover(holes), 0.5 * f.bevel(rng, holes - 0.06, 0.06), 0.6 * f.bevel(rng, d, 0.1))
    return stand(rng, image, f.cover(d))


def doughnut(rng: Rng, size: int) -> Layers:
    """A ring of dough under a glaze with crumbs of several colours."""
    f = place(rng, size)
    radius, _ = f.polar
    hole = rng.uniform(0.2, 0.3)
    middle = (0.93 + hole) / 2
    ring = np.abs(radius - middle) - (0.93 - hole) / 2
    d = ring + 0.02 * noise(rng, size, 0.2 * f.scale / size + 0.02)
    dough = lit(flat(size, colour(rng, (0.07, 0.1), (0.5, 0.7), (0.5, 0.8))), 0.08 * fractal(rng, size, 0.08))
    glaze = ring + rng.uniform(0.05, 0.12) + 0.05 * noise(rng, size, 0.3 * f.scale / size + 0.02)
    icing = lit(flat(size, any_colour(rng)), f.each(rng, 0.05), 0.6 * f.bevel(rng, glaze, 0.08))
    if rng.random() < 0.7:
        distance, numbers = grains(rng, size, max(rng.uniform(0.12, 0.25) * f.scale / size, 0.02))
        tints = np.stack([any_colour(rng) for _ in range(5)])[rng.integers(0, 5, numbers.max() + 1)]
        crumbs = np.clip(rng.uniform(0.03, 0.06) * f.scale - distance, 0, 1) * f.cover(glaze + 0.05)
        icing = paint(icing, crumbs, tints[numbers])
    image = paint(dough, f.cover(glaze), icing)
    return stand(rng, lit(image, f.bevel(rng, d, 0.3)), f.cover(d))


def pizza(rng: Rng, size: int) -> Layers:
    """A crust, cheese and sauce in patches, slices of one topping at even distances."""
    f = place(rng, size)
    radius, angle = f.polar
    d = radius - 0.94 + 0.02 * noise(rng, size, 0.3 * f.scale / size + 0.02)
    crust = lit(flat(size, colour(rng, (0.07, 0.11), (0.4, 0.65), (0.6, 0.9))), 0.15 * fractal(rng, size, 0.1))
    cheese = flat(size, colour(rng, (0.1, 0.15), (0.3, 0.6), (0.8, 1)))
    sauce = colour(rng, (0, 0.05), (0.6, 0.9), (0.5, 0.8))
    top = paint(cheese, np.clip(2 * fractal(rng, size, 0.25 * f.scale / size + 0.02), 0, 1), sauce)
    for at, n in ((0.62, int(rng.integers(5, 9))), (0.27, 3)):
        local = sectors(angle, n)
        slices = np.hypot(radius * np.cos(local) - at, radius * np.sin(local)) - rng.uniform(0.1, 0.14)
        slice_image = lit(flat(size, colour(rng, (0, 0.4), (0.3, 0.8), (0.3, 0.8))), 0.1 * noise(rng, size, 1 / 60))
        top = paint(top, f.cover(slices), lit(slice_image, 0.6 * f.bevel(rng, slices, 0.05)))
    image = paint(crust, np.clip((0.8 - radius) * 12, 0, 1), top)
    return stand(rng, lit(image, f.each(rng, 0.06), f.bevel(rng, d, 0.12)), f.cover(d))


def citrus(rng: Rng, size: int) -> Layers:
    """A slice: peel, pith and segments of fine fibres."""
    f = place(rng, size)
    radius, angle = f.polar
    n, pith = int(rng.integers(8, 13)), rng.uniform(0.8, 0.88)
    tint = colour(rng, (0.02, 0.25), (0.6, 0.95), (0.7, 1))
    flesh = np.maximum(radius - pith, 0.02 + 0.02 * radius - np.abs(radius * np.sin(sectors(angle, n) - np.pi / n)))
    flesh = np.maximum(flesh, 0.08 - radius)
    rays = np.sin(rng.uniform(40, 90) * sectors(angle, n)) * noise(rng, size, 1 / 50)
    pulp = lit(flat(size, tint), 0.2 * rays, 0.15 * noise(rng, size, 1 / 60), 0.4 * f.bevel(rng, flesh, 0.06))
    image = paint(flat(size, colour(rng, (0.1, 0.17), (0.05, 0.25), (0.85, 1))), f.cover(flesh), pulp)
    image = paint(image, f.cover(0.9 - radius), tint * rng.uniform(0.7, 1))
    return stand(rng, lit(image, f.each(rng, 0.06)), f.cover(radius - 0.96))


def egg(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    d = np.hypot(f.u, f.v * (1.3 + rng.uniform(0.1, 0.35) * f.u)) - 0.93
    image = flat(size, colour(rng, (0.04, 0.15) if rng.random() < 0.8 else (0, 1), (0, 0.5), (0.6, 1)))
    if rng.random() < 0.4:  # speckled
        spots = np.clip(noise(rng, size, max(0.08 * f.scale / size, 1 / 90)) - rng.uniform(0.5, 0.8), 0, 1)
        image = lit(image, -2 * spots)
    gleam = np.exp(-((f.u - 0.3) ** 2 + (f.v + 0.25) ** 2) * rng.uniform(4, 30))
    image = lit(image, f.each(rng, 0.08), f.bevel(rng, d, 0.8), 0.03 * noise(rng, size, 1 / 100))
    return stand(rng, paint(image, rng.uniform(0, 0.5) * gleam, 1.0), f.cover(d))


def domino(rng: Rng, size: int) -> Layers:
    """Two fields of pips with a groove between."""
    f = place(rng, size)
    b = 0.47
    d = box(f.u, f.v, 0.94, b, rng.uniform(0.03, 0.12))
    image = lit(flat(size, any_colour(rng)), f.each(rng, 0.05), rng.uniform(0, 0.2) * fractal(rng, size, 0.2))
    image = lit(image, 0.7 * relief(rng, -5 * np.exp(-((f.u * 25) ** 2))), 0.8 * f.bevel(rng, d, 0.08))
    u, v, number = grid(f, 0.94, b, 6, 3)
    shown = rng.random((9, 2)) < 0.5
    column, row = number % 6, number // 6
    pips = np.hypot(u, v) - np.where(shown[(column % 3) * 3 + row, column // 3], rng.uniform(0.07, 0.11), -9)
    image = paint(image, f.cover(pips), colour(rng, (0, 1), (0, 0.6), (0.02, 1)))
    return stand(rng, lit(image, 0.5 * f.bevel(rng, -pips, 0.03)), f.cover(d))


def bulb(rng: Rng, size: int) -> Layers:
    """Glass, a filament, a screwed cap."""
    f = place(rng, size)
    globe = np.hypot(f.u + 0.33, f.v) - 0.6
    neck = np.maximum(np.abs(f.v) - (0.24 + 0.3 * np.clip(0.35 - f.u, 0, 1) ** 2), np.maximum(f.u - 0.5, -0.2 - f.u))
    thread = 0.02 * np.sin(f.u * rng.uniform(50, 80))
    cap = np.maximum(np.abs(f.v) - 0.25 - thread, np.maximum(0.42 - f.u, f.u - 0.86))
    tip = box(f.u - 0.88, f.v, 0.07, 0.1, 0.03)
    d = np.minimum(np.minimum(globe, neck), np.minimum(cap, tip))
    glass = lit(flat(size, colour(rng, (0, 1), (0, 0.3), (0.6, 1))), 0.9 * f.bevel(rng, np.minimum(globe, neck), 0.3))
    coil = np.abs(f.u + 0.4 - 0.04 * np.sin(f.v * rng.uniform(30, 60))) - 0.02
    wire = np.minimum(np.maximum(coil, np.abs(f.v) - 0.2), box(f.u, np.abs(f.v) - 0.15, 0.4, 0.012))
    glass = paint(glass, rng.uniform(0, 0.9) * f.cover(wire), 0.3 * metal_colour(rng))
    gleam = np.exp(-((f.u + 0.5) ** 2 + (f.v + 0.25) ** 2) * rng.uniform(30, 150))
    metal = lit(flat(size, metal_colour(rng)), cylinder(f, 0.25), 12 * thread)
    image = paint(paint(glass, rng.uniform(0.2, 0.9) * gleam, 1.0), f.cover(np.minimum(cap, tip)), metal)
    return stand(rng, lit(image, f.each(rng, 0.06)), f.cover(d))


def zip_fastener(rng: Rng, size: int) -> Layers:
    """Two tapes, teeth that mesh, a slider."""
    f = place(rng, size)
    b, n, tooth = rng.uniform(0.25, 0.45), rng.uniform(14, 30), rng.uniform(0.07, 0.11)
    d = box(f.u, f.v, 0.95, b, 0.02)
    tint = any_colour(rng)
    image = lit(flat(size, tint), 0.15 * np.sin(f.u * 90) * np.sin(f.v * 90), 0.06 * noise(rng, size, 1 / 90))
    image = lit(image, -0.2 * f.cover(np.abs(np.abs(f.v) - 0.7 * b) - 0.012))
    side = np.abs(((f.u + 0.5 / n * (f.v > 0)) * n) % 1 - 0.5) / n - 0.3 / n
    teeth = np.maximum(side, np.abs(f.v) - tooth)
    metal = metal_colour(rng) if rng.random() < 0.6 else any_colour(rng)
    image = paint(image, f.cover(teeth), lit(flat(size, metal), 0.8 * f.bevel(rng, teeth, 0.03)))
    at = rng.uniform(-0.6, 0.6)
    slider = np.minimum(box(f.u - at, f.v, 0.14, 1.7 * tooth, 0.05), box(f.u - at - 0.28, f.v, 0.16, 0.05, 0.04))
    image = paint(image, f.cover(slider), lit(flat(size, metal), 0.8 * f.bevel(rng, slider, 0.05)))
    return stand(rng, lit(image, f.each(rng, 0.06)), f.cover(d))


def chain(rng: Rng, size: int) -> Layers:
    """Links that lie flat and links on edge, in turn."""
    f = place(rng, size)
    n = int(rng.integers(2, 5))
    pitch, wire = 1.8 / n, rng.uniform(0.2, 0.3) / n
    u = (f.u + 0.9) % pitch - pitch / 2
    lying = np.abs(box(u, f.v, 0.62 * pitch - wire, 0.36 * pitch, 0.34 * pitch)) - wire
    edge = (f.u + 0.9 + pitch / 2) % pitch - pitch / 2
    standing = np.maximum(box(edge, f.v, 0.34 * pitch, wire, wire), np.abs(f.u) - 0.9 + 0.3 * pitch)
    lying = np.maximum(lying, np.abs(f.u) - 0.96)
    tint = metal_colour(rng)
    image = lit(flat(size, tint), 0.9 * f.bevel(rng, lying, wire))
    image = paint(image, f.cover(standing), lit(flat(size, tint), 0.9 * f.bevel(rng, standing, wire)))
    image = lit(image, 0.05 * noise(rng, size, 1 / 100), f.each(rng, 0.06))
    return stand(rng, image, f.cover(np.minimum(lying, standing)))


def shoe_sole(rng: Rng, size: int) -> Layers:
    """A tread of bars and studs inside a welt."""
    f = place(rng, size)
    waist = 0.26 + 0.1 * np.cos(2 * np.pi * (f.u - 0.5) / 1.5) + 0.04 * f.u
    d = np.maximum(np.abs(f.v - 0.06 * np.sin(2 * f.u)) - waist, np.hypot(f.u, 0.9 * f.v) - 0.95)
    tread = rng.uniform(10, 30)
    wave = np.sin(tread * f.u + rng.uniform(0, 3) * np.abs(np.sin(rng.uniform(4, 16) * f.v)))
    studs = wave if rng.random() < 0.5 else wave * np.cos(tread * f.v)
    height = np.clip(rng.uniform(1, 4) * studs, -1, 1) * f.cover(d + 0.08)
    image = lit(flat(size, any_colour(rng)), 0.05 * noise(rng, size, 1 / 90), relief(rng, 3 * height), 0.1 * height)
    if rng.random() < 0.5:
        image = paint(image, f.cover(np.abs(f.u - rng.uniform(-0.2, 0.2)) - 0.2), any_colour(rng))
    return stand(rng, lit(image, f.each(rng, 0.06), 0.7 * f.bevel(rng, d, 0.06)), f.cover(d))
