"""Every kind of bad object has its reason; headers tell what a viewer shows."""

import io
import struct
import zlib

import pytest
from PIL import Image

from tasks.images import Header, UnreadableImage, decode_image, read_header
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


def test_the_first_frame_of_many_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode_image(data).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_a_header_has_the_size_that_a_viewer_shows() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_header(encoded(photo(), "JPEG", exif=exif)) == Header(40, 60, "RGB")
    assert read_header(JPEG) == Header(60, 40, "RGB")


def test_damaged_exif_data_does_not_make_an_image_unreadable() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert decode_image(data).size == (60, 40)
    assert read_header(data).width == 60
