"""Make images smaller while they are packed, if asked: fewer pixels, or a lower quality."""

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from ptools.errors import UsageError
from ptools.image_lmdb.check import decoding_fault, quiet_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_DEFAULT_QUALITY = 90
_ORIENTATION = 0x0112  # the EXIF tag
_LOSSY = ("JPEG", "WEBP", "AVIF")
_OPTIONS: dict[str, dict[str, object]] = {  # the formats that are written as they came
    "JPEG": {},
    "WEBP": {"exact": True},  # keep the colour of transparent pixels
    "AVIF": {},
    "PNG": {},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "GIF": {"optimize": False},  # would number the colours anew
    "BMP": {},
    "PPM": {},
}


class NotRecoded(Exception):
    """An image cannot be decoded or encoded again; the message says why."""


@dataclass(frozen=True)
class Recode:
    """How to make images smaller.

    `resize_short` is the most pixels that the shorter side may have, `quality` that of JPEG and
    WebP from 1 to 100 (90 where only `resize_short` is given).

    Raises:
        UsageError: a number is out of its range.
    """

    resize_short: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.resize_short is not None and self.resize_short < 1:
            raise UsageError(
                f"an image cannot be {self.resize_short} pixels wide",
                hint="give the length of the shorter side, like 256",
            )
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError(
                f"there is no quality {self.quality}", hint="give one from 1 to 100, like 90"
            )


def recoded(data: bytes, recode: Recode) -> bytes:
    """Make one image smaller and store it in its own format (a rare one: in PNG).

    What is small enough already comes back as it is, and so do animations and files of several
    pages. With `quality` alone only JPEG and WebP change, where that saves bytes.

    Pixels keep the order in which they are stored: of EXIF only the orientation tag is kept, and
    the ICC profile. Palette and 1-bit images, often masks, are resized to the nearest pixel so
    that no new values arise; all else by Lanczos, so a mask in grey is blended. Transparent
    pixels keep their colour, which ImageFolder shows.

    Raises:
        NotRecoded: PIL cannot decode the image or cannot encode it again.
    """
    from PIL import Image

    try:
        with quiet_pil, Image.open(BytesIO(data)) as image:
            return _recoded(image, data, recode)
    except Exception as error:  # anything at all: see check.py
        raise NotRecoded(decoding_fault(error, data)) from error


def _recoded(image: "ImageFile", data: bytes, recode: Recode) -> bytes:
    # MPO: a phone's JPEG with a preview or a gain map behind it. The photo alone is what counts.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return data
    size = _target(image.size, recode.resize_short)
    if size != image.size:
        return _encoded(_resized(image, size), image, recode)
    if recode.quality is None or image.format not in ("JPEG", "MPO", "WEBP"):
        return data
    encoded = _encoded(image, image, recode)
    return encoded if len(encoded) < len(data) else data


def _target(size: tuple[int, int], short: int | None) -> tuple[int, int]:
    """The size after shrinking, rounded as `torchvision.transforms.Resize` rounds it."""
    width, height = size
    if short is None or min(size) <= short:
        return size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _resized(image: "ImageFile", size: tuple[int, int]) -> "Image":
    from PIL import Image

    # A JPEG can be decoded at 1/2, 1/4 or 1/8: twice the target is enough for a clean filter.
    drafted = image.draft(None, (2 * size[0], 2 * size[1]))
    box = drafted[1] if drafted else None
    if image.mode in ("1", "P", "PA"):
        return image.resize(size, Image.Resampling.NEAREST, box)
    if image.mode in ("LA", "RGBA"):  # band by band: PIL would blacken what is transparent
        bands = [band.resize(size, Image.Resampling.LANCZOS, box) for band in image.split()]
        return Image.merge(image.mode, bands)
    return image.resize(size, Image.Resampling.LANCZOS, box)


def _encoded(image: "Image", source: "ImageFile", recode: Recode) -> bytes:
    from PIL.JpegImagePlugin import get_sampling

    file_format = "JPEG" if source.format == "MPO" else source.format or "PNG"
    if file_format not in _OPTIONS:
        file_format = "PNG"
    options = dict(_OPTIONS[file_format])
    if file_format in _LOSSY:
        options["quality"] = recode.quality or _DEFAULT_QUALITY
    if file_format == "JPEG":
        options["subsampling"] = get_sampling(source)
    if profile := source.info.get("icc_profile"):
        options["icc_profile"] = profile
    if exif := _orientation(source):
        options["exif"] = exif
    _complete_palette(image)
    output = BytesIO()
    image.save(output, file_format, **options)
    return output.getvalue()


def _complete_palette(image: "Image") -> None:
    """Give a colour to every index: PIL stores as few bits as the palette needs, not the pixels.

    A mask may mark "ignore" by 255 and yet have a palette of its classes only.
    """
    if image.mode != "P":
        return
    palette = image.getpalette() or []
    highest = max(index for index, count in enumerate(image.histogram()) if count)
    if len(palette) <= 3 * highest:
        image.putpalette(palette + [0] * (768 - len(palette)))


def _orientation(image: "ImageFile") -> bytes:
    """An EXIF block with the orientation alone; empty where the image has none."""
    from PIL import Image

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF in a good image, which ImageFolder does not look at
        return b""
    if orientation not in range(2, 9):
        return b""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif.tobytes()
