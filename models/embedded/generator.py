"""Seeded, procedural images of surfaces and objects, flawless and damaged, with exact defect masks (numpy and OpenCV).

A family renders layers, a defect paints on the object, a camera photographs the flawless and the damaged versions with
the same parameters: within a scene only the defect tells the images apart. Flawless images carry print, highlights,
grain and shadows of their own, so that odd looking alone is not damaged. All random numbers come from one stream that
family and seed determine. About 14 ms a scene of 192 px with two damaged images, on one core.

Conventions: images are (S, S, 3) RGB float32 in [0, 1], masks and fields (S, S) float32, lengths are fractions of S.
"""

import colorsys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np

Array = np.ndarray
Rng = np.random.Generator
SUBPIXEL = 4  # bits of fraction in the coordinates given to OpenCV's drawing functions
VISIBLE = 0.05  # the least change of a channel that counts as part of a defect
LEAST_AREA = 0.001  # the least fraction of the image that a defect has to change
COPIES = 16  # copies of an object that differ from one another


@dataclass(frozen=True)
class Layers:
    """What a family renders: background and foreground (S, S, 3), alpha (S, S) of the foreground, 1 for surfaces."""

    background: Array
    foreground: Array
    alpha: Array

    @cached_property
    def image(self) -> Array:
        return paint(self.background, self.alpha, self.foreground)


Family = Callable[[Rng, int], Layers]
Defect = Callable[[Rng, Layers], Array]


@dataclass(frozen=True)
class Scene:
    """One flawless image (S, S, 3) uint8, damaged versions of it, and for each its mask (S, S) bool and kind."""

    family: str
    normal: Array
    damaged: tuple[Array, ...]
    masks: tuple[Array, ...]
    defects: tuple[str, ...]


def scene(family: str, size: int, seed: int, n_damaged: int = 2) -> Scene:
    """The scene of this family and seed: the same arguments give the same bytes."""
    rng = np.random.default_rng([zlib.crc32(family.encode()), seed])
    layers = FAMILIES[family](rng, size)
    camera = random_camera(rng, size)
    if camera.grey:
        layers = Layers(grey(layers.background), grey(layers.foreground), layers.alpha)
    damages = [damage(rng, layers, camera.grey) for _ in range(n_damaged)]
    return Scene(
        family=family,
        normal=photograph(rng, camera, layers.image),
        damaged=tuple(photograph(rng, camera, image) for _, image, _ in damages),
        masks=tuple(mask for _, _, mask in damages),
        defects=tuple(name for name, _, _ in damages),
    )


def damage(rng: Rng, layers: Layers, is_grey: bool, tries: int = 8) -> tuple[str, Array, Array]:
    """Kind, damaged image and mask of a random defect that shows; a strong stain if none of the tries did."""
    names = list(DEFECTS)
    for attempt in range(tries + 1):
        name, defect = ("stain", strong_stain) if attempt == tries else pick_item(rng, names)
        changed = paint(layers.image, np.float32(1) * (layers.alpha > 0.5), np.clip(defect(rng, layers), 0, 1))
        changed = grey(changed) if is_grey else changed
        mask = visible_change(layers.image, changed)
        if mask.sum() >= LEAST_AREA * mask.size:
            break
    return name, changed, mask


def visible_change(before: Array, after: Array) -> Array:
    """(S, S) bool: some channel differs by more than VISIBLE; gaps of a pixel or two are closed."""
    changed = (cv2.absdiff(before, after).max(2) > VISIBLE).astype(np.uint8)
    return cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0


# --- camera -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """light: gain (S, S, 3) of uneven light, vignetting and colour cast; kernel: blur; jpeg: quality or None."""

    light: Array
    gamma: float
    contrast: float
    kernel: Array | None
    noise: float
    grey: bool
    jpeg: int | None


def random_camera(rng: Rng, size: int) -> Camera:
    x, y = pixel_grid(size)
    angle, slope, vignette = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5), rng.uniform(0, 0.6)
    light = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y) - vignette * (x * x + y * y)
    is_grey = rng.random() < 0.3
    cast = np.ones(3) if is_grey else rng.uniform(0.9, 1.1, 3)
    return Camera(
        light=light[..., None] * (cast * rng.uniform(0.8, 1.15)).astype(np.float32),
        gamma=float(np.exp(rng.uniform(-0.3, 0.3))),
        contrast=rng.uniform(0.8, 1.15),
        kernel=blur_kernel(rng, size),
        noise=rng.uniform(0, 0.03) * (rng.random() < 0.7),
        grey=is_grey,
        jpeg=int(rng.integers(50, 95)) if rng.random() < 0.3 else None,
    )


