"""What a camera makes of a scene: light, blur, noise, greyscale, compression; the same for all versions of the scene."""

from dataclasses import dataclass

import cv2
import numpy as np

from models.embedded.drawing import (
    Array,
    Rng,
    pixel_grid,
    stroke,
)


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
    decoded = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(decoded[..., ::-1])
