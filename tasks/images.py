"""From the bytes of an object to an image, or to the reason why there is none."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

SUFFIXES = frozenset(Image.registered_extensions()) | {".svg", ".heic", ".heif", ".dcm", ".raw", ".nef", ".cr2", ".dng"}
SUFFIXES = SUFFIXES - {".pdf", ".mpg", ".mpeg", ".ps", ".eps"}
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")


class UnreadableImage(Exception):
    """kind is the word for the tables: empty, unsupported, corrupt, too_large, missing, changed, unreadable."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Header:
    """What an image says of itself: width and height as a viewer shows it (EXIF orientation applied), and Pillow's mode."""

    width: int
    height: int
    mode: str


def open_image(data: bytes) -> Image.Image:
    """The first frame, not decoded yet; raises UnreadableImage. More pixels than Pillow's bomb limit are `too_large`."""
    if not data:
        raise UnreadableImage("empty", "the object has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        if data.startswith(SIGNATURES):
            raise UnreadableImage("corrupt", "it begins like an image, but its header cannot be read") from error
        raise UnreadableImage("unsupported", "this is not an image in a known format") from error
    except Exception as error:  # a damaged header raises whatever its format's reader stumbles over
        raise UnreadableImage("corrupt", f"{type(error).__name__}: {error}") from error


def decode_image(data: bytes) -> Image.Image:
    """The first frame, decoded; raises UnreadableImage."""
    image = open_image(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # truncated and broken files raise OSError, SyntaxError, ValueError, struct.error, …
        raise UnreadableImage("corrupt", f"{type(error).__name__}: {error}") from error
    return image


def read_header(data: bytes) -> Header:
    image = open_image(data)
    width, height = oriented_size(image)
    return Header(width, height, image.mode)


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as a viewer shows the image: orientations 5 to 8 exchange them."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data does not make an image unreadable
        orientation = 1
    width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)
