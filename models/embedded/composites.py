"""Families without a fixed design: every scene invents its own, or makes it of photographs or of other families.

Named families teach what a nut looks like, these teach what flawless looks like: repetition, symmetry, print, inlays and
scattered grains belong to a thing. Pre-training alone uses them. Each takes a random stream and a size, gives layers.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.embedded.drawing import (
    Array,
    Layers,
    Rng,
    any_colour,
    decal,
    flat,
    fractal,
    grains,
    grey,
    lattice,
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
from models.embedded.surfaces import surface

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)  # samples in scikit-image: public domain or CC0


def field(rng: Rng, size: int) -> Array:
    """(S, S) in about [-1, 1]: noise, streaks, cells, or a periodic function of one or two directions."""
    kind = rng.integers(9)
    if kind == 0:
        return noise(rng, size, log_uniform(rng, 1 / 160, 1 / 3), log_uniform(rng, 1, 8))
    if kind == 1:
        return 0.6 * fractal(rng, size, log_uniform(rng, 1 / 40, 0.5))
    if kind == 2:
        return streaks(rng, size, log_uniform(rng, 1 / 150, 1 / 20), log_uniform(rng, 2, 60))
    if kind == 3:
        distance, numbers = grains(rng, size, log_uniform(rng, 1 / 60, 1 / 6))
        each = rng.uniform(-1, 1, numbers.max() + 1).astype(np.float32)[numbers]
        return each if rng.random() < 0.5 else np.clip(0.3 * distance - 1, -1, 1)
    u, v = lattice(rng, size, 1 / 40, 1 / 3, warp=rng.uniform(0, 0.25) * (rng.random() < 0.5))
    u = u + rng.choice([0.0, 0.0, 0.5]) * (np.floor(v) % 2)
    sharp = log_uniform(rng, 0.7, 8)
    if kind == 4:  # stripes
        return np.tanh(sharp * np.sin(2 * np.pi * v)).astype(np.float32)
    if kind == 5:  # waves that cross
        return np.tanh(sharp * np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)).astype(np.float32)
    across, down = u % 1 - 0.5, v % 1 - 0.5
    if kind == 8:  # a sign
        return np.tanh(-4 * sharp * (sign(rng, across / 0.42, down / 0.42) - rng.uniform(0, 0.1)))
    if kind == 6:  # dots
        return np.tanh(sharp * (rng.uniform(0.15, 0.4) - np.hypot(across, down)) * 4).astype(np.float32)
    return np.tanh(sharp * (np.maximum(np.abs(across), np.abs(down)) - rng.uniform(0.3, 0.47)) * 6).astype(np.float32)


def material(rng: Rng, size: int) -> Array:
    """(S, S, 3): a colour with up to three fields as shade, relief or second colour."""
    tint = metal_colour(rng) if rng.random() < 0.3 else any_colour(rng)
    image = flat(size, tint)
    for _ in range(rng.integers(0, 4)):
        pattern, use = field(rng, size), rng.integers(3)
        if use == 0:
            image = lit(image, log_uniform(rng, 0.03, 0.4) * pattern)
        elif use == 1:
            image = lit(image, rng.uniform(0.2, 0.8) * relief(rng, log_uniform(rng, 0.5, 5) * pattern))
        else:
            second = tint + rng.uniform(0.2, 1) * (any_colour(rng) - tint)
            image = paint(image, np.clip(0.5 + rng.uniform(0.5, 2) * pattern, 0, 1), second)
    return image


def pattern(rng: Rng, size: int) -> Layers:
    """A surface of any material, at times printed, inlaid or strewn with grains."""
    image = material(rng, size)
    if rng.random() < 0.3:
        image = paint(image, (field(rng, size) > rng.uniform(-0.5, 0.8)).astype(np.float32), material(rng, size))
    if rng.random() < 0.3:
        image = strewn(rng, image, np.ones((size, size), np.float32), 1.0)
    if rng.random() < 0.2:
        u, v = lattice(rng, size, 1 / 16, 1 / 5)
        text = np.concatenate([lettering(rng, 12) for _ in range(4)])
        image = paint(image, rng.uniform(0.3, 0.9) * decal(text, (u / 6) % 2 - 1, (v / 2.5) % 2 - 1), any_colour(rng))
    return surface(rng, image)


def strewn(rng: Rng, image: Array, inside: Array, unit: float) -> Array:
    """Grains of one other colour scattered evenly, as chips in dough or minerals in stone; unit: fraction of S."""
    size, pitch = len(image), max(rng.uniform(0.08, 0.35) * unit, 0.02)
    distance, numbers = grains(rng, size, pitch)
    each = rng.uniform(0.05, rng.uniform(0.2, 0.5), numbers.max() + 1)[numbers] * pitch * size
    mask = np.clip(each - distance + rng.uniform(0, 1) * noise(rng, size, 1 / 60), 0, 1) * inside
    return paint(image, rng.uniform(0.4, 1) * mask, any_colour(rng))


@lru_cache(maxsize=1)
def signs() -> list[tuple[Any, str]]:
    """Font and character of all signs of DejaVu and STIX (free licences, in matplotlib), but gears: they are held out."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    found = []
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "STIXGeneral"):
        path = Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        font = ImageFont.truetype(str(path), 96)
        for character in map(chr, sorted(FT2Font(str(path)).get_charmap())):
            drawn = unicodedata.category(character)[0] in "LNPS" and font.getmask(character).getbbox()
            if drawn and "GEAR" not in unicodedata.name(character, ""):
                found.append((font, character))
    return found


