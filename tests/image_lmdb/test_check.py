import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ptools.image_lmdb.check import is_clipped_grey, problem

Loads = Callable[[bytes], bool]


@pytest.fixture(scope="module")
def loads(torchvision: Any, tmp_path_factory: pytest.TempPathFactory) -> Loads:
    """Whether ImageFolder's own loader takes these bytes."""
    path = tmp_path_factory.mktemp("image") / "image.jpg"

    def loads_bytes(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torchvision.datasets.folder.pil_loader(path)
        except Exception:
            return False
        return True

    return loads_bytes


def photo(mode: str = "RGB", size: tuple[int, int] = (61, 47)) -> Image.Image:
    noise = random.Random(0).randbytes(size[0] * size[1])
    bands = [Image.frombytes("L", size, noise), *Image.linear_gradient("L").resize(size).split()]
    image = Image.merge("RGB", [bands[1], bands[0], bands[1].rotate(180)]).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(bands[0])
    return image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    output = BytesIO()
    image.save(output, file_format, **options)
    return output.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF holds a whole small JPEG: an end-of-image marker near the start."""
    exif = b"Exif\0\0" + Image.Exif().tobytes()[6:] + encoded(photo(size=(16, 12)), "JPEG")
    return encoded(photo(), "JPEG", exif=exif)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def sixteen_bits() -> Image.Image:
    return Image.frombytes("I;16", (61, 47), random.Random(1).randbytes(61 * 47 * 2))


JPEGS = {
    "rgb.jpg": encoded(photo(), "JPEG"),
    "grey.jpg": encoded(photo("L"), "JPEG"),
    "cmyk.jpg": encoded(photo("CMYK"), "JPEG"),
    "progressive.jpg": encoded(photo(), "JPEG", progressive=True),
    "rotated.jpg": encoded(photo(), "JPEG", exif=rotated()),
    "thumbnail.jpg": with_thumbnail(),
    "adobe-rgb.jpg": encoded(photo(), "JPEG", keep_rgb=True),
    "restarts.jpg": encoded(photo(), "JPEG", restart_marker_rows=1),
}
PNGS = {
    **{f"{mode}.png": encoded(photo(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "16-bit.png": encoded(sixteen_bits(), "PNG"),
    "animated.png": encoded(photo(), "PNG", save_all=True, append_images=[photo().rotate(90)]),
}
OTHERS = {
    "lossy.webp": encoded(photo(), "WEBP"),
    "lossless.webp": encoded(photo(), "WEBP", lossless=True),
    "alpha.webp": encoded(photo("RGBA"), "WEBP"),
    "animated.webp": encoded(photo(), "WEBP", save_all=True, append_images=[photo("L")]),
    "still.gif": encoded(photo(), "GIF"),
    "animated.gif": encoded(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]),
    "rgb.bmp": encoded(photo(), "BMP"),
    "rgb.tiff": encoded(photo(), "TIFF"),
    "lzw.tiff": encoded(photo(), "TIFF", compression="tiff_lzw"),
    "float.tiff": encoded(photo("F"), "TIFF"),
    "rgb.ppm": encoded(photo(), "PPM"),
    "grey.pgm": encoded(photo("L"), "PPM"),
}
FILES = JPEGS | PNGS | OTHERS


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The same file as bad disks, transfers and tools leave it."""
    at = chance.randrange(len(data))
    match chance.choice(("cut", "flip", "hole", "head", "trail", "fill")):
        case "cut":
            return data[:at]
        case "flip":
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case "hole":
            return data[:at] + data[at + chance.randrange(1, 200) :]
        case "head":
            at = chance.randrange(min(60, len(data)))
            return data[:at] + chance.randbytes(1) + data[at + 1 :]
        case "trail":
            return data + chance.randbytes(20)
        case _:
            return data[:at] + bytes(len(data) - at)


@pytest.mark.parametrize("name", FILES)
def test_a_whole_image_is_fine(name: str, loads: Loads) -> None:
    assert loads(FILES[name])
    assert problem(FILES[name], "header") is None
    assert problem(FILES[name], "decode") is None


@pytest.mark.parametrize("name", FILES)
def test_decode_finds_a_problem_exactly_where_imagefolder_fails(name: str, loads: Loads) -> None:
    chance = random.Random(name)
    for _ in range(40):
        data = damaged(FILES[name], chance)
        assert (problem(data, "decode") is None) == loads(data)


@pytest.mark.parametrize("name", FILES)
def test_header_finds_a_cut_exactly_where_imagefolder_fails(name: str, loads: Loads) -> None:
    data, chance = FILES[name], random.Random(name)
    near_the_end = range(len(data) - 16, len(data))
    for at in [*chance.sample(range(1, len(data)), 40), *near_the_end]:
        assert (problem(data[:at], "header") is None) == loads(data[:at]), at


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image() -> None:
    data = JPEGS["thumbnail.jpg"]
    end = data.index(b"\xff\xd9") + 2
    assert end < len(data) // 2
    assert problem(data[:end], "header") is not None


@pytest.mark.parametrize("marker", [0x01, 0x02, 0xC3, 0xC9, 0xD0, 0xD9, 0xDA, 0xFE])
def test_a_jpeg_with_a_stray_segment_is_left_to_pil(marker: int, loads: Loads) -> None:
    data, segment = JPEGS["rgb.jpg"], bytes([0xFF, marker, 0, 4, 0, 0])
    at = data.index(b"\xff\xc0")
    stray = data[:at] + segment + data[at:]
    assert (problem(stray, "header") is None) == loads(stray)


@pytest.mark.parametrize("name", JPEGS | PNGS)
def test_bytes_after_the_end_are_no_problem(name: str, loads: Loads) -> None:
    data = FILES[name] + b"\nexported by a camera\n"
    assert loads(data)
    assert problem(data, "header") is None


@pytest.mark.parametrize(
    "magic", ["\xff\xd8\xff", "\x89PNG\r\n\x1a\n", "GIF89a", "BM", "II*\0", "P6 9"]
)
def test_no_bytes_make_the_check_itself_fail(magic: str, loads: Loads) -> None:
    chance = random.Random(magic)
    for length in range(120):
        data = magic.encode("latin1") + chance.randbytes(length)
        assert (problem(data, "decode") is None) == loads(data)
        problem(data, "header")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html><body>404", "not an image that PIL can read (starts with b'<html><body>')"),
        (JPEGS["rgb.jpg"][:-500], "truncated JPEG"),
        (PNGS["RGB.png"][:-500], "truncated PNG"),
        (OTHERS["rgb.bmp"][:-500], "truncated BMP"),
        (JPEGS["rgb.jpg"][:20], "JPEG with a broken header"),
    ],
)
def test_the_reason_says_what_is_wrong(data: bytes, reason: str) -> None:
    assert problem(data, "header") == reason
    assert problem(memoryview(data), "decode") == reason
    assert problem(data, "none") is None


