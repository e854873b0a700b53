"""Kinds of defect: each takes a random stream and layers, and gives the image with the defect painted on it."""

from collections.abc import Callable

import cv2
import numpy as np

from models.embedded.drawing import (
    Array,
    Layers,
    Rng,
    contrasting,
    flat,
    lit,
    log_uniform,
    noise,
    paint,
    pixel_grid,
    relief,
    rotate,
    stroke,
)

Defect = Callable[[Rng, Layers], Array]


def spot(rng: Rng, layers: Layers, on_edge: bool = False) -> Array:
    """(2,) x, y in pixels of a random point of the object, or of its edge if it has one."""
    inside = (layers.alpha > 0.5).astype(np.uint8)
    edge = inside - cv2.erode(inside, np.ones((3, 3), np.uint8)) if on_edge else inside
    points = np.flatnonzero(edge if edge.any() else inside)
    y, x = divmod(int(points[rng.integers(len(points))]), len(inside))
    return np.array([x, y], np.float32)


def extent(rng: Rng, layers: Layers) -> float:
    """Diameter of a defect in pixels."""
    return len(layers.alpha) * log_uniform(rng, 1 / 36, 1 / 3)


def blob(rng: Rng, size: int, at: Array, diameter: float, roughness: float) -> Array:
    """(S, S) height in [-inf, 1] of an irregular hill: above 0 inside a blob around `at`, in pixels."""
    x, y = pixel_grid(size)
    stretch = rng.uniform(0.6, 1.0)
    x0, y0 = (float(w) / (size - 1) - 0.5 for w in at)
    along, across = rotate(x - x0, y - y0, rng.uniform(0, np.pi))
    distance = np.hypot(along, across / stretch) * (2 * size / diameter)
    return 1 - distance + roughness * noise(rng, size, max(0.4 * diameter / size, 1 / 60))


def walk(rng: Rng, start: Array, length: float, wobble: float, steps: int = 16) -> Array:
    """(steps + 1, 2) points of a walk that turns by about `wobble` radians a step, centred on start."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, wobble, steps))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * (length / steps), 0)
    return start + np.concatenate([np.zeros((1, 2)), path]) - path[steps // 2]


def polygon(rng: Rng, size: int, at: Array, diameter: float) -> Array:
    """(S, S) mask of an irregular polygon around `at`."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 10)))
    radius = diameter * rng.uniform(0.3, 0.6, len(angle))
    return stroke(size, at + np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None], 0, fill=True)


def scratch(rng: Rng, layers: Layers) -> Array:
    """One to three near-straight lines side by side, light or dark."""
    size, at = len(layers.alpha), spot(rng, layers)
    path = walk(rng, at, 2 * extent(rng, layers) + 0.05 * size, rng.uniform(0, 0.05))
    tint, image = contrasting(rng, layers.image, at), layers.image
    for _ in range(rng.integers(1, 4)):
        line = stroke(size, path + rng.normal(0, 0.015 * size, 2), rng.uniform(0.5, 2.4) * size / 192)
        image = paint(image, line * rng.uniform(0.6, 1), tint)
    return image


def crack(rng: Rng, layers: Layers) -> Array:
    """A dark random walk with branches."""
    size, length = len(layers.alpha), 2.5 * extent(rng, layers) + 0.05 * len(layers.alpha)
    path = walk(rng, spot(rng, layers, on_edge=rng.random() < 0.5), length, rng.uniform(0.3, 0.7))
    mask = stroke(size, path, rng.uniform(0.8, 3) * size / 192)
    for _ in range(rng.integers(0, 4)):
        branch = walk(rng, path[0], length / 2, 0.5)
        mask = np.maximum(mask, stroke(size, branch - branch[0] + path[rng.integers(2, len(path))], size / 192))
    return paint(layers.image, mask * rng.uniform(0.5, 1), layers.image * rng.uniform(0, 0.4))


def cut(rng: Rng, layers: Layers) -> Array:
    """A slit that gapes in its middle, with a lit lip."""
    size, at = len(layers.alpha), spot(rng, layers)
    path = walk(rng, at, 1.5 * extent(rng, layers) + 0.04 * size, rng.uniform(0, 0.12))
    across = (path[-1] - path[0])[::-1] * (-1, 1)
    gape = np.sin(np.linspace(0, np.pi, len(path)))[:, None] * across * rng.uniform(0.03, 0.12)
    outlines = [np.concatenate([path - k * gape, (path + k * gape)[::-1]]) for k in (1, 1.6)]
    slit, lip = (stroke(size, outline, 0, fill=True) for outline in outlines)
    image = paint(layers.image, lip * rng.uniform(0.2, 0.7), float(rng.choice([0.0, 1.0])))
    return paint(image, slit, layers.background * rng.uniform(0.1, 0.6))


def hole(rng: Rng, layers: Layers) -> Array:
    """Shows the darkened background, inside a rim."""
    hill = blob(rng, len(layers.alpha), spot(rng, layers), extent(rng, layers), rng.uniform(0, 0.25))
    image = lit(layers.image, rng.uniform(-0.4, 0.4) * np.clip(1 - np.abs(hill) * 6, 0, 1))
    return paint(image, np.clip(hill * 12, 0, 1), layers.background * rng.uniform(0.05, 0.7))