@lru_cache(maxsize=4096)
def sign_field(number: int) -> Array:
    """(96, 96) signed distance to the sign of this number, that fills a square of half side 0.9; unit: half side of all."""
    font, character = signs()[number]
    left, top, right, bottom = font.getbbox(character)
    reach = max(right - left, bottom - top, 8)
    canvas = Image.new("L", (reach, reach))
    ImageDraw.Draw(canvas).text(
        ((reach - right + left) / 2 - left, (reach - bottom + top) / 2 - top), character, 255, font
    )
    inside = np.pad(np.asarray(canvas.resize((86, 86), Image.Resampling.BILINEAR)) > 127, 5).astype(np.uint8)
    out, into = (cv2.distanceTransform(m, cv2.DIST_L2, 5) for m in (1 - inside, inside))
    return cv2.GaussianBlur((out - into) / 48, (0, 0), 0.8)


def sign(rng: Rng, u: Array, v: Array) -> Array:
    """Signed distance (S, S) to a random character of many scripts and symbols, in the square where u, v are in [-1, 1]."""
    distance = sign_field(int(rng.integers(len(signs()))))
    x, y = ((w.astype(np.float32) + 1) * 48 - 0.5 for w in (u, v))
    beyond = np.hypot(np.maximum(np.abs(u) - 1, 0), np.maximum(np.abs(v) - 1, 0))
    return cv2.remap(distance, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE) + beyond.astype(np.float32)


def outline(rng: Rng, f: Frame) -> Array:
    """Signed distance (S, S) to a shape: round, polygonal, toothed, lobed, boxed, irregular, or of signs."""
    radius, angle = f.polar
    fold = int(rng.integers(3, 30))
    local = sectors(angle, fold)
    kind = rng.integers(9)
    if kind == 0:
        return radius - 0.96
    if kind == 1:
        return radius * np.cos(sectors(angle, int(rng.integers(3, 9)))) - 0.78
    if kind == 2:  # teeth, notches or lobes
        wave = np.clip(log_uniform(rng, 0.5, 5) * np.cos(fold * angle), -1, 1)
        return radius - 0.97 + rng.uniform(0.02, 0.25) * (1 - (np.abs(wave) if rng.random() < 0.2 else wave)) / 2
    if kind == 3:
        a, b = 0.95, rng.uniform(0.15, 0.95)
        return box(f.u, f.v, a * min(1.0, 1.3 - b / 2), b * 0.8, rng.uniform(0, 0.5) * b)
    if kind == 4:  # a body with arms or pins
        reach = rng.uniform(0.05, 0.6) * np.pi / fold
        arms = np.maximum(radius - 0.96, np.abs(radius * np.sin(local)) - reach * rng.uniform(0.5, 1))
        return np.minimum(arms, radius - rng.uniform(0.4, 0.8))
    bold = max(rng.uniform(0, 0.2), 2 / f.scale)
    if kind == 5:
        return sign(rng, f.u / 0.7, f.v / 0.7) - bold
    if kind == 6:  # one sign around a point
        at, local = rng.uniform(0.3, 0.6), sectors(angle, int(rng.integers(2, 13)))
        ring = sign(rng, (radius * np.cos(local) - at) / 0.38, radius * np.sin(local) / 0.38)
        return np.maximum(np.minimum(0.38 * ring, radius - at), radius - 0.97)
    if kind == 7:  # the two halves mirror each other
        return np.maximum(sign(rng, np.abs(f.u) / 0.7 - rng.uniform(0, 0.6), f.v / 0.7), radius - 0.9) - bold
    ripple = noise(rng, len(radius), 0.2 * f.scale / len(radius) + 0.02)
    return radius * (1 + rng.uniform(0, 0.5) * np.abs(np.sin(angle))) - 0.9 + rng.uniform(0.02, 0.12) * ripple


