"""Is this file an image that a training run will be able to decode?

The judge is PIL, as `torchvision.datasets.ImageFolder` calls it. Its verdict costs a millisecond
for a photo, so a look at the first and last bytes comes first: it can say "fine" or "a bomb", and
leaves every doubt to PIL.
"""

import threading
import warnings
from io import BytesIO
from typing import Literal, NamedTuple

Check = Literal["header", "decode", "none"]

# Twice PIL's default MAX_IMAGE_PIXELS: from here on PIL refuses to open an image.
MOST_PIXELS = 2 * (1024**3 // 4 // 3)

_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what every decoder reads
_JPEG_TABLES = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))  # what precedes a frame
_PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_GIF = (b"GIF87a", b"GIF89a")
_GIF_END = b"\0;"  # the last block's terminator and the trailer


class _Glance(NamedTuple):
    """What the first and last bytes say; a size of 0 x 0 is one that they do not tell."""

    kind: str
    width: int = 0
    height: int = 0
    whole: bool = False  # it ends as its format should


def problem(data: bytes | memoryview, check: Check) -> str | None:
    """Say why an image cannot be used, or None where nothing is wrong with it.

    "header" reads the size and the end of a JPEG, PNG, WebP or GIF, and decodes only what looks
    odd and other formats. "decode" decodes every image as ImageFolder does. "none" looks at
    nothing.
    """
    if check == "none":
        return None
    if not data:
        return "empty file"
    if bytes(data[:4]) in _POSTSCRIPT:  # PIL would hand it to Ghostscript, a program to be run
        return "PostScript, which is no image"
    kind, width, height, whole = _glance(data)
    if width * height > MOST_PIXELS:
        return f"a decompression bomb: {width}x{height} pixels"
    if check == "header" and whole and width and height:
        return None
    return _decoding_problem(data, kind)


def is_clipped_grey(data: bytes | memoryview) -> bool:
    """Whether this is a PNG of 16-bit grey, which PIL's `convert("RGB")` clips to white."""
    head = bytes(data[:26])
    return head[:8] == _PNG and head[12:16] == b"IHDR" and head[24:26] == b"\x10\0"


def jpeg_frame(data: bytes | memoryview) -> tuple[int, int, int] | None:
    """Read width, height and the number of components of a JPEG.

    None where it is no JPEG or not a common one: 8 bits, Huffman-coded, in lossy DCT form.
    The segments are those of ITU-T T.81, annex B.
    """
    if data[:3] != _JPEG:
        return None
    position, end = 2, len(data) - 10
    while position < end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        length = data[position + 2] << 8 | data[position + 3]
        if marker in _JPEG_FRAMES:
            components = data[position + 9]
            if data[position + 4] != 8 or length != 8 + 3 * components:
                return None
            height = data[position + 5] << 8 | data[position + 6]
            return data[position + 7] << 8 | data[position + 8], height, components
        if marker not in _JPEG_TABLES or length < 2:
            return None
        position += 2 + length
    return None


def _glance(data: bytes | memoryview) -> _Glance:
    head = bytes(data[:32])
    if head[:3] == _JPEG:
        width, height, _ = jpeg_frame(data) or (0, 0, 0)
        return _Glance("JPEG", width, height, data[-2:] == _JPEG_END)
    if head[:8] == _PNG:
        if head[12:16] != b"IHDR":
            return _Glance("PNG")
        width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
        return _Glance("PNG", width, height, data[-12:] == PNG_END)
    if head[:6] in _GIF:
        width, height = _little(head[6:8]), _little(head[8:10])
        return _Glance("GIF", width, height, data[-2:] == _GIF_END)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        width, height = _webp_size(head)
        whole = len(data) > len(head) and _little(head[4:8]) + 8 == len(data)
        return _Glance("WebP", width, height, whole)
    return _Glance("")


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
