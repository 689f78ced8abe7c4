import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ptools.errors import UsageError
from ptools.image_lmdb.recode import NotRecoded, Recode, recoded

PROFILE = b"an ICC profile" * 9


def photo(mode: str = "RGB", size: tuple[int, int] = (150, 90)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    pixels += np.linspace(0, 160, size[0], dtype=np.uint8)[:, None]
    image = Image.fromarray(pixels).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image


def encoded(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    output = BytesIO()
    image.save(output, file_format, **options)
    return output.getvalue()


def opened(data: bytes | memoryview) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def view(data: bytes | memoryview) -> Image.Image:
    """The image as ImageFolder has it."""
    return opened(data).convert("RGB")


def exif_of_a_camera(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "ACME"
    exif.get_ifd(0x8825)[1] = "N"
    return exif


@pytest.mark.parametrize(
    "size", [(150, 90), (90, 150), (100, 100), (33, 32), (1000, 37), (61, 977), (640, 427)]
)
@pytest.mark.parametrize("short", [1, 30, 31, 32])
def test_the_size_is_that_of_torchvisions_resize(
    size: tuple[int, int], short: int, torchvision: Any
) -> None:
    data = encoded(photo(size=size), "PNG")
    expected = torchvision.transforms.Resize(short)(opened(data)).size
    assert opened(recoded(data, Recode(short))).size == expected


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_image_that_is_small_enough_comes_back_as_it_is(file_format: str) -> None:
    data = encoded(photo(), file_format)
    assert recoded(data, Recode(90)) is data
    assert recoded(data, Recode(1000)) is data
    assert recoded(data, Recode()) is data


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        *((mode, "PNG") for mode in ("L", "LA", "RGB", "RGBA")),
        *((mode, "TIFF") for mode in ("L", "LA", "RGB", "RGBA")),
        *((mode, "BMP") for mode in ("L", "RGB")),
        *((mode, "PPM") for mode in ("L", "RGB")),
    ],
)
def test_lossless_formats_hold_what_imagefolder_shows_resized(mode: str, file_format: str) -> None:
    data = encoded(photo(mode), file_format)
    small = recoded(data, Recode(30))
    assert (opened(small).format, opened(small).mode) == (file_format, mode)
    assert np.array_equal(view(small), view(data).resize((50, 30), Image.Resampling.LANCZOS))


def test_the_colour_of_transparent_pixels_survives() -> None:
    image = photo("RGB")
    image.putalpha(0)
    for file_format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = encoded(image, file_format, **options)
        expected = view(data).resize((50, 30), Image.Resampling.LANCZOS)
        difference = np.abs(np.asarray(view(recoded(data, Recode(30))), int) - expected)
        assert difference.mean() < 10  # black would be off by a hundred


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "GIF"])
def test_a_palette_image_keeps_its_indices(file_format: str) -> None:
    data = encoded(photo().quantize(7), file_format)
    before, after = opened(data), opened(recoded(data, Recode(30)))
    assert (after.format, after.mode) == (file_format, "P")
    assert np.array_equal(after, before.resize((50, 30), Image.Resampling.NEAREST))
    assert np.array_equal(
        after.convert("RGB"), before.convert("RGB").resize((50, 30), Image.Resampling.NEAREST)
    )


def test_a_gif_keeps_indices_that_are_far_apart() -> None:
    mask = Image.new("P", (60, 40))
    mask.putpalette([band for level in range(256) for band in (level, 0, 9)])
    mask.paste(200, (10, 10, 30, 30))
    small = recoded(encoded(mask, "GIF", optimize=False), Recode(20))
    assert np.unique(opened(small)).tolist() == [0, 200]


def png_chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def test_a_mask_keeps_an_index_beyond_its_palette() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:30] = 2
    mask[20:, 40:] = 255  # "ignore"
    rows = np.pad(mask, ((0, 0), (1, 0))).tobytes()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 8, 3, 0, 0, 0))
    palette = png_chunk(b"PLTE", bytes(range(9)))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    data = b"\x89PNG\r\n\x1a\n" + header + palette + pixels + png_chunk(b"IEND", b"")
    small = np.asarray(opened(recoded(data, Recode(20))))
    assert np.array_equal(small, mask[1::2, 1::2])


def test_a_1_bit_image_stays_one() -> None:
    data = encoded(photo("1"), "PNG")
    small = opened(recoded(data, Recode(30)))
    assert small.mode == "1"
    assert np.array_equal(small, opened(data).resize((50, 30), Image.Resampling.NEAREST))


def test_16_bit_grey_stays_16_bit_grey() -> None:
    pixels = np.linspace(0, 65535, 90 * 150).reshape(90, 150).astype(np.uint16)
    small = opened(recoded(encoded(Image.fromarray(pixels), "PNG"), Recode(30)))
    assert small.mode == "I;16"
    assert np.abs(np.asarray(small, int) - pixels[1::3, 1::3]).max() < 100


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(150, 90), (600, 367), (1000, 611)])
def test_a_jpeg_stays_close_to_the_whole_picture_resized(mode: str, size: tuple[int, int]) -> None:
    smooth = photo(mode, (50, 30)).resize(size, Image.Resampling.BICUBIC)
    data = encoded(smooth, quality=95)
    small = opened(recoded(data, Recode(40, quality=95)))
    whole = opened(data).resize(small.size, Image.Resampling.LANCZOS)
    expected = opened(encoded(whole, quality=95))
    assert (small.format, small.mode) == ("JPEG", mode)
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).mean() < 2


