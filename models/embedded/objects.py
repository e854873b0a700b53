"""Families of objects on a table, single or in an array of copies. Each takes a random stream and a size, gives layers."""

from dataclasses import dataclass
from functools import cached_property

import cv2
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
    metal_colour,
    noise,
    paint,
    pixel_grid,
    relief,
    rotate,
    streaks,
)

COPIES = 16  # copies of an object that differ from one another


@dataclass(frozen=True)
class Frame:
    """Coordinates u, v (S, S) of each pixel in the object, whose outline lies within radius 1; scale: pixels a unit.

    copy (S, S) numbers the copies of an object that stands in an array (all 0 for a single one)."""

    u: Array
    v: Array
    copy: Array
    scale: float

    @cached_property
    def polar(self) -> tuple[Array, Array]:
        """Radius and angle (S, S)."""
        return cv2.cartToPolar(self.u, self.v)

    def cover(self, distance: Array) -> Array:
        """Antialiased mask (S, S) of the inside of an outline: signed distances below 0."""
        return np.clip(0.5 - distance * self.scale, 0, 1).astype(np.float32)

    def each(self, rng: Rng, spread: float) -> Array:
        """(S, S) a random value of every copy."""
        return rng.uniform(-spread, spread, COPIES).astype(np.float32)[self.copy]

    def bevel(self, rng: Rng, distance: Array, width: float) -> Array:
        """Shade (S, S) of an edge that is rounded over a width."""
        slope = 1 - np.clip(-distance / width, 0, 1)
        return relief(rng, (np.sqrt(1 - slope * slope) * width * self.scale).astype(np.float32))


def place(rng: Rng, size: int) -> Frame:
    """One object at random position, scale and rotation, or (one time in three) a turned array of copies."""
    x, y = pixel_grid(size)
    single = rng.random() < 0.67
    pitch = 1.0 if single else 1 / rng.uniform(2, 4.5)
    radius = rng.uniform(0.27, 0.47)
    tilt = 0.0 if single else rng.normal(0, 0.2)
    x, y = rotate(x, y, tilt)
    x, y = (w / pitch + (0 if single else rng.uniform(0, 1)) for w in (x, y))
    column, row = np.rint(x) * (not single), np.rint(y) * (not single)
    copy = (5 * column + 3 * row).astype(np.int32) % COPIES
    x, y = ((w - w0 - rng.uniform(radius - 0.5, 0.5 - radius, COPIES).astype(np.float32)[copy]) / radius
            for w, w0 in ((x, column), (y, row)))  # fmt: skip
    turn = rng.uniform(0, 2 * np.pi) + (rng.random() < 0.5) * rng.uniform(0, 2 * np.pi, COPIES)
    c, s = np.cos(turn).astype(np.float32)[copy], np.sin(turn).astype(np.float32)[copy]
    return Frame(c * x + s * y, c * y - s * x, copy, size * pitch * radius)


def stand(rng: Rng, image: Array, alpha: Array) -> Layers:
    """An object on a table that is plain, shaded, mottled or textured, with its shadow."""
    size = len(image)
    table = flat(size, colour(rng, (0, 1), (0, 0.4), (0.05, 0.95)))
    kind = rng.integers(4)
    if kind == 1:
        table = lit(table, rng.uniform(0.1, 0.3) * noise(rng, size, 1))
    elif kind == 2:
        table = lit(table, rng.uniform(0.05, 0.2) * fractal(rng, size, 0.2))
    elif kind == 3:
        table = lit(table, rng.uniform(0.05, 0.2) * streaks(rng, size, 1 / 60, rng.uniform(1, 40)))
    shift = np.array([[1, 0, rng.uniform(-0.04, 0.04) * size], [0, 1, rng.uniform(-0.04, 0.04) * size]])
    blur = 2 * int(rng.uniform(0.01, 0.05) * size) + 1
    shadow = cv2.blur(cv2.warpAffine(alpha, shift, (size, size)), (blur, blur))
    return Layers(lit(table, -rng.uniform(0, 0.6) * shadow), image, alpha)


def box(u: Array, v: Array, a: float, b: float, corner: float = 0.0) -> Array:
    """Signed distance to a rectangle of half sides a, b with rounded corners."""
    x, y = np.abs(u) - (a - corner), np.abs(v) - (b - corner)
    return np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - corner


