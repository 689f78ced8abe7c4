"""Images made small and put side by side."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from ptools.image_lmdb.check import problem, quiet_pil

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_SIDE = 8192  # pixels, of a grid

_GAP = 4  # pixels between tiles
_PAPER, _TILE, _CROSS = (246, 246, 246), (216, 216, 216), (140, 140, 140)


def grid_side(tiles: int, size: int) -> int:
    """The width, in pixels, of a grid of so many tiles; it is at most as high."""
    return _columns(tiles) * (size + _GAP) + _GAP


def make_grid(tiles: "Sequence[Image | None]", size: int) -> "Image":
    """Put tiles of `size` x `size` pixels side by side; None is one with a cross."""
    from PIL import Image

    columns = _columns(len(tiles))
    rows = -(-len(tiles) // columns)
    step = size + _GAP
    grid = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), _PAPER)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        place = column * step + _GAP, row * step + _GAP
        grid.paste(_crossed_tile(size) if tile is None else tile, place)
    return grid


def thumbnail(data: bytes, size: int) -> "Image | None":
    """Fit an image into a tile of `size` x `size` pixels; None if it cannot be decoded."""
    from PIL import Image

    if problem(data, "header") is not None:
        return None
    try:
        with quiet_pil, Image.open(BytesIO(data)) as image:
            image.draft("RGB", (size, size))  # a JPEG can be decoded smaller, and faster
            picture = image.convert("RGB")
    except Exception:  # PIL's parsers let nearly anything through
        return None
    scale = size / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    tile = Image.new("RGB", (size, size), _TILE)
    small = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    tile.paste(small, ((size - width) // 2, (size - height) // 2))
    return tile


def _crossed_tile(size: int) -> "Image":
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (size, size), _TILE)
    near, far = size // 4, size - 1 - size // 4
    draw = ImageDraw.Draw(tile)
    for line in ((near, near, far, far), (near, far, far, near)):
        draw.line(line, fill=_CROSS, width=max(1, size // 24))
    return tile


def _columns(tiles: int) -> int:
    """The fewest with which a grid is not higher than wide."""
    return math.isqrt(tiles - 1) + 1 if tiles > 0 else 0
