"""Bit for bit the published preparation for 8-bit L, RGB and opaque RGBA; as a viewer shows it for every other mode."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from models.preprocess import MEAN, STD, binary_mask, preprocess, preprocess_mask
from models.viewing import as_viewed

SIZE = 70
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (97, 143, 3), np.uint8)


def published(image: Image.Image) -> torch.Tensor:
    image = CenterCrop(SIZE)(Resize((SIZE, SIZE), InterpolationMode.BICUBIC)(image))
    return Compose([ToTensor(), Normalize(MEAN, STD)])(image.convert("RGB"))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PHOTO),
        Image.fromarray(PHOTO[..., 0]),
        Image.fromarray(np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])),
        Image.fromarray(PHOTO[:1, :1]),
        Image.fromarray(PHOTO[:1]),
        Image.fromarray(PHOTO[:SIZE, :SIZE]),
    ],
    ids=["RGB", "L", "opaque RGBA", "one pixel", "one row", "already of that size"],
)
def test_preparation_is_the_published_one_bit_for_bit(image: Image.Image) -> None:
    assert torch.equal(preprocess(image, SIZE), published(image))


def test_a_palette_image_is_shown_in_its_colours() -> None:
    image = Image.fromarray(PHOTO).quantize(16)
    assert torch.equal(preprocess(image, SIZE), published(image.convert("RGB")))


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (10, 10), (200, 0, 0, 0))
    half = Image.new("LA", (10, 10), (0, 128))
    assert as_viewed(clear).getpixel((0, 0)) == (255, 255, 255)
    assert as_viewed(half).getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_palette_entry_is_laid_over_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.info["transparency"] = 0
    assert as_viewed(image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_and_not_clipped(suffix: str) -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=suffix)
    np.testing.assert_array_equal(np.asarray(as_viewed(Image.open(buffer))), [[0, 100], [200, 255]])


def test_floats_between_zero_and_one_are_scaled_by_one() -> None:
    np.testing.assert_array_equal(np.asarray(as_viewed(Image.fromarray(np.array([[0, 0.5]], np.float32)))), [[0, 128]])


def test_one_bit_is_black_and_white() -> None:
    image = Image.fromarray(PHOTO[..., 0] > 128)
    assert image.mode == "1"
    assert torch.equal(preprocess(image, SIZE), published(image.convert("L")))


def test_cmyk_is_converted_before_it_is_resized() -> None:
    image = Image.fromarray(PHOTO).convert("CMYK")
    assert torch.equal(preprocess(image, SIZE), published(image.convert("RGB")))


def test_exif_orientation_is_applied() -> None:
    image, exif = Image.fromarray(PHOTO), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif)
    turned = as_viewed(Image.open(buffer))
    assert turned.size == (97, 143)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(PHOTO, -1))


# --- masks ------------------------------------------------------------------------------------------------------------


def published_mask(mask: Image.Image) -> np.ndarray:
    binary = Image.fromarray((np.array(mask.convert("L")) > 0).astype(np.uint8) * 255)
    return (ToTensor()(CenterCrop(SIZE)(Resize((SIZE, SIZE))(binary))) > 0.5)[0].numpy()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_mask_is_the_published_one(share: float) -> None:
    noise = Image.fromarray((RNG.random((12, 17)) < share).astype(np.uint8) * 3).resize((170, 120), 0)
    np.testing.assert_array_equal(preprocess_mask(noise, SIZE), published_mask(noise))


def test_thin_defects_vanish_as_published() -> None:
    line = np.zeros((700, 700), np.uint8)
    line[350] = 255
    assert not preprocess_mask(Image.fromarray(line), SIZE).any()
    assert binary_mask(Image.fromarray(line)).sum() == 700