def stain(rng: Rng, layers: Layers) -> Array:
    """A soft irregular blob, at times with a dried edge."""
    at = spot(rng, layers)
    hill = blob(rng, len(layers.alpha), at, extent(rng, layers), rng.uniform(0.3, 0.7))
    edge = np.clip(1 - np.abs(hill - 0.1) * 8, 0, 1) * rng.choice([0, 0.5])
    mask = np.clip(np.clip(hill * log_uniform(rng, 1.5, 10), 0, 1) * rng.uniform(0.3, 0.9) + edge, 0, 1)
    return paint(layers.image, mask.astype(np.float32), contrasting(rng, layers.image, at))


def strong_stain(rng: Rng, layers: Layers) -> Array:
    """A blob of black on light and white on dark: always shows."""
    hill = blob(rng, len(layers.alpha), spot(rng, layers), len(layers.alpha) / 5, 0.3)
    return paint(layers.image, np.clip(hill * 8, 0, 1), (layers.image < 0.5).astype(np.float32))


def discolouration(rng: Rng, layers: Layers) -> Array:
    """A shift of hue and brightness that leaves the texture as it is."""
    hill = blob(rng, len(layers.alpha), spot(rng, layers), 1.5 * extent(rng, layers), rng.uniform(0.2, 0.6))
    gain = np.exp(rng.choice([-1, 1]) * rng.uniform(0.15, 0.6) + rng.normal(0, 0.25, 3)).astype(np.float32)
    return paint(layers.image, np.clip(hill * log_uniform(rng, 1.5, 8), 0, 1), layers.image * gain + 0.1 * (gain - 1))


def dent(rng: Rng, layers: Layers) -> Array:
    """Warped inwards and shaded like a hollow or a bump."""
    size, at, diameter = len(layers.alpha), spot(rng, layers), extent(rng, layers) + 0.04 * len(layers.alpha)
    bump = np.clip(blob(rng, size, at, diameter, 0.1), 0, 1)
    bump = bump * bump * (3 - 2 * bump)
    x, y = ((w + 0.5) * (size - 1) for w in pixel_grid(size))
    pull = rng.uniform(-0.4, 0.4) * bump
    x, y = x + pull * (x - at[0]), y + pull * (y - at[1])
    image = cv2.remap(layers.image, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    return lit(image, relief(rng, diameter * rng.uniform(0.4, 1.2) * bump), rng.uniform(-0.3, 0.1) * bump)


def missing_part(rng: Rng, layers: Layers) -> Array:
    """Broken off, mostly at an edge: the background shows."""
    at = spot(rng, layers, on_edge=rng.random() < 0.8)
    return paint(layers.image, polygon(rng, len(layers.alpha), at, 1.3 * extent(rng, layers)), layers.background)


def misplaced_part(rng: Rng, layers: Layers) -> Array:
    """A part of the object, cut out, turned and pasted elsewhere on it."""
    size, source, target = len(layers.alpha), spot(rng, layers), spot(rng, layers)
    move = cv2.getRotationMatrix2D(source.tolist(), rng.uniform(30, 330), 1)
    move[:, 2] += target - source
    moved = cv2.warpAffine(layers.image, move, (size, size), borderMode=cv2.BORDER_REFLECT)
    diameter = 1.3 * extent(rng, layers) + 0.05 * size
    return paint(layers.image, polygon(rng, size, target, diameter), moved * rng.uniform(0.75, 1.1))


def contamination(rng: Rng, layers: Layers) -> Array:
    """Scattered specks of another material."""
    size, centre, reach = len(layers.alpha), spot(rng, layers), extent(rng, layers)
    mask = np.zeros((size, size), np.float32)
    for at in centre + rng.normal(0, reach / 2, (rng.integers(3, 25), 2)):
        mask = np.maximum(mask, polygon(rng, size, at, size * log_uniform(rng, 1 / 90, 1 / 25)))
    return lit(paint(layers.image, mask, contrasting(rng, layers.image, centre)), 0.3 * relief(rng, 3 * mask))


def fibre(rng: Rng, layers: Layers) -> Array:
    """A thin curly thread with its shadow."""
    size, at = len(layers.alpha), spot(rng, layers)
    curl = np.cumsum(rng.normal(0, 0.12, 40)) + rng.normal(0, 0.1)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(curl)
    step = (1.5 * extent(rng, layers) + 0.1 * size) / 40
    path = at + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * step, 0)
    thickness = rng.uniform(0.6, 2.2) * size / 192
    image = lit(layers.image, -0.35 * stroke(size, path + 1.5 * size / 192, thickness))
    return paint(image, stroke(size, path, thickness), contrasting(rng, layers.image, at))


def chipped_edge(rng: Rng, layers: Layers) -> Array:
    """Splintered off at an edge: rough, paler or darker material shows."""
    size, at = len(layers.alpha), spot(rng, layers, on_edge=True)
    mask = polygon(rng, size, at, 0.8 * extent(rng, layers) + 0.02 * size)
    inner = contrasting(rng, layers.image, at)
    rough = lit(flat(size, inner), 0.2 * noise(rng, size, 1 / 60), 0.6 * relief(rng, 4 * mask))
    return paint(layers.image, mask, 0.3 * layers.image + 0.7 * rough)


DEFECTS: dict[str, Defect] = {
    "scratch": scratch,
    "crack": crack,
    "cut": cut,
    "hole": hole,
    "stain": stain,
    "dent": dent,
    "missing part": missing_part,
    "misplaced part": misplaced_part,
    "contamination": contamination,
    "discolouration": discolouration,
    "fibre": fibre,
    "chipped edge": chipped_edge,
}
