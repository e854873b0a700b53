"""Every kind of bad object has its reason; headers tell what a viewer shows."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import InputError
from tasks.images import Header, UnreadableImage, decode_image, peek_header, read_header, read_mask, viewed
from tests.tasks.conftest import photo


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


PNG, JPEG = encoded(photo(), "PNG"), encoded(photo(), "JPEG")


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels that holds none of them."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "empty": (b"", "empty"),
    "text": (b"this is a note", "unsupported"),
    "postscript, which would be run": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
        "unsupported",
    ),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported"),
    "truncated png": (PNG[: len(PNG) // 2], "corrupt"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "corrupt"),
    "signature alone": (PNG[:10], "corrupt"),
    "wrong checksum": (PNG[:29] + b"\0\0\0\0" + PNG[33:], "corrupt"),
    "wrong checksum of the pixels": (PNG[:-20] + bytes(4) + PNG[-16:], "corrupt"),
    "bomb": (bomb(), "too_large"),
}


@pytest.mark.parametrize(("data", "kind"), BAD.values(), ids=BAD.keys())
def test_a_bad_object_has_its_reason(data: bytes, kind: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data)
    assert caught.value.kind == kind
    assert caught.value.detail
    with pytest.raises(UnreadableImage) as at_ingest:
        read_header(data)
    assert (at_ingest.value.kind, at_ingest.value.detail) == (kind, caught.value.detail)


def test_the_first_frame_of_many_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode_image(data).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_a_header_has_the_size_that_a_viewer_shows() -> None:
    assert read_header(encoded(photo(), "JPEG", exif=orientation(6))) == Header(40, 60, "RGB")
    assert read_header(JPEG) == Header(60, 40, "RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("number", [1, 3, 6, 8])
def test_a_header_alone_says_what_the_decoded_image_is(kind: str, number: int) -> None:
    data = encoded(photo(), kind, **({} if kind in ("GIF", "BMP") else {"exif": orientation(number)}))
    assert peek_header(io.BytesIO(data)) == read_header(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"MM\0*\0\0\0\x08\xff\xff", b"garbage!garbage!"])
def test_damaged_exif_data_does_not_make_an_image_unreadable(kind: str, exif: bytes) -> None:
    """With a resolution of its own, as a JPEG of which Pillow has not looked for it in the EXIF data yet."""
    data = encoded(photo(), kind, exif=b"Exif\0\0" + exif, dpi=(72, 72))
    assert viewed(decode_image(data)).size == (60, 40)
    assert peek_header(io.BytesIO(data)) == read_header(data) == Header(60, 40, "RGB")


def test_an_image_of_which_a_side_has_no_end_is_too_large() -> None:
    """Its pixels are few; what makes its map is as long as the side."""
    data = encoded(Image.new("1", (20_000_000, 1)), "PNG")
    for look in (decode_image, lambda found: peek_header(io.BytesIO(found))):
        with pytest.raises(UnreadableImage, match="too_large"):
            look(data)


def test_warnings_of_the_decoder_are_left_alone_by_threads_that_decode() -> None:
    import warnings
    from concurrent.futures import ThreadPoolExecutor

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_image, [PNG, JPEG] * 50))
    assert warnings.filters == before


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
SEEN_AS_RAMP = {
    "16-bit PNG": encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"),
    "16-bit TIFF": encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF"),
    "32-bit TIFF": encoded(Image.fromarray(RAMP.astype(np.int32) * 257), "TIFF"),
    "float TIFF": encoded(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"),
    "palette": encoded(Image.fromarray(RAMP).convert("P"), "PNG"),
    "LA": encoded(Image.fromarray(RAMP).convert("LA"), "PNG"),
    "RGBA": encoded(Image.fromarray(RAMP).convert("RGBA"), "PNG"),
    "EXIF mirrored": encoded(Image.fromarray(RAMP[:, ::-1]), "PNG", exif=orientation(2)),
}  # fmt: skip


@pytest.mark.parametrize("data", SEEN_AS_RAMP.values(), ids=SEEN_AS_RAMP.keys())
def test_every_mode_is_shown_as_a_viewer_shows_it_neither_clipped_nor_indexed(data: bytes) -> None:
    shown = viewed(decode_image(data))
    assert shown.mode in ("L", "RGB")
    np.testing.assert_array_equal(np.asarray(shown.convert("L")), RAMP)


def test_transparency_is_shown_over_white() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "PNG")
    assert viewed(decode_image(data)).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_one_bit_are_shown_in_their_colours() -> None:
    cmyk = viewed(decode_image(encoded(Image.new("RGB", (8, 8), (200, 40, 40)).convert("CMYK"), "JPEG", quality=95)))
    np.testing.assert_allclose(cmyk.getpixel((4, 4)), (200, 40, 40), atol=4)
    bits = viewed(decode_image(encoded(Image.fromarray(RAMP).convert("1"), "PNG")))
    assert (bits.mode, set(np.unique(bits))) == ("L", {0, 255})


def test_a_mask_is_upright_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    Image.new("L", (60, 40)).save(tmp_path / "turned.png", exif=orientation(6))
    assert read_mask(str(tmp_path / "turned.png")).size == (40, 60)
    (tmp_path / "cut.png").write_bytes(PNG[:300])
    with pytest.raises(InputError, match=r"cut\.png cannot be read"):
        read_mask(str(tmp_path / "cut.png"))
    with pytest.raises(InputError, match=r"gone\.png does not exist any more"):
        read_mask(str(tmp_path / "gone.png"))