def sectors(angle: Array, n: int) -> Array:
    """Angle (S, S) from the middle of the nearest of n equal sectors, in [-pi / n, pi / n]."""
    return (angle + np.pi / n) % (2 * np.pi / n) - np.pi / n


def pill(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    b = 0.95 if rng.random() < 0.5 else rng.uniform(0.45, 0.7)
    d = box(f.u, f.v, 0.95, b, b if rng.random() < 0.7 else 0.3 * b)
    image = lit(flat(size, colour(rng, (0, 1), (0, 0.6), (0.6, 1))), f.each(rng, 0.05), 0.05 * noise(rng, size, 1 / 90))
    image = lit(image, 0.8 * f.bevel(rng, d, rng.uniform(0.15, 0.45)))
    mark = rng.integers(3)
    if mark == 0:  # score line
        image = lit(image, 0.8 * relief(rng, -4 * np.exp(-((f.u * 25) ** 2))))
    elif mark == 1:
        imprint = decal(lettering(rng, 3), f.u / 0.5, f.v / 0.33)
        image = paint(image, rng.uniform(0.3, 0.9) * imprint, 0.4 * any_colour(rng))
    return stand(rng, image, f.cover(d))


def capsule(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    b = rng.uniform(0.3, 0.42)
    d = box(f.u, f.v, 0.97, b, b)
    seam = rng.uniform(-0.15, 0.15)
    image = paint(flat(size, any_colour(rng)), f.cover(f.u - seam), any_colour(rng))
    image = lit(image, 0.7 * f.bevel(rng, d, b), -0.25 * f.cover(np.abs(f.u - seam) - 0.012))
    image = paint(image, rng.uniform(0.2, 0.8) * f.cover(box(f.u, f.v + 0.45 * b, 0.8 - b, 0.05, 0.05)), 1.0)
    if rng.random() < 0.6:
        image = paint(image, 0.8 * decal(lettering(rng, 4), (f.u - 0.35) / 0.35, f.v / 0.15), 0.3 * any_colour(rng))
    return stand(rng, image, f.cover(d))


def hex_nut(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, angle = f.polar
    hexagon = radius * np.cos(sectors(angle, 6)) - 0.84
    bore = rng.uniform(0.4, 0.58)
    image = lit(flat(size, metal_colour(rng)), f.each(rng, 0.08), 0.08 * streaks(rng, size, 1 / 120, 15))
    image = lit(image, -0.35 * f.cover(0.86 - radius), 0.8 * f.bevel(rng, np.maximum(hexagon, bore - radius), 0.07))
    thread = rng.uniform(0.08, 0.14)
    image = lit(image, f.cover(radius - bore - thread) * (0.35 * np.sin(radius * rng.uniform(80, 130) + angle) - 0.3))
    return stand(rng, image, f.cover(np.maximum(hexagon, bore - radius)))


def washer(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, angle = f.polar
    bore, teeth = rng.uniform(0.35, 0.7), int(rng.choice([0, 0, 8, 12, 18]))
    d = np.maximum(radius - 0.95, bore - radius)
    if teeth:
        d = np.maximum(d, 0.94 * 0.8 - radius - 0.25 * np.sign(np.cos(teeth * angle)) + 0.1) if bore > 0.6 else d
    elif rng.random() < 0.3:  # a spring washer is split
        d = np.maximum(d, 0.05 - np.abs(f.v) + (f.u < 0))
    turned = rng.uniform(0.02, 0.1) * np.sin(radius * rng.uniform(60, 140) + 2 * noise(rng, size, 0.2))
    sheen = rng.uniform(0.05, 0.3) * np.cos(2 * angle + rng.uniform(0, 6))
    edge = 0.8 * f.bevel(rng, d, rng.uniform(0.03, 0.12))
    image = lit(flat(size, metal_colour(rng)), f.each(rng, 0.1), turned, sheen, edge)
    return stand(rng, image, f.cover(d))


def bearing(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, angle = f.polar
    bore, n = rng.uniform(0.28, 0.4), int(rng.integers(7, 13))
    inner, outer = bore + rng.uniform(0.1, 0.18), rng.uniform(0.74, 0.82)
    rings = np.minimum(np.maximum(radius - 0.97, outer - radius), np.maximum(radius - inner, bore - radius))
    track, ball = (inner + outer) / 2, min(0.9 * np.pi / n * (inner + outer) / 2, 0.52 * (outer - inner))
    local = sectors(angle, n) * track
    balls = np.hypot(local, radius - track) - ball
    image = flat(size, colour(rng, (0, 1), (0, 0.6), (0.05, 0.3)))
    sheen = 0.25 * np.cos(2 * angle + rng.uniform(0, 6))
    image = paint(image, f.cover(rings), lit(flat(size, metal_colour(rng)), sheen, 0.8 * f.bevel(rng, rings, 0.05)))
    gleam = 0.9 - 1.2 * np.hypot(local + 0.3 * ball, radius - track - 0.3 * ball) / ball
    image = paint(image, f.cover(balls), lit(flat(size, metal_colour(rng)), gleam))
    return stand(rng, image, f.cover(np.maximum(radius - 0.97, bore - radius)))


def bottle(rng: Rng, size: int) -> Layers:
    """Seen from above: the rings of mouth, neck and shoulder."""
    f = place(rng, size)
    radius, angle = f.polar
    edges = np.sort(rng.uniform(0.25, 0.95, rng.integers(3, 7)))
    glass = colour(rng, (0, 1) if rng.random() < 0.4 else (0.08, 0.4), (0.1, 0.7), (0.2, 0.8))
    image = flat(size, glass)
    for edge in edges[::-1]:
        image = paint(image, f.cover(radius - float(edge)), np.clip(glass * rng.uniform(0.35, 1.5), 0, 1))
        image = lit(image, rng.uniform(-0.5, 0.9) * f.cover(np.abs(radius - float(edge)) - rng.uniform(0.01, 0.03)))
    gleam = np.clip(np.cos(angle - rng.uniform(0, 6)), 0, 1) ** rng.integers(6, 30)
    image = lit(image, rng.uniform(0.2, 0.9) * gleam, 0.6 * f.bevel(rng, radius - 0.97, 0.12), f.each(rng, 0.1))
    return stand(rng, image, f.cover(radius - 0.97))


def button(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, angle = f.polar
    n = int(rng.choice([2, 4]))
    at, hole, rim = rng.uniform(0.2, 0.3), rng.uniform(0.08, 0.12), rng.uniform(0.65, 0.85)
    holes = np.hypot(radius * np.cos(sectors(angle, n)) - at, radius * np.sin(sectors(angle, n))) - hole
    image = lit(flat(size, any_colour(rng)), f.each(rng, 0.08), rng.uniform(0, 0.2) * fractal(rng, size, 0.15))
    image = lit(image, 0.8 * f.bevel(rng, radius - 0.96, 0.15), 0.6 * f.bevel(rng, radius - rim, 0.1))
    image = lit(image, 0.6 * f.bevel(rng, -holes, 0.05))
    if rng.random() < 0.4:  # sewn on
        thread = f.cover(box(f.u, f.v, at + hole / 2, hole / 2, hole / 2))
        image = paint(paint(image, f.cover(holes), 0.1 * image), thread, any_colour(rng))
        return stand(rng, image, f.cover(radius - 0.96))
    return stand(rng, image, f.cover(np.maximum(radius - 0.96, -holes)))


def cookie(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, _ = f.polar
    d = radius - 0.92 + rng.uniform(0.01, 0.06) * noise(rng, size, 0.1 * f.scale / size + 0.02)
    dough = rng.uniform(2, 6) * fractal(rng, size, rng.uniform(0.04, 0.12))
    image = flat(size, colour(rng, (0.06, 0.11), (0.35, 0.7), (0.45, 0.85)))
    baked = 0.3 * np.clip(1 - radius, 0, 1) - 0.05
    image = lit(image, f.each(rng, 0.08), baked, relief(rng, dough), f.bevel(rng, d, 0.3))
    if rng.random() < 0.75:  # chocolate chips
        pitch = rng.uniform(0.25, 0.4) * f.scale / size
        distance, numbers = grains(rng, size, pitch)
        each = rng.uniform(0.1, 0.5, numbers.max() + 1)[numbers] * pitch * size
        chips = np.clip(each - distance + 0.6 * noise(rng, size, 1 / 60), 0, 1) * f.cover(d + 0.1)
        image = paint(image, chips, colour(rng, (0.02, 0.08), (0.5, 0.8), (0.12, 0.3)))
    return stand(rng, image, f.cover(d))


def gear(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    radius, angle = f.polar
    teeth, root, bore = int(rng.integers(9, 28)), rng.uniform(0.74, 0.84), rng.uniform(0.15, 0.35)
    profile = np.clip(rng.uniform(1, 3) * np.cos(teeth * angle), -0.5, 0.5) + 0.5
    d = np.maximum(radius - root - (0.97 - root) * profile, bore - radius)
    windows = int(rng.choice([0, 0, 3, 4, 5, 6]))
    if windows:
        middle = (bore + root) / 2
        local = sectors(angle, windows)
        d = np.maximum(d, 0.28 * (root - bore) - np.hypot(radius * np.cos(local) - middle, radius * np.sin(local)))
    tint = metal_colour(rng) if rng.random() < 0.7 else any_colour(rng)
    image = lit(flat(size, tint), f.each(rng, 0.08), 0.08 * streaks(rng, size, 1 / 120, 10))
    image = lit(image, 0.9 * f.bevel(rng, d, 0.06))
    image = lit(image, rng.uniform(-0.2, 0.2) * f.cover(radius - rng.uniform(bore + 0.08, root)))
    return stand(rng, image, f.cover(d))


def screw(rng: Rng, size: int) -> Layers:
    """Seen from the side: head to the left, thread, tip."""
    f = place(rng, size)
    head, shaft, pitch = rng.uniform(0.3, 0.42), rng.uniform(0.12, 0.18), rng.uniform(40, 70)
    countersunk = rng.random() < 0.5
    width = np.where(f.u < -0.7, head if not countersunk else head + (shaft - head) * (f.u + 0.95) / 0.25, 0)
    thread = 0.04 * np.sin(pitch * f.u + 4 * f.v) * (f.u > rng.uniform(-0.6, -0.2))
    taper = np.clip((0.95 - f.u) / 0.25, 0, 1)
    body = np.where(f.u >= -0.7, (shaft + thread) * taper, width)
    d = np.maximum(np.abs(f.v) - body, np.abs(f.u) - 0.95)
    image = lit(flat(size, metal_colour(rng)), f.each(rng, 0.1), 6 * thread, 0.06 * noise(rng, size, 1 / 120))
    image = lit(image, 0.5 - 1.2 * np.clip(np.abs(f.v + 0.25 * body) / (body + 0.02), 0, 1) ** 2)
    return stand(rng, lit(image, -0.5 * f.cover(np.abs(f.u + 0.7) - 0.015)), f.cover(d))


def microchip(rng: Rng, size: int) -> Layers:
    f = place(rng, size)
    a, b = rng.uniform(0.55, 0.62), rng.uniform(0.3, 0.62)
    n, quad = rng.integers(8, 16), rng.random() < 0.4
    comb = [np.abs((w * n) % 1 - 0.5) / n - 0.25 / n for w in (f.u, f.v)]
    pins = np.maximum(comb[0], box(f.u, f.v, a - 0.03, b + 0.14))
    pins = np.minimum(pins, np.maximum(comb[1], box(f.u, f.v, a + 0.14, b - 0.03))) if quad else pins
    body = box(f.u, f.v, a, b, 0.02)
    plastic = lit(flat(size, colour(rng, (0, 1), (0, 0.2), (0.08, 0.3))), 0.1 * noise(rng, size, 1 / 150))
    plastic = lit(plastic, 0.8 * f.bevel(rng, body, 0.06))
    plastic = lit(plastic, 0.5 * f.bevel(rng, np.hypot(f.u + a - 0.12, f.v + b - 0.12) - 0.05, 0.03))
    for row in (-0.12, 0.08):
        print_row = decal(lettering(rng, 7), f.u / (0.75 * a), (f.v - row) / 0.1)
        plastic = paint(plastic, rng.uniform(0.3, 0.9) * print_row, 0.85)
    metal = lit(flat(size, metal_colour(rng)), 0.6 * f.bevel(rng, pins, 0.03))
    return stand(rng, paint(metal, f.cover(body), plastic), f.cover(np.minimum(body, pins)))


def circuit_board(rng: Rng, size: int) -> Layers:
    n, f = 256, place(rng, size)
    mask = colour(rng, (0.25, 0.45) if rng.random() < 0.6 else (0, 1), (0.5, 0.9), (0.2, 0.5))
    copper, gold = np.clip(mask * rng.uniform(1.3, 1.9) + 0.05, 0, 1), colour(rng, (0.1, 0.16), (0.1, 0.6), (0.7, 0.95))
    canvas = (flat(n, mask) * 255).astype(np.uint8)
    ink = [tuple(255.0 * float(c) for c in tint) for tint in (copper, gold, 0.3 * mask)]
    for _ in range(rng.integers(10, 22)):  # traces: along, across at 45 degrees, along
        start = rng.integers(0, n // 12, 2) * 12 + 6
        step = np.array([[1, 0], [0, 1]])[rng.integers(2)]
        bend = rng.choice([-1, 1], 2) * rng.integers(1, 4)
        runs = [start, 12 * step * rng.integers(2, 8), 12 * bend, 12 * step * rng.integers(2, 8)]
        points = np.cumsum(runs, 0).astype(np.int32)
        cv2.polylines(canvas, [points], False, ink[0], 3, cv2.LINE_AA)
        for end in (points[0], points[-1]):
            cv2.circle(canvas, end.tolist(), 6, ink[1], -1, cv2.LINE_AA)
            cv2.circle(canvas, end.tolist(), 2, ink[2], -1, cv2.LINE_AA)
    for _ in range(rng.integers(2, 8)):  # soldered parts
        x, y = (rng.integers(1, n // 12 - 3, 2) * 12).tolist()
        w, h = (rng.integers(10, 40, 2)).tolist()
        part = tuple(255.0 * float(c) for c in colour(rng, (0, 1), (0, 0.5), (0.05, 0.7)))
        cv2.rectangle(canvas, (x - 5, y + h // 4), (x + w + 5, y + 3 * h // 4), ink[1], -1)
        cv2.rectangle(canvas, (x, y), (x + w, y + h), part, -1)
    zoom = rng.uniform(0.35, 0.69)
    d = box(f.u, f.v, 0.69, 0.69, 0.03)
    image = cv2.remap(
        canvas, (f.u / zoom + 1) * n / 2, (f.v / zoom + 1) * n / 2, cv2.INTER_LINEAR, None, cv2.BORDER_WRAP
    )
    image = lit(image.astype(np.float32) / 255, 0.05 * noise(rng, size, 1 / 100), 0.5 * f.bevel(rng, d, 0.02))
    return stand(rng, image, f.cover(d))


def label(rng: Rng, size: int) -> Layers:
    """Printed: lines of text, a barcode, a band, a logo."""
    f = place(rng, size)
    a, b = 0.85, rng.uniform(0.4, 0.5)
    d = box(f.u, f.v, a, b, rng.uniform(0, 0.1))
    ink = colour(rng, (0, 1), (0, 0.9), (0.05, 0.45))
    image = flat(size, colour(rng, (0, 1), (0, 0.25), (0.75, 1)))
    image = lit(image, 0.03 * noise(rng, size, 1 / 100), f.each(rng, 0.04))
    if rng.random() < 0.6:
        image = paint(image, f.cover(f.v + b - rng.uniform(0.1, 0.16)), any_colour(rng))
    for row in np.arange(-0.2, 0.05, 0.11):
        print_row = decal(lettering(rng, int(rng.integers(8, 13))), (f.u + 0.15) / 0.6, (f.v - float(row)) / 0.07)
        image = paint(image, print_row, ink)
    bars = (rng.random(60) < 0.5).astype(np.float32)[None].repeat(16, 0)
    image = paint(image, decal(bars, (f.u + 0.1) / 0.6, (f.v - 0.22) / 0.13), ink)
    image = paint(image, f.cover(np.hypot(f.u - 0.66, f.v - 0.05) - rng.uniform(0.06, 0.14)), any_colour(rng))
    return stand(rng, image, f.cover(d))