def test_a_jpeg_whose_size_no_eighth_divides_is_not_shifted() -> None:
    data = encoded(Image.linear_gradient("L").rotate(90).resize((89, 89)), quality=100)
    small = opened(recoded(data, Recode(5, quality=100)))
    expected = opened(data).resize((5, 5), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).max() <= 5


@pytest.mark.parametrize(("recode", "quality"), [(Recode(40), 90), (Recode(40, 60), 60)])
def test_a_jpeg_has_the_quality_asked_for(recode: Recode, quality: int) -> None:
    small = opened(recoded(encoded(photo(), quality=97), recode))
    expected = opened(encoded(photo(), quality=quality))
    assert small.quantization == expected.quantization  # type: ignore[attr-defined]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_keeps_its_chroma_subsampling(subsampling: int) -> None:
    data = encoded(photo(), subsampling=subsampling)
    for recode in (Recode(40), Recode(quality=20)):
        assert opened(recoded(data, recode)).layer == opened(data).layer  # type: ignore[attr-defined]


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_quality_alone_makes_jpeg_and_webp_smaller(file_format: str) -> None:
    data = encoded(photo(), file_format, quality=95)
    small = recoded(data, Recode(quality=40))
    assert len(small) < len(data) / 2
    assert (opened(small).format, opened(small).size) == (file_format, (150, 90))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_an_image_that_would_grow_is_kept(file_format: str) -> None:
    data = encoded(photo(), file_format, quality=20)
    assert recoded(data, Recode(quality=95)) is data
    assert recoded(data, Recode(90, quality=95)) is data
    assert opened(recoded(data, Recode(89, quality=95))).size == (148, 89)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_quality_alone_leaves_other_formats_untouched(file_format: str) -> None:
    data = encoded(photo(), file_format)
    assert recoded(data, Recode(quality=10)) is data
    assert recoded(data, Recode(90, quality=10)) is data


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_of_exif_only_the_orientation_is_kept(file_format: str, orientation: int) -> None:
    exif = exif_of_a_camera(orientation)
    data = encoded(photo(), file_format, exif=exif, icc_profile=PROFILE)
    small = opened(recoded(data, Recode(30)))
    assert small.size == (50, 30)  # not rotated
    assert dict(small.getexif()) == ({0x0112: orientation} if orientation > 1 else {})
    assert small.info["icc_profile"] == PROFILE


def test_a_tiff_is_turned_as_pil_turns_it_and_only_once() -> None:
    data = encoded(photo(), "TIFF", exif=exif_of_a_camera(6))
    small = recoded(data, Recode(30))
    assert view(data).size == (90, 150)
    assert np.array_equal(view(small), view(data).resize((30, 50), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0" + b"\xff" * 40])
def test_broken_exif_is_dropped(exif: bytes) -> None:
    small = opened(recoded(encoded(photo(), exif=exif), Recode(30)))
    assert small.size == (50, 30)
    assert "exif" not in small.info


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_or_pages_are_left_untouched(file_format: str) -> None:
    more = [photo().rotate(180), photo().rotate(90)]
    data = encoded(photo(), file_format, save_all=True, append_images=more)
    assert recoded(data, Recode(30, quality=10)) is data


def test_of_a_phones_two_pictures_the_photo_is_kept() -> None:
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo("L", (30, 18))])
    assert opened(data).format == "MPO"
    small = opened(recoded(data, Recode(30)))
    assert (small.format, small.size) == ("JPEG", (50, 30))


@pytest.mark.parametrize("file_format", ["TGA", "PCX", "JPEG2000", "ICO"])
def test_a_rare_format_becomes_png(file_format: str) -> None:
    data = encoded(photo(), file_format)
    small = recoded(data, Recode(30))
    assert opened(small).format == "PNG"
    assert np.array_equal(
        view(small), view(data).resize(opened(small).size, Image.Resampling.LANCZOS)
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_the_result_is_the_same_each_time(file_format: str) -> None:
    data = encoded(photo(), file_format)
    assert recoded(data, Recode(30, 80)) == recoded(memoryview(bytearray(data)), Recode(30, 80))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"<html>", "not an image"),
        (encoded(photo())[:-600], "truncated"),
        (encoded(photo(), "PNG")[:-600], "truncated"),
        (b"P6 60000 60000 255\n", "a decompression bomb"),
    ],
)
def test_what_pil_cannot_decode_is_not_recoded(data: bytes, reason: str) -> None:
    with pytest.raises(NotRecoded, match=reason):
        recoded(data, Recode(30))


@pytest.mark.parametrize("options", [(0,), (-5,), (None, 0), (None, 101), (256, -1)])
def test_numbers_out_of_range_are_refused(options: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        Recode(*options)