def png_chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png_of(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def resized_header(name: str, at: int, size: bytes) -> bytes:
    return FILES[name][:at] + size + FILES[name][at + len(size) :]


FRAME = JPEGS["rgb.jpg"].index(b"\xff\xc0")
BOMBS = {
    "png": png_of(60000, 60000),
    "jpeg": resized_header("rgb.jpg", FRAME + 5, struct.pack(">HH", 60000, 60000)),
    "gif": resized_header("still.gif", 6, struct.pack("<HH", 60000, 60000)),
    "webp": resized_header("lossy.webp", 26, struct.pack("<HH", 16383, 16383)),
    "lossless webp": resized_header("lossless.webp", 21, b"\xff\xff\xff\x0f"),
    "alpha webp": resized_header("alpha.webp", 24, b"\x5f\xea\0" * 2),
    "bmp": resized_header("rgb.bmp", 18, struct.pack("<ii", 60000, 60000)),
    "ppm": b"P6 60000 60000 255\n" + bytes(100),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_by_its_header(name: str, loads: Loads) -> None:
    assert not loads(BOMBS[name])
    problem(OTHERS["rgb.bmp"], "header")  # PIL is imported by now
    tracemalloc.start()
    try:
        reasons = [problem(BOMBS[name], "header"), problem(BOMBS[name], "decode")]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(reason is not None and "a decompression bomb: " in reason for reason in reasons)
    assert peak < 300_000


def test_a_bomb_is_named_with_its_size() -> None:
    assert problem(BOMBS["png"], "header") == "a decompression bomb: 60000x60000 pixels"
    assert problem(BOMBS["jpeg"], "header") == "a decompression bomb: 60000x60000 pixels"


def test_the_limit_is_that_of_pil(loads: Loads) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    side = 2 * Image.MAX_IMAGE_PIXELS // 13000
    assert problem(png_of(13000, side), "header") is None
    assert problem(png_of(13000, side + 1), "header") is not None


def test_the_views_of_a_reused_buffer_are_checked_like_bytes() -> None:
    buffer = bytearray(1 << 20)
    for data in (*FILES.values(), *(data[:-40] for data in FILES.values())):
        buffer[: len(data)] = data
        view = memoryview(buffer)[: len(data)]
        assert problem(view, "header") == problem(data, "header")


def test_looking_at_headers_does_not_import_pil(tmp_path: Path) -> None:
    names = ("rgb.jpg", "RGB.png", "lossy.webp", "still.gif")
    for name in names:
        (tmp_path / name).write_bytes(FILES[name])
    code = (
        "import sys, pathlib; from ptools.image_lmdb.check import problem\n"
        f"for name in {names}: assert problem(pathlib.Path(name).read_bytes(), 'header') is None\n"
        "assert not {'PIL', 'numpy', 'torch'} & set(sys.modules)"
    )
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, check=True)


def test_pils_warnings_are_silent_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 47 - 1)  # a warning for every image
    reasons: list[str | None] = []

    def check_all() -> None:
        reasons.extend(problem(data, "decode") for data in FILES.values())

    threads = [threading.Thread(target=check_all) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(BytesIO(JPEGS["rgb.jpg"]))
    assert reasons == [None] * (4 * len(FILES))


@pytest.mark.parametrize("name", FILES)
def test_only_png_of_16_bit_grey_is_clipped_grey(name: str) -> None:
    assert is_clipped_grey(FILES[name]) == (name == "16-bit.png")
    assert is_clipped_grey(memoryview(FILES[name])) == (name == "16-bit.png")


def test_pil_clips_16_bit_grey_to_white() -> None:
    data = encoded(Image.new("I;16", (4, 4), 300), "PNG")
    assert is_clipped_grey(data)
    assert Image.open(BytesIO(data)).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_bytes_too_few_for_a_header_are_not_clipped_grey() -> None:
    assert not any(is_clipped_grey(PNGS["16-bit.png"][:length]) for length in range(26))


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6"])
def test_postscript_is_refused_before_anything_runs_it(start: bytes) -> None:
    assert problem(start + b"%%BoundingBox: 0 0 9 9\n", "decode") == "PostScript, which is no image"
