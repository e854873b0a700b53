"""Families of surfaces: textures that fill the frame. Each takes a random stream and a size and gives layers."""

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


def surface(rng: Rng, image: Array) -> Layers:
    """A texture that fills the frame, over a dark or bright backing; slightly mottled."""
    size = len(image)
    backing = flat(size, colour(rng, (0, 1), (0, 0.3), (0.02, 0.15) if rng.random() < 0.6 else (0.85, 1)))
    mottled = lit(image, rng.uniform(0, 0.08) * noise(rng, size, 0.3))
    return Layers(backing, mottled, np.ones((size, size), np.float32))


def carpet(rng: Rng, size: int) -> Layers:
    u, v = lattice(rng, size, 1 / 50, 1 / 20, warp=0.2)
    loops = rng.uniform(0, 0.3) * np.cos(np.pi * u) * np.cos(np.pi * v)
    pile = rng.uniform(0.15, 0.35) * noise(rng, size, log_uniform(rng, 1 / 160, 1 / 80), rng.uniform(1, 3))
    tint = any_colour(rng)
    image = flat(size, tint)
    if rng.random() < 0.4:
        image = paint(image, np.clip(4 * np.sin(u * rng.uniform(0.2, 0.8)), 0, 1), 0.6 * tint + 0.4 * any_colour(rng))
    return surface(rng, lit(image, loops, pile))


def brushed_metal(rng: Rng, size: int) -> Layers:
    fine, broad = streaks(rng, size, 1 / 150, rng.uniform(30, 150)), noise(rng, size, 0.5)
    return surface(rng, lit(flat(size, metal_colour(rng)), rng.uniform(0.06, 0.2) * fine, rng.uniform(0, 0.2) * broad))


def wood(rng: Rng, size: int) -> Layers:
    u, v = lattice(rng, size, 1 / 30, 1 / 10)
    bend = rng.uniform(0.5, 2.5) * np.sin(u * rng.uniform(0.05, 0.2) + noise(rng, size, 0.5))
    rings = np.sin(v * rng.uniform(0.8, 2) + bend + noise(rng, size, 0.4))
    fibre = cv2.remap(noise(rng, size, 1 / 150), (u * 2) % size, (v * size / 12) % size, cv2.INTER_LINEAR)
    image = flat(size, colour(rng, (0.04, 0.11), (0.25, 0.7), (0.3, 0.85)))
    image = lit(image, rng.uniform(0.06, 0.2) * rings, rng.uniform(0.05, 0.15) * fibre)
    if rng.random() < 0.35:
        plank = v / rng.uniform(6, 12)
        image = lit(image, 0.15 * np.sin(7.0 * np.floor(plank)), -0.5 * (np.abs(plank % 1 - 0.5) > 0.485))
    return surface(rng, image)


def tile(rng: Rng, size: int) -> Layers:
    u, v = lattice(rng, size, 1 / 9, 1 / 2.5)
    u = u + rng.choice([0, 0.5]) * (np.floor(v) % 2)
    across, down = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)
    inside = np.clip((0.5 - rng.uniform(0.02, 0.05) - np.maximum(across, down)) * 40, 0, 1).astype(np.float32)
    glaze = rng.uniform(0, 0.25) * fractal(rng, size, rng.uniform(0.03, 0.3))
    each = rng.uniform(0, 0.12) * np.sin(12.9 * np.floor(u) + 7.3 * np.floor(v))
    tiles = lit(flat(size, any_colour(rng)), glaze, each, 0.8 * relief(rng, 3 * inside))
    grout = lit(flat(size, colour(rng, (0, 0.2), (0, 0.15), (0.2, 0.9))), 0.15 * noise(rng, size, 1 / 90))
    return surface(rng, paint(grout, inside, tiles).astype(np.float32))