def openings(rng: Rng, f: Frame) -> Array:
    """Signed distance (S, S) to a bore and to rings of holes or slots; at least one."""
    radius, angle = f.polar
    d = radius - (rng.uniform(0.1, 0.5) if rng.random() < 0.7 else 0.0)
    for _ in range(rng.integers(0, 3)):
        fold, at = int(rng.integers(2, 13)), rng.uniform(0.35, 0.8)
        x, y = radius * np.cos(sectors(angle, fold)) - at, radius * np.sin(sectors(angle, fold))
        hole = rng.uniform(0.03, min(0.2, 2 * at / fold))
        d = np.minimum(d, np.hypot(x, y) - hole if rng.random() < 0.6 else box(x, y, hole, hole * rng.uniform(0.2, 2)))
    return d


def part(rng: Rng, size: int) -> Layers:
    """An object of random outline, openings, material, inlays and print."""
    f = place(rng, size)
    d = outline(rng, f)
    if rng.random() < 0.45:
        pierced = np.maximum(d, -openings(rng, f))
        d = pierced if (pierced < 0).sum() > 0.2 * (d < 0).sum() else d
    image = lit(material(rng, size), f.each(rng, rng.uniform(0, 0.12)))
    for _ in range(rng.integers(0, 4)):
        image = inlay(rng, f, d, image)
    image = lit(image, rng.uniform(0, 1) * f.bevel(rng, d, log_uniform(rng, 0.03, 0.5)))
    if rng.random() < 0.3:
        gleam = np.clip(np.cos(int(rng.integers(1, 4)) * f.polar[1] - rng.uniform(0, 6)), 0, 1) ** rng.integers(1, 20)
        image = lit(image, rng.uniform(0.1, 0.7) * gleam)
    if rng.random() < 0.3:
        image = strewn(rng, image, f.cover(d + 0.05), f.scale / size)
    if rng.random() < 0.25:
        where = rng.uniform(-0.3, 0.3, 2)
        mark = decal(lettering(rng, int(rng.integers(2, 8))), (f.u - where[0]) / 0.5, (f.v - where[1]) / 0.15)
        image = paint(image, rng.uniform(0.4, 1) * mark, any_colour(rng))
    return stand(rng, image, f.cover(d))


def inlay(rng: Rng, f: Frame, d: Array, image: Array) -> Array:
    """A ring, step, seam, sign, ring of elements, or half of the object in another material, raised or sunk."""
    radius, angle = f.polar
    kind = rng.integers(6)
    if kind == 0:
        shape = np.abs(radius - rng.uniform(0.2, 0.9)) - log_uniform(rng, 0.01, 0.2)
    elif kind == 1:  # follows the outline
        shape = np.abs(d + rng.uniform(0.05, 0.4)) - log_uniform(rng, 0.01, 0.1)
    elif kind == 2:
        shape = np.abs(f.u if rng.random() < 0.5 else f.v) - log_uniform(rng, 0.01, 0.4)
    elif kind == 3:
        fold, at = int(rng.integers(2, 16)), rng.uniform(0.2, 0.8)
        x, y = radius * np.cos(sectors(angle, fold)) - at, radius * np.sin(sectors(angle, fold))
        element = rng.uniform(0.03, min(0.3, 3 * at / fold))
        shape = np.hypot(x, y) - element if rng.random() < 0.5 else box(x, y, element, element * rng.uniform(0.2, 1))
    elif kind == 4:
        reach, where = log_uniform(rng, 0.15, 0.7), rng.uniform(-0.4, 0.4, 2)
        shape = reach * sign(rng, (f.u - where[0]) / reach, (f.v - where[1]) / reach)
    else:
        shape = f.u - rng.uniform(-0.5, 0.5)
    other = material(rng, len(image)) if rng.random() < 0.4 else flat(len(image), any_colour(rng))
    if rng.random() < 0.6:
        image = paint(image, rng.uniform(0.3, 1) * f.cover(shape), other)
    return lit(image, rng.uniform(-0.8, 0.8) * f.bevel(rng, shape, log_uniform(rng, 0.02, 0.15)))


