"""Caffe's Datum: an image in a protobuf message, read without protobuf.

Its fields are those of caffe.proto. Pixels that are stored as such are planes, blue first, as
Caffe's convert_imageset writes them; the message does not say so, and a tool of another habit goes
unnoticed.
"""

from collections.abc import Callable
from typing import NamedTuple

Read = Callable[[int, int], bytes]  # bytes of a message: from where on, how many

_NUMBERS = {1: "channels", 2: "height", 3: "width", 5: "label", 7: "encoded"}
_DATA, _FLOATS = 4, 6
_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types
_MOST_FIELDS = 32  # a message of more is none that Caffe wrote
_FIELD_HEAD = 20  # bytes: a tag and a number, each of at most 10
_BLOCK = 64  # bytes read at once: all that comes before the data, and then all that comes after


class Datum(NamedTuple):
    """What a message says of its image, and where the bytes lie in it."""

    channels: int
    height: int
    width: int
    label: int
    encoded: int  # not 0: the data are an image file
    at: int
    length: int
    floats: bool


def read_datum(read: Read, length: int) -> Datum | None:
    """Read all but the data of a message; None if it is no Datum."""
    numbers = dict.fromkeys(_NUMBERS.values(), 0)
    at = size = position = block_at = 0
    block = b""
    for _ in range(_MOST_FIELDS):
        if position == length:
            return Datum(**numbers, at=at, length=size, floats=False) if size else None
        if position + _FIELD_HEAD > block_at + len(block):
            block_at, block = position, read(position, min(_BLOCK, length - position))
        field = _field(block, position - block_at)
        if field is None:
            return None
        number, wire, value, head = field
        position += head
        if number in _NUMBERS and wire == _VARINT:
            numbers[_NUMBERS[number]] = value
        elif number == _DATA and wire == _BYTES and position + value <= length:
            at, size = position, value
            position += value
        elif number == _FLOATS and wire in (_BYTES, _FIXED32):
            return Datum(**numbers, at=at, length=size, floats=True)
        else:
            return None
    return None


def image_in(message: bytes) -> bytes | None:
    """The image file in a message, or its pixels as a PGM or PPM file.

    None if the message is no Datum, or its pixels are not of one or three planes of its size.
    """
    datum = read_datum(lambda start, count: message[start : start + count], len(message))
    if datum is None:
        return None
    data = message[datum.at : datum.at + datum.length]
    if datum.encoded:
        return data
    plane = datum.width * datum.height
    size = b"%d %d\n255\n" % (datum.width, datum.height)
    if (datum.channels, plane) == (1, len(data)):
        return b"P5\n" + size + data
    if (datum.channels, 3 * plane) != (3, len(data)):
        return None
    pixels = bytearray(len(data))
    for channel in range(3):
        start = plane * (2 - channel)
        pixels[channel::3] = data[start : start + plane]
    return b"P6\n" + size + pixels


def _field(block: bytes, position: int) -> tuple[int, int, int, int] | None:
    """Number and wire type of a field, its value or length, and the bytes that these took."""
    if (tag := _varint(block, position)) is None:
        return None
    key, head = tag
    if key & 7 == _FIXED32:
        return key >> 3, _FIXED32, 4, head
    if (value := _varint(block, position + head)) is None:
        return None
    return key >> 3, key & 7, value[0], head + value[1]


def _varint(block: bytes, position: int) -> tuple[int, int] | None:
    """A number, and the bytes that it took."""
    number = 0
    for index, byte in enumerate(block[position : position + 10]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, index + 1
    return None