def knit_fabric(rng: Rng, size: int) -> Layers:
    u, v = lattice(rng, size, 1 / 22, 1 / 9, warp=0.15)
    across = 2 * (u % 1)
    leg = np.abs(np.sin(np.pi * (v + 0.6 * np.abs(u % 1 - 0.5)))) * np.abs(np.sin(np.pi * across))
    strands = 0.12 * np.sin(14 * (v + 3 * np.abs(u % 1 - 0.5)))
    tint = any_colour(rng)
    image = flat(size, tint)
    if rng.random() < 0.4:
        stripe = np.floor(v) % rng.integers(3, 9) < 2
        image = paint(image, stripe.astype(np.float32), 0.3 * tint + 0.7 * any_colour(rng))
    return surface(rng, lit(image, 0.9 * np.sqrt(leg) - 0.65, strands, 0.1 * noise(rng, size, 1 / 120)))


def marble(rng: Rng, size: int) -> Layers:
    u, _ = lattice(rng, size, 0.25, 0.8)
    veins = 1 - np.abs(np.sin(u + rng.uniform(1, 2.5) * fractal(rng, size, 0.5, 5)))
    clouds = 0.5 + 0.4 * fractal(rng, size, rng.uniform(0.2, 0.6))
    dark = rng.random() < 0.35
    base = colour(rng, (0, 1), (0, 0.25), (0.12, 0.35) if dark else (0.7, 0.95))
    image = paint(flat(size, base), rng.uniform(0.2, 0.7) * np.clip(clouds, 0, 1), base * rng.uniform(0.75, 1.1))
    vein = colour(rng, (0, 0.15), (0, 0.3), (0.6, 0.9) if dark else (0.3, 0.6))
    return surface(rng, np.clip(paint(image, rng.uniform(0.4, 0.8) * veins ** rng.integers(4, 12), vein), 0, 1))


def concrete(rng: Rng, size: int) -> Layers:
    pores = np.clip(noise(rng, size, rng.uniform(1 / 80, 1 / 40)) - rng.uniform(0.75, 0.95), 0, 1)
    clouds = rng.uniform(0.04, 0.15) * fractal(rng, size, 0.4, 5)
    image = flat(size, colour(rng, (0.05, 0.6), (0, 0.1), (0.35, 0.75)))
    return surface(rng, lit(image, clouds, rng.uniform(0.03, 0.12) * noise(rng, size, 1 / 180), -2 * pores))


def leather(rng: Rng, size: int) -> Layers:
    distance, _ = grains(rng, size, log_uniform(rng, 1 / 45, 1 / 18))
    bumps = cv2.GaussianBlur(-distance, (0, 0), 1.0)
    creases = rng.uniform(0, 4) * np.abs(fractal(rng, size, 0.15, 3))
    image = flat(size, colour(rng, (0, 0.12) if rng.random() < 0.7 else (0, 1), (0.1, 0.75), (0.12, 0.75)))
    return surface(rng, lit(image, rng.uniform(0.3, 0.8) * relief(rng, bumps + creases), 0.04 * bumps))


def granite(rng: Rng, size: int) -> Layers:
    palette = np.stack([colour(rng, (0, 1), (0, 0.25), (0.1, 0.9)) for _ in range(4)])
    palette = palette.mean(0) + rng.uniform(0.35, 1) * (palette - palette.mean(0))
    _, numbers = grains(rng, size, log_uniform(rng, 1 / 110, 1 / 40))
    minerals = palette[rng.integers(0, len(palette), numbers.max() + 1)].astype(np.float32)
    return surface(rng, lit(cv2.blur(minerals[numbers], (2, 2)), 0.08 * noise(rng, size, 1 / 150)))