@lru_cache(maxsize=1)
def photographs() -> list[Array]:
    """RGB uint8 samples that scikit-image ships."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [np.asarray(Image.open(folder / name).convert("RGB")) for name in PHOTOGRAPHS]


def photographed(rng: Rng, size: int) -> Layers:
    """A square piece of a photograph, or an object cut out of one."""
    photos = photographs()
    photo = photos[int(rng.integers(len(photos)))]
    side = int(log_uniform(rng, min(64, 0.2 * min(photo.shape[:2])), min(photo.shape[:2])))
    y, x = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
    piece = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    piece = np.ascontiguousarray(np.rot90(piece, int(rng.integers(4)))).astype(np.float32) / 255
    if rng.random() < 0.3:
        f = place(rng, size)
        d = outline(rng, f)
        return stand(rng, lit(piece, rng.uniform(0, 0.8) * f.bevel(rng, d, log_uniform(rng, 0.03, 0.5))), f.cover(d))
    return surface(rng, piece)


Sources = Sequence[Callable[[Rng, int], Layers]]


def drawn(sources: Sources, rng: Rng, size: int) -> Layers:
    return sources[int(rng.integers(len(sources)))](rng, size)


def kaleidoscope(sources: Sources, rng: Rng, size: int) -> Layers:
    """A piece of another family's image, repeated as a wallpaper or around a point: only a defect breaks the symmetry."""
    piece, mirrored = drawn(sources, rng, size).image, rng.random() < 0.6
    if rng.random() < 0.5:
        u, v = lattice(rng, size, 1 / 12, 1 / 2, warp=rng.uniform(0, 0.03))
        u = u + rng.choice([0.0, 0.0, 0.5]) * np.floor(v)
        x, y = ((np.abs(w % 2 - 1) if mirrored else w % 1) for w in (u, v))
        return surface(rng, sampled(rng, piece, x, y))
    f = place(rng, size)
    radius, angle = f.polar
    local = sectors(angle, int(rng.integers(2, 13)))
    local = np.abs(local) if mirrored else local
    image = sampled(rng, piece, 0.5 + 0.5 * radius * np.cos(local), 0.5 + 0.5 * radius * np.sin(local))
    if rng.random() < 0.3:
        return surface(rng, image)
    d = outline(rng, f)
    return stand(rng, lit(image, rng.uniform(0, 1) * f.bevel(rng, d, log_uniform(rng, 0.03, 0.5))), f.cover(d))


def sampled(rng: Rng, piece: Array, x: Array, y: Array) -> Array:
    """(S, S, 3): a random square of the piece (S, S, 3) read where x, y (S, S) say, in [0, 1]; mirrored beyond it."""
    side = len(piece) * rng.uniform(0.3, 1)
    left, top = rng.uniform(0, len(piece) - side, 2)
    return cv2.remap(
        piece, (left + side * x).astype(np.float32), (top + side * y).astype(np.float32),
        cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT,
    )  # fmt: skip


def hybrid(things: Sources, materials: Sources, rng: Rng, size: int) -> Layers:
    """A thing made of, or printed with, the material of another family, at times on a third as its table."""
    thing, material_of = drawn(things, rng, size), drawn(materials, rng, size).image
    if rng.random() < 0.5:
        shade = grey(thing.foreground)[..., 0]
        image = lit(material_of, rng.uniform(0.4, 1) * (shade / max(float(shade.mean()), 0.05) - 1))
    else:
        image = paint(thing.foreground, np.full((size, size), rng.uniform(0.2, 0.7)), material_of)
    table = drawn(materials, rng, size).image if rng.random() < 0.5 else thing.background
    return Layers(table, image, thing.alpha)
