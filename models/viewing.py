"""Every odd mode of an image as what a viewer would show, without torch.

Deviations from the published preprocessing, all named here: EXIF orientation is applied, transparency is laid over white,
palettes, CMYK and 1-bit are converted before resizing (the published code resizes palette indices), and 16-bit grey is
scaled to 8 bits instead of clipped.
"""

import numpy as np
from PIL import ExifTags, Image, ImageOps


def orientation(image: Image.Image) -> int:
    """1 to 8, as far as read; 1, upright, where EXIF data are damaged or missing, which says nothing of the pixels.

    A PNG's may follow its pixels, and are seen when it is loaded.
    """
    try:
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))  # a PNG's own would load it
    except MemoryError:
        raise
    except Exception:  # whatever Pillow's reader of TIFF directories stumbles over
        return 1


def upright(image: Image.Image) -> Image.Image:
    image.load()
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image  # it copies, all of a scan


def as_viewed(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, upright, as a viewer would show it."""
    image = upright(image)
    if image.mode in ("L", "RGB"):
        return image if "transparency" not in image.info else over_white(image.convert("RGBA"))
    if image.mode.startswith("I") or image.mode == "F":
        return scale_to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return over_white(image.convert("RGBA"))
    return image.convert("L" if image.mode == "1" else "RGB")


def over_white(image: Image.Image) -> Image.Image:
    """An RGBA image on a white ground, as RGB; opaque pixels keep their values exactly."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or float as 8-bit L: 0..65535 by the range of 16 bits, 0..1 by one, anything else by its own."""
    values = np.asarray(image)
    if image.mode != "F" and values.min() >= 0 and values.max() <= 65535:
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # to the nearest
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