def wire_mesh(rng: Rng, size: int) -> Layers:
    u, v = lattice(rng, size, 1 / 20, 1 / 6, warp=0.06)
    u = u + rng.choice([0.0, 0.0, 0.5]) * v
    thickness = rng.uniform(0.1, 0.24)
    layers = surface(rng, flat(size, metal_colour(rng)))
    mesh, over = layers.background, (np.floor(u) + np.floor(v)) % 2 > 0
    profiles = [np.clip(1 - (np.abs(w % 1 - 0.5) / thickness) ** 2, 0, 1) for w in (u, v)]
    for profile, above in ((profiles[0], None), (profiles[1], None), (profiles[0], over)):
        wire = lit(layers.foreground, 1.1 * np.sqrt(profile) - 0.75)
        mesh = paint(mesh, np.clip(4 * profile, 0, 1) * (1 if above is None else above), wire)
    return Layers(layers.background, mesh.astype(np.float32), layers.alpha)


def corrugated_sheet(rng: Rng, size: int) -> Layers:
    _, v = lattice(rng, size, 1 / 14, 1 / 4)
    flutes = np.tanh(rng.uniform(0.7, 4) * np.sin(2 * np.pi * v + rng.uniform(0, 1)))
    shine = np.cos(2 * np.pi * v + rng.uniform(0, 6))
    tint = metal_colour(rng) if rng.random() < 0.6 else any_colour(rng)
    grain = rng.uniform(0.02, 0.08) * streaks(rng, size, 1 / 120, rng.uniform(1, 20))
    return surface(rng, lit(flat(size, tint), rng.uniform(0.15, 0.35) * flutes, rng.uniform(0, 0.25) * shine, grain))


def rubber(rng: Rng, size: int) -> Layers:
    u, v = lattice(rng, size, 1 / 20, 1 / 7)
    pattern = rng.integers(4)
    if pattern == 0:
        height = 5 * np.clip(0.3 - np.hypot(u % 1 - 0.5, v % 1 - 0.5), 0, 0.1) * 10
    elif pattern == 1:
        height = 4 * np.clip(3 * np.sin(2 * np.pi * u), -1, 1)
    elif pattern == 2:
        height = 4 * np.clip(3 * np.sin(np.pi * (u + v)) * np.sin(np.pi * (u - v)), -1, 1)
    else:
        height = np.zeros_like(u)
    grain = rng.uniform(0.05, 0.25) * noise(rng, size, rng.uniform(1 / 180, 1 / 90))
    tint = colour(rng, (0, 1), (0, 0.2), (0.12, 0.4)) if rng.random() < 0.7 else any_colour(rng)
    return surface(rng, lit(flat(size, tint), 0.7 * relief(rng, height), grain))


def paper(rng: Rng, size: int) -> Layers:
    image = flat(size, colour(rng, (0.05, 0.16) if rng.random() < 0.7 else (0, 1), (0, 0.35), (0.65, 0.97)))
    u, v = lattice(rng, size, 1 / 16, 1 / 6)
    ink, print_kind = any_colour(rng), rng.integers(4)
    if print_kind < 2:  # ruled, or a grid
        lines = np.abs(v % 1 - 0.5) < 0.04
        lines = lines | (np.abs(u % 1 - 0.5) < 0.04) if print_kind else lines
        image = paint(image, 0.6 * lines.astype(np.float32), ink)
    elif print_kind == 2:  # lines of text
        text = np.concatenate([lettering(rng, 12) for _ in range(4)])
        image = paint(image, 0.8 * decal(text, (u / 6) % 2 - 1, (v / 2.5) % 2 - 1), 0.5 * ink)
    fibres = rng.uniform(0.02, 0.06) * streaks(rng, size, 1 / 150, 4) + 0.03 * noise(rng, size, 1 / 60)
    return surface(rng, lit(image, fibres))


def denim(rng: Rng, size: int) -> Layers:
    """A twill with thick and thin threads, at times with a seam."""
    u, v = lattice(rng, size, 1 / 60, 1 / 24, warp=0.1)
    twill = 0.25 * np.sin(2 * np.pi * (u + v / rng.integers(1, 4))) + 0.1 * np.sin(2 * np.pi * v)
    slub = rng.uniform(0.05, 0.2) * streaks(rng, size, 1 / 100, rng.uniform(10, 40))
    image = lit(flat(size, any_colour(rng)), twill, slub)
    if rng.random() < 0.4:
        across, along = u / 30 - np.floor(u.mean() / 30), v
        stitches = (np.abs(across % 0.25 - 0.12) < 0.01) & (along % 3 < 2) & (np.abs(across - 0.5) < 0.25)
        image = lit(image, 0.4 * relief(rng, 4 * np.clip(1 - np.abs(across - 0.5) * 3, 0, 1)))
        image = paint(image, stitches.astype(np.float32), any_colour(rng))
    return surface(rng, image)


