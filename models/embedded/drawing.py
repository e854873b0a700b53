"""What surfaces, objects and defects are drawn with: layers, colours, noise fields, strokes.

Images are (S, S, 3) RGB float32 in [0, 1], masks and fields (S, S) float32, lengths are fractions of S.
"""

import colorsys
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np

Array = np.ndarray
Rng = np.random.Generator
SUBPIXEL = 4  # bits of fraction in the coordinates given to OpenCV's drawing functions


@dataclass(frozen=True)
class Layers:
    """What a family renders: background and foreground (S, S, 3), alpha (S, S) of the foreground, 1 for surfaces."""

    background: Array
    foreground: Array
    alpha: Array

    @cached_property
    def image(self) -> Array:
        return paint(self.background, self.alpha, self.foreground)


@lru_cache(maxsize=4)
def pixel_grid(size: int) -> tuple[Array, Array]:
    """x, y (S, S) in [-0.5, 0.5], read-only."""
    x, y = np.meshgrid(*[np.linspace(-0.5, 0.5, size, dtype=np.float32)] * 2)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def rotate(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates of the same points along axes turned by an angle."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return c * x + s * y, c * y - s * x


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def colour(rng: Rng, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """(3,) RGB drawn uniformly from ranges of HSV."""
    h, s, v = (rng.uniform(*limits) for limits in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v), np.float32)


def any_colour(rng: Rng) -> Array:
    return colour(rng, (0, 1), (0, 0.8), (0.15, 0.95))


def metal_colour(rng: Rng) -> Array:
    """Steel, two times in three, else brass, copper or anything between."""
    if rng.random() < 0.67:
        return colour(rng, (0.5, 0.7), (0, 0.12), (0.35, 0.8))
    return colour(rng, (0.04, 0.15), (0.3, 0.6), (0.5, 0.85))


def contrasting(rng: Rng, image: Array, at: Array) -> Array:
    """(3,) a colour that differs, slightly or strongly, from the image at pixel `at` (x, y)."""
    local = image[int(at[1]), int(at[0])]
    strength = log_uniform(rng, 0.15, 1.0)
    opposite = np.full(3, local.mean() < rng.uniform(0.3, 0.7))
    target = any_colour(rng) if rng.random() < 0.5 else opposite
    return (local + strength * (target - local)).astype(np.float32)


def flat(size: int, tint: Array) -> Array:
    return np.full((size, size, 3), tint, np.float32)


def paint(image: Array, mask: Array, tint: Array | float) -> Array:
    """Blend tint, (3,) or (S, S, 3), into the image where mask (S, S) is 1."""
    return image + mask.astype(np.float32, copy=False)[..., None] * (np.asarray(tint, np.float32) - image)


def lit(image: Array, *shades: Array) -> Array:
    """Brighten (S, S, 3) by relative shades (S, S): 0 leaves a pixel as it is."""
    gain = np.asarray(1 + sum(shades), np.float32)
    return np.clip(image * gain[..., None], 0, 1)


def noise(rng: Rng, size: int, pitch: float, stretch: float = 1.0) -> Array:
    """(S, S) smooth noise in about [-1, 1] with features of a pitch, stretched along x."""
    rows, columns = (int(np.clip(np.ceil(1 / p), 2, size)) for p in (pitch, pitch * stretch))
    return cv2.resize(rng.random((rows, columns), np.float32) * 2 - 1, (size, size), interpolation=cv2.INTER_CUBIC)


def fractal(rng: Rng, size: int, pitch: float, octaves: int = 4) -> Array:
    return sum((noise(rng, size, pitch / 2**i) / 2**i for i in range(1, octaves)), noise(rng, size, pitch))


def streaks(rng: Rng, size: int, pitch: float, stretch: float) -> Array:
    """Noise stretched along a random direction."""
    field = noise(rng, size * 3 // 2, pitch, stretch)
    turn = cv2.getRotationMatrix2D((size * 0.75, size * 0.75), rng.uniform(0, 360), 1)
    turn = turn - np.array([[0, 0, size / 4]])
    return cv2.warpAffine(field, turn, (size, size))


def lattice(rng: Rng, size: int, least: float, most: float, warp: float = 0.0) -> tuple[Array, Array]:
    """u, v (S, S): coordinates in a random direction, counted in pitches of between least and most, slightly warped."""
    x, y = pixel_grid(size)
    pitch = log_uniform(rng, least, most)
    angle = rng.uniform(0, np.pi) if rng.random() < 0.6 else rng.normal(0, 0.03)
    u, v = (w / pitch + rng.uniform(0, 9) for w in rotate(x, y, angle))
    if warp:
        u, v = (w + warp * noise(rng, size, 0.25) for w in (u, v))
    return u, v


def grains(rng: Rng, size: int, pitch: float) -> tuple[Array, Array]:
    """Voronoi cells of scattered seeds: distance (S, S) to the nearest seed in pixels, and cell numbers (S, S)."""
    n = int(1 / pitch**2)
    seeds = np.ones((size, size), np.uint8)
    seeds[rng.integers(0, size, n), rng.integers(0, size, n)] = 0
    return cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)


def relief(rng: Rng, height: Array) -> Array:
    """(S, S) shade in [-0.7, 0.7] of a height field (pixels) under grazing light from a random side."""
    angle = rng.uniform(0, 2 * np.pi)
    height = height.astype(np.float32, copy=False)
    dx, dy = (cv2.Sobel(height, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    return np.clip(float(np.cos(angle)) * dx + float(np.sin(angle)) * dy, -0.7, 0.7)


def stroke(size: int, points: Array, thickness: float, fill: bool = False) -> Array:
    """(S, S) mask of an antialiased polyline through, or polygon around, points (n, 2) in pixels."""
    canvas = np.zeros((size, size), np.uint8)
    line = [np.round(points * 2**SUBPIXEL).astype(np.int32)]
    if fill:
        cv2.fillPoly(canvas, line, 255, cv2.LINE_AA, SUBPIXEL)
    else:
        cv2.polylines(canvas, line, False, 255, max(1, round(thickness)), cv2.LINE_AA, SUBPIXEL)
    return canvas.astype(np.float32) / 255


def grey(image: Array) -> Array:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def lettering(rng: Rng, n: int) -> Array:
    """(32, 16 n) mask of one line of n random characters."""
    canvas = np.zeros((32, 16 * n), np.uint8)
    text = "".join(chr(c) for c in rng.choice(np.frombuffer(b"ABCDEFGHKLMNPRSTUVXYZ0123456789 ", np.uint8), n))
    cv2.putText(canvas, text, (2, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def decal(canvas: Array, u: Array, v: Array) -> Array:
    """The canvas seen where u, v (S, S) are in [-1, 1]; 0 elsewhere."""
    height, width = canvas.shape[:2]
    x, y = (u + 1) * (width / 2) - 0.5, (v + 1) * (height / 2) - 0.5
    return cv2.remap(canvas, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
