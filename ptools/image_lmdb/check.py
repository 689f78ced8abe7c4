"""Is this file an image that a training run will be able to decode?

The judge is PIL, as `torchvision.datasets.ImageFolder` calls it. Its verdict costs a millisecond
for a photo, so a look at the first and last bytes comes first: it can say "fine" or "a bomb", and
leaves every doubt to PIL.
"""

import threading
import warnings
from io import BytesIO
from struct import Struct
from typing import Literal

Check = Literal["header", "decode", "none"]

# Twice PIL's default MAX_IMAGE_PIXELS: from here on PIL refuses to open an image.
MOST_PIXELS = 2 * (1024**3 // 4 // 3)

_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what every decoder reads
_JPEG_TABLES = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))  # what precedes a frame
_JPEG_SEGMENT = Struct(">BBH")  # ff, marker, length
_JPEG_FRAME = Struct(">4xBHHB")  # bits, height, width, components
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE = Struct(">16xII")
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_GIF = (b"GIF87a", b"GIF89a")
_GIF_END = b"\0;"  # the last block's terminator and the trailer


def problem(data: bytes | memoryview, check: Check) -> str | None:
    """Say why an image cannot be used, or None where nothing is wrong with it.

    "header" reads the size and the end of a JPEG, PNG, WebP or GIF, and decodes only what looks
    odd and other formats. "decode" decodes every image as ImageFolder does. "none" looks at
    nothing.
    """
    if check == "none":
        return None
    kind, width, height, whole = _glance(data)
    if width * height > MOST_PIXELS:
        return f"a decompression bomb: {width}x{height} pixels"
    if check == "header" and whole and width and height:
        return None
    if not data:
        return "empty file"
    if bytes(data[:4]) in _POSTSCRIPT:  # PIL would hand it to Ghostscript, a program to be run
        return "PostScript, which is no image"
    return _decoding_problem(data, kind)


def is_clipped_grey(data: bytes | memoryview) -> bool:
    """Whether this is a PNG of 16-bit grey, which PIL's `convert("RGB")` clips to white."""
    return data[24:26] == b"\x10\0" and data[:8] == _PNG and data[12:16] == b"IHDR"


def jpeg_frame(data: bytes | memoryview) -> tuple[int, int, int] | None:
    """Read width, height and the number of components of a JPEG.

    None where it is no JPEG or not a common one: 8 bits, Huffman-coded, in lossy DCT form.
    The segments are those of ITU-T T.81, annex B.
    """
    if data[:3] != _JPEG:
        return None
    position, end = 2, len(data) - 10
    while position < end:
        first, marker, length = _JPEG_SEGMENT.unpack_from(data, position)
        if first != 0xFF:
            return None
        if marker in _JPEG_FRAMES:
            bits, height, width, components = _JPEG_FRAME.unpack_from(data, position)
            common = bits == 8 and length == 8 + 3 * components
            return (width, height, components) if common else None
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _JPEG_TABLES and length >= 2:
            position += 2 + length
        else:
            return None
    return None


def _glance(data: bytes | memoryview) -> tuple[str, int, int, bool]:
    """Kind, width, height, and whether it ends as its format should; 0 x 0 if they are not told."""
    head = bytes(data[:32])
    if head[:3] == _JPEG:
        width, height, _ = jpeg_frame(data) or (0, 0, 0)
        return "JPEG", width, height, data[-2:] == _JPEG_END
    if head[:8] == _PNG:
        if head[12:16] != b"IHDR" or len(head) < _PNG_SIZE.size:
            return "PNG", 0, 0, False
        width, height = _PNG_SIZE.unpack_from(head)
        return "PNG", width, height, data[-12:] == PNG_END
    if head[:6] in _GIF:
        width, height = _little(head[6:8]), _little(head[8:10])
        return "GIF", width, height, data[-2:] == _GIF_END
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        width, height = _webp_size(head)
        whole = len(data) > len(head) and _little(head[4:8]) + 8 == len(data)
        return "WebP", width, height, whole
    return "", 0, 0, False


def _webp_size(head: bytes) -> tuple[int, int]:
    """The canvas, from the first chunk: RFC 9649, sections 2.5 to 2.7."""
    match head[12:16]:
        case b"VP8X":
            return 1 + _little(head[24:27]), 1 + _little(head[27:30])
        case b"VP8L":
            bits = _little(head[21:25])
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return _little(head[26:28]) & 0x3FFF, _little(head[28:30]) & 0x3FFF
    return 0, 0


def _little(number: bytes) -> int:
    return int.from_bytes(number, "little")


def _decoding_problem(data: bytes | memoryview, kind: str) -> str | None:
    from PIL import Image

    try:
        with quiet_pil, Image.open(BytesIO(data)) as image:
            kind = kind or image.format or ""
            image.convert("RGB")
    # PIL's parsers meet hostile bytes unguarded: besides OSError they let SyntaxError, ValueError,
    # struct.error, IndexError, MemoryError, ZeroDivisionError and others through.
    except Exception as error:
        return decoding_fault(error, data, kind)
    return None


def decoding_fault(error: Exception, data: bytes | memoryview, kind: str = "") -> str:
    """Word an exception of PIL's in a few words; `kind` is the format, as far as it is known."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return f"a decompression bomb: more than {MOST_PIXELS} pixels"
    if isinstance(error, UnidentifiedImageError):
        if kind:
            return f"{kind} with a broken header"
        return f"not an image that PIL can read (starts with {bytes(data[:12])!r})"
    if "truncated" in str(error).lower():
        return f"truncated {kind or 'image'}"
    return f"broken {kind or 'image'}: {str(error)[:100] or type(error).__name__}"


class _QuietPil:
    """Silences PIL's warnings as long as any thread is inside.

    `warnings.catch_warnings` swaps a global list, so threads that each entered it would put back
    each other's filters: here the first one in enters it, and the last one out leaves it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.__exit__(None, None, None)


quiet_pil = _QuietPil()