def plaster(rng: Rng, size: int) -> Layers:
    """Rough, trowelled in arcs, or combed."""
    rough = fractal(rng, size, log_uniform(rng, 1 / 40, 1 / 10))
    u, v = lattice(rng, size, 1 / 12, 1 / 4, warp=0.3)
    arcs = np.sin(rng.uniform(4, 12) * np.hypot(u % 1 - 0.5, v % 1)) * rng.choice([0, 0, 1])
    image = flat(size, colour(rng, (0, 1), (0, 0.3), (0.5, 1)))
    return surface(rng, lit(image, rng.uniform(0.3, 1) * relief(rng, rng.uniform(1, 4) * rough + 2 * arcs)))


def asphalt(rng: Rng, size: int) -> Layers:
    """Stones of many greys, close together, in bitumen."""
    distance, numbers = grains(rng, size, log_uniform(rng, 1 / 60, 1 / 16))
    each = rng.uniform(0.2, rng.uniform(0.4, 0.9), numbers.max() + 1).astype(np.float32)[numbers]
    stones = np.clip(rng.uniform(1, 3) - 0.5 * distance, 0, 1)
    binder = colour(rng, (0, 1), (0, 0.2), (0.1, 0.3))
    image = paint(flat(size, binder), stones, each[..., None] * colour(rng, (0, 1), (0, 0.25), (0.8, 1)))
    return surface(rng, lit(image, 0.1 * noise(rng, size, 1 / 140), 0.6 * relief(rng, 2 * stones)))


def foam(rng: Rng, size: int) -> Layers:
    """Round cells of many sizes, lit from one side."""
    cells = np.zeros((size, size), np.float32)
    for pitch in (log_uniform(rng, 1 / 24, 1 / 8), log_uniform(rng, 1 / 70, 1 / 25)):
        distance, _ = grains(rng, size, pitch)
        cells = np.maximum(cells, np.clip(1 - distance / (0.45 * pitch * size), 0, 1))
    image = flat(size, any_colour(rng))
    return surface(rng, lit(image, -rng.uniform(0.2, 0.7) * cells, rng.uniform(0.2, 0.8) * relief(rng, -6 * cells)))


def parquet(rng: Rng, size: int) -> Layers:
    """Staves in a herringbone, basket or brick bond, each with its own tone and grain."""
    u, v = lattice(rng, size, 1 / 8, 1 / 2.5)
    n = int(rng.integers(2, 6))
    upright = (np.floor(u) + np.floor(v)) % 2 > 0
    if rng.random() < 0.4:
        upright, u = np.zeros_like(upright), u + 0.5 * (np.floor(v * n) % 2)
    across, along = np.where(upright, u, v), np.where(upright, v, u)
    stave = np.sin(12.9 * np.floor(across * n) + 7.3 * np.floor(along) + 3.1 * upright)
    seam = np.minimum(np.abs((across * n + 0.5) % 1 - 0.5) / n, np.abs((along + 0.5) % 1 - 0.5)) < rng.uniform(
        0.005, 0.02
    )
    grain = np.sin(across * rng.uniform(40, 120) + 2 * noise(rng, size, 0.1) + 5 * stave)
    image = flat(size, colour(rng, (0.03, 0.12), (0.25, 0.75), (0.3, 0.9)))
    image = lit(image, rng.uniform(0.05, 0.25) * stave, rng.uniform(0.02, 0.12) * grain)
    return surface(rng, lit(image, -0.5 * seam))
