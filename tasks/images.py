"""From the bytes of an object to an image, or to the reason why there is none."""

import io
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from models.viewing import as_viewed, orientation, upright
from tasks.errors import InputError
from tasks.store import read_uri

# Images all the same, of which each gets a row:
UNREADABLE_SUFFIXES = {".svg", ".heic", ".heif", ".dcm", ".raw", ".nef", ".cr2", ".dng"}
DOCUMENT_SUFFIXES = {".pdf", ".mpg", ".mpeg", ".ps", ".eps"}  # Pillow knows them, but they are no images
SUFFIXES = frozenset(Image.registered_extensions()) - DOCUMENT_SUFFIXES | UNREADABLE_SUFFIXES
FORMATS = sorted(set(Image.OPEN) - {"EPS"})  # Pillow hands PostScript to an interpreter
HUGE = 16_000_000  # pixels; larger images are handled one at a time, or the threads that read need all memory
LONGEST = 100_000  # pixels of a side: what makes its map takes 300 bytes for each
LARGE = 32_000_000  # bytes; of larger objects a few are in memory at a time, for the same reason
LARGEST = 8 * 2 * (Image.MAX_IMAGE_PIXELS or 0)  # bytes: as many pixels as Pillow decodes, 16 bits of four channels
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")


warnings.filterwarnings("ignore", module=r"PIL\.")  # once: catch_warnings is not safe in the threads that decode


class UnreadableImage(Exception):
    """kind is the word for the tables: empty, unsupported, corrupt, too_large, missing, changed, unreadable, forbidden.

    forbidden: what a store refuses, which may be the credentials' fault (see tasks.scoring.check_access); of the served
    model, an address that it may not read.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Header:
    """Width and height as a viewer shows the image (EXIF orientation applied), and Pillow's mode of its pixels."""

    width: int
    height: int
    mode: str


def open_image(data: bytes) -> Image.Image:
    """The first frame, not decoded yet; raises UnreadableImage. More pixels than Pillow's bomb limit are `too_large`."""
    return open_file(io.BytesIO(data))


def open_file(file: IO[bytes]) -> Image.Image:
    """The same of a file at its beginning, of which no more is read than Pillow needs."""
    begin = file.read(8)
    if not begin:
        raise UnreadableImage("empty", "the object has no bytes")
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        if begin.startswith(SIGNATURES):
            raise UnreadableImage("corrupt", "it begins like an image, but its header cannot be read") from error
        raise UnreadableImage("unsupported", "this is not an image in a known format") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged header raises whatever its format's reader stumbles over
        raise UnreadableImage("corrupt", f"{type(error).__name__}: {error}") from error
    if max(image.size) > LONGEST:
        raise UnreadableImage("too_large", f"{image.width} x {image.height} pixels: a side has more than {LONGEST}")
    return image


def decode_image(data: bytes) -> Image.Image:
    """The first frame, decoded; raises UnreadableImage."""
    image = open_image(data)
    try:
        if image.format == "PNG":
            open_image(data).verify()  # load() does not look at the checksums of the pixels
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # truncated and broken files raise OSError, SyntaxError, ValueError, struct.error, …
        raise UnreadableImage("corrupt", f"{type(error).__name__}: {error}") from error
    return image


def viewed(image: Image.Image) -> Image.Image:
    """A decoded image in mode L or RGB as a viewer shows it; raises UnreadableImage where its mode has no such form."""
    try:
        return as_viewed(image)
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage("unsupported", f"mode {image.mode}: {error}") from error


_decoding = threading.Lock()


def alone_if_huge(pixels: int, lock: threading.Lock = _decoding) -> AbstractContextManager[Any]:
    """What to hold while an image of so many pixels is in memory."""
    return lock if pixels > HUGE else nullcontext()


_reading = threading.BoundedSemaphore(3)


def few_if_large(size: int) -> AbstractContextManager[Any]:
    """What to hold while an object of so many bytes is in memory."""
    return _reading if size > LARGE else nullcontext()


def read_header(data: bytes) -> Header:
    """Raises UnreadableImage for whatever cannot be scored: the image is decoded, so that damage is found."""
    with alone_if_huge(count_pixels(data)):
        image = decode_image(data)
        return Header(*viewed(image).size, image.mode)


def peek_header(file: IO[bytes]) -> Header:
    """What the header says, which may be less than what follows holds; raises UnreadableImage."""
    image = open_file(file)
    try:
        return Header(*upright_size(image), image.mode)
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage("corrupt", f"{type(error).__name__}: {error}") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as a viewer shows an image that need not be decoded.

    The orientation of a PNG whose EXIF data follow its pixels is not seen: to look for it is to decode the image. Pillow
    gives a TIFF's size upright.
    """
    turned = image.format != "TIFF" and orientation(image) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def count_pixels(data: bytes) -> int:
    width, height = open_image(data).size
    return width * height


def read_mask(uri: str) -> Image.Image:
    """A ground-truth mask, upright; raises InputError where there is none that can be read."""
    try:
        return upright(decode_image(read_uri(uri)))
    except FileNotFoundError:
        raise InputError(f"the mask {uri} does not exist any more: ingest its source again") from None
    except UnreadableImage as error:
        raise InputError(f"the mask {uri} cannot be read: {error.detail}") from error
