"""From the bytes of an image file to pixels, as `torchvision.datasets.ImageFolder` has them."""

import functools
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ptools.errors import UsageError
from ptools.image_lmdb.check import MOST_PIXELS, PNG_END, jpeg_frame

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Loader = Literal["pil", "array"] | Callable[[bytes], Any]

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_PLAIN = (b"\x08\0\0\0\0", b"\x08\x02\0\0\0")  # depth, colour type, methods, interlace
_SMALL = 64 << 10  # bytes: above, the time goes into inflating, and both take as long
_WAYS_OUT = (
    "apt-get install libgl1 libglib2.0-0 libxcb1, "
    "or pip uninstall opencv-python && pip install opencv-python-headless"
)


def find_loader(loader: Loader) -> Callable[[bytes], Any]:
    """Find the function that turns the bytes of a file into a sample.

    Raises:
        UsageError: the loader is neither a name known here nor a function.
    """
    if callable(loader):
        return loader
    if loader == "pil":
        return pil
    if loader == "array":
        return array
    raise UsageError(
        f"{loader!r} is no loader",
        hint='pass loader="pil", loader="array", or a function of the bytes of a file',
    )


def pil(data: bytes) -> "Image":
    """Decode to an RGB image of PIL's, like ImageFolder's default loader.

    As there, an EXIF orientation is not applied, transparency is dropped, and an animation gives
    its first frame. A small PNG with nothing but pixels in it is decoded by OpenCV, where that
    loads: to the same image, in half of the time. Raises what PIL raises.
    """
    from PIL import Image

    if _is_plain_png(data) and (decode := _opencv().decode):
        pixels = decode(data)
        if pixels is not None:
            return Image.fromarray(pixels)
    return Image.open(BytesIO(data)).convert("RGB")


def array(data: bytes) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Decode to an H x W x 3 array of uint8, in RGB: the pixels of `pil(data)`, bit for bit.

    OpenCV decodes common JPEGs (both use libjpeg-turbo) and small plain PNGs, faster than PIL and
    with the same result; everything else, where they differ, goes through PIL. Raises what PIL
    raises, but for the rare JPEG with broken bits in which OpenCV still finds a picture.
    """
    import numpy as np

    if _is_common_jpeg(data) or _is_plain_png(data):
        decode = _opencv().decode
        if decode is None:
            _say_why_slow()
        elif (pixels := decode(data)) is not None:
            return pixels
    return np.array(pil(data))


def _is_common_jpeg(data: bytes) -> bool:
    frame = jpeg_frame(data)
    if frame is None:
        return False
    width, height, components = frame
    # CMYK has 4 components, and OpenCV rounds it another way; PIL refuses bombs, OpenCV does not.
    return components in (1, 3) and width * height <= MOST_PIXELS


def _is_plain_png(data: bytes) -> bool:
    """Whether a small PNG is 8-bit RGB or grey, not interlaced, with nothing but pixels in it."""
    if data[:16] != _PNG_START or data[24:29] not in _PNG_PLAIN or len(data) > _SMALL:
        return False
    position = 33
    while data[position + 4 : position + 8] == b"IDAT":
        position += 12 + int.from_bytes(data[position : position + 4])
    return data[position:] == PNG_END


class _OpenCV(NamedTuple):
    """OpenCV's decoder, or why it does not load."""

    decode: "Callable[[bytes], np.ndarray[Any, np.dtype[np.uint8]] | None] | None"
    failure: str = ""


@functools.cache
def _opencv() -> _OpenCV:
    try:
        from cv2 import IMREAD_COLOR_RGB, IMREAD_IGNORE_ORIENTATION, error, imdecode
    # AttributeError: opencv-python and opencv-python-headless in one environment.
    except (ImportError, AttributeError) as failure:
        return _OpenCV(None, str(failure))
    import numpy as np

    flags = IMREAD_COLOR_RGB | IMREAD_IGNORE_ORIENTATION

    def decode(data: bytes) -> Any:
        try:
            return imdecode(np.frombuffer(data, np.uint8), flags)
        except error:
            return None

    return _OpenCV(decode)


@functools.cache
def _say_why_slow() -> None:
    warnings.warn(
        f"OpenCV does not load ({_opencv().failure}), so PIL decodes, more slowly; "
        f"to have OpenCV: {_WAYS_OUT}",
        stacklevel=3,
    )