def blur_kernel(rng: Rng, size: int) -> Array | None:
    """Kernel (k, k) of slight defocus or motion; None, one time in two, for a sharp image."""
    kind, sigma = rng.choice(["sharp", "sharp", "defocus", "motion"]), rng.uniform(0.4, 1.0) * size / 192
    k = 2 * int(np.ceil(2.5 * sigma)) + 1
    if kind == "sharp":
        return None
    if kind == "defocus":
        return cv2.getGaussianKernel(k, sigma) @ cv2.getGaussianKernel(k, sigma).T
    step = rng.normal(size=2)
    step *= 1.5 * sigma / np.hypot(*step)
    streak = stroke(k, np.stack([k / 2 - 0.5 - step, k / 2 - 0.5 + step]), 1)
    return streak / streak.sum()


def photograph(rng: Rng, camera: Camera, image: Array) -> Array:
    """(S, S, 3) uint8; rng draws the noise of this exposure, all else is the camera's."""
    image = cv2.filter2D(image, -1, camera.kernel) if camera.kernel is not None else image
    image = cv2.pow(np.clip(image * camera.light, 0, 1), camera.gamma)
    image = 0.5 + camera.contrast * (image - 0.5)
    if camera.noise:
        channels = 1 if camera.grey else 3
        image = image + camera.noise * rng.standard_normal((*image.shape[:2], channels), np.float32)
    pixels = cv2.convertScaleAbs(np.clip(image, 0, 1), alpha=255)
    if camera.jpeg is None:
        return pixels
    _, code = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, camera.jpeg])
    return np.ascontiguousarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])


def grey(image: Array) -> Array:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


# --- fields, colours, drawing -----------------------------------------------------------------------------------------


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


def pick_item(rng: Rng, names: list[str]) -> tuple[str, Defect]:
    name = names[rng.integers(len(names))]
    return name, DEFECTS[name]


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


def paint(image: Array, mask: Array, tint: Array) -> Array:
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
    turn[:, 2] -= size / 4
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


# --- surfaces ---------------------------------------------------------------------------------------------------------


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


# --- objects ----------------------------------------------------------------------------------------------------------


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
    image = paint(image, rng.uniform(0.2, 0.8) * f.cover(box(f.u, f.v + 0.45 * b, 0.8 - b, 0.05, 0.05)), np.float32(1))
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
        plastic = paint(plastic, rng.uniform(0.3, 0.9) * print_row, np.float32(0.85))
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
    image = cv2.remap(canvas, *((w / zoom + 1) * n / 2 for w in (f.u, f.v)), cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
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


# --- defects ----------------------------------------------------------------------------------------------------------


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
    image = paint(layers.image, lip * rng.uniform(0.2, 0.7), np.float32(rng.choice([0.0, 1.0])))
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

FAMILIES: dict[str, Family] = {
    "carpet": carpet,
    "brushed metal": brushed_metal,
    "wood": wood,
    "tile": tile,
    "knit fabric": knit_fabric,
    "marble": marble,
    "concrete": concrete,
    "leather": leather,
    "granite": granite,
    "wire mesh": wire_mesh,
    "corrugated sheet": corrugated_sheet,
    "rubber": rubber,
    "paper": paper,
    "pill": pill,
    "capsule": capsule,
    "hex nut": hex_nut,
    "washer": washer,
    "bearing": bearing,
    "bottle": bottle,
    "button": button,
    "cookie": cookie,
    "gear": gear,
    "screw": screw,
    "microchip": microchip,
    "circuit board": circuit_board,
    "label": label,
}

SPLIT: dict[str, tuple[str, ...]] = {
    "pretrain": (
        *("carpet", "brushed metal", "wood", "knit fabric", "marble", "concrete", "rubber"),
        *("pill", "hex nut", "bottle", "button", "bearing", "circuit board", "label"),
    ),
    "auxiliary": ("tile", "granite", "paper", "screw", "washer", "microchip"),
    "held_out": ("leather", "wire mesh", "corrugated sheet", "cookie", "gear", "capsule"),
}
