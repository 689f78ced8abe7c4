import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ptools.errors import UsageError
from ptools.image_lmdb import decode
from ptools.image_lmdb.decode import array, find_loader, pil

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def imagefolder(torchvision: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pixels that ImageFolder's own loader has for these bytes."""
    path = tmp_path_factory.mktemp("image") / "image.jpg"

    def load(data: bytes) -> Pixels:
        path.write_bytes(data)
        return np.asarray(torchvision.datasets.folder.pil_loader(path))

    return load


@pytest.fixture
def opencv_asked_anew() -> Iterator[None]:
    for remembered in (decode._opencv, decode._say_why_slow):
        remembered.cache_clear()
    yield
    for remembered in (decode._opencv, decode._say_why_slow):
        remembered.cache_clear()


def photo(mode: str = "RGB", size: tuple[int, int] = (83, 59)) -> Image.Image:
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


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def adobe(transform: int, **options: Any) -> bytes:
    """A JPEG whose Adobe marker says how the colours are stored, rightly or wrongly."""
    data = encoded(photo(), **options)
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return data[:2] + marker + data[20:]  # in place of the JFIF segment


FAST = {
    "rgb": encoded(photo()),
    "grey": encoded(photo("L")),
    "progressive": encoded(photo(), progressive=True),
    "progressive grey": encoded(photo("L"), progressive=True),
    "4:4:4": encoded(photo(), subsampling=0),
    "4:2:2": encoded(photo(), subsampling=1),
    "low quality": encoded(photo(), quality=5),
    "stored as RGB": encoded(photo(), keep_rgb=True),
    "restart markers": encoded(photo(), restart_marker_blocks=3),
    "one pixel": encoded(photo(size=(1, 1))),
    **{f"orientation {n}": encoded(photo(), exif=rotated(n)) for n in range(1, 9)},
    **{f"Adobe transform {n}": adobe(n) for n in range(3)},
    **{f"Adobe transform {n}, 4:4:4": adobe(n, subsampling=0) for n in range(3)},
    "bytes after the end": encoded(photo()) + b"more",
    "two pictures": encoded(photo(), "MPO", save_all=True, append_images=[photo("L")]),
}
SLOW = {
    "CMYK": encoded(photo("CMYK")),
    **{f"{m} PNG": encoded(photo(m), "PNG") for m in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "16-bit PNG": encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
    "animated PNG": encoded(photo(), "PNG", save_all=True, append_images=[photo().rotate(90)]),
    "lossy WebP": encoded(photo(), "WEBP"),
    "alpha WebP": encoded(photo("RGBA"), "WEBP", lossless=True),
    "animated WebP": encoded(photo(), "WEBP", save_all=True, append_images=[photo("L")]),
    "GIF": encoded(photo(), "GIF"),
    "BMP": encoded(photo(), "BMP"),
    "TIFF": encoded(photo(), "TIFF", compression="tiff_lzw"),
    "rotated TIFF": encoded(photo(), "TIFF", exif=rotated(6)),
    "float TIFF": encoded(photo("F"), "TIFF"),
    "PPM": encoded(photo(), "PPM"),
}
FILES = FAST | SLOW


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_imagefolder_bit_for_bit(name: str, imagefolder: Any) -> None:
    expected = imagefolder(FILES[name])
    image, pixels = pil(FILES[name]), array(FILES[name])
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), expected)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("name", FILES)
def test_only_common_jpegs_and_plain_pngs_go_through_opencv(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes) -> Image.Image:
        raise AssertionError("decoded by PIL")

    monkeypatch.setattr(decode, "pil", refuse)
    if name in FAST or name in ("RGB PNG", "L PNG"):
        array(FILES[name])
    else:
        with pytest.raises(AssertionError, match="decoded by PIL"):
            array(FILES[name])


@pytest.mark.parametrize("name", ["rgb", "grey", "progressive", "restart markers"])
def test_a_cut_jpeg_raises_in_both_or_in_neither(name: str, imagefolder: Any) -> None:
    data, chance = FAST[name], random.Random(name)
    for at in [*chance.sample(range(len(data)), 60), *range(len(data) - 4, len(data))]:
        try:
            expected = imagefolder(data[:at])
        except Exception as error:
            with pytest.raises(type(error)):
                array(data[:at])
        else:
            assert np.array_equal(array(data[:at]), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", FAST)
def test_damaged_jpegs_that_imagefolder_takes_have_the_same_pixels(
    name: str, imagefolder: Any
) -> None:
    chance, taken = random.Random(name), 0
    for _ in range(30):
        damaged = bytearray(FAST[name])
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            expected = imagefolder(bytes(damaged))
        except Exception:
            continue
        taken += 1
        assert np.array_equal(array(bytes(damaged)), expected)
    assert taken > 5


def test_the_adobe_marker_decides_on_the_colours() -> None:
    assert not np.array_equal(array(FAST["Adobe transform 0"]), array(FAST["Adobe transform 1"]))


def test_a_bomb_is_refused_as_pil_refuses_it() -> None:
    frame = FAST["rgb"].index(b"\xff\xc0") + 5
    data = FAST["rgb"][:frame] + b"\x40\x00" * 2 + FAST["rgb"][frame + 4 :]
    with pytest.raises(Image.DecompressionBombError):
        array(data)


@pytest.mark.parametrize("data", [b"", b"<html>", FAST["rgb"][:100], SLOW["RGB PNG"][:-400]])
def test_bytes_that_are_no_image_raise_what_pil_raises(data: bytes) -> None:
    with pytest.raises(OSError) as of_pil:
        pil(data)
    with pytest.raises(type(of_pil.value)):
        array(data)


@pytest.mark.parametrize("broken", ["libGL.so.1 is missing", "an empty folder is left"])
@pytest.mark.usefixtures("opencv_asked_anew")
def test_without_opencv_pil_decodes_and_one_warning_says_what_to_do(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cv2").mkdir()
    if broken == "libGL.so.1 is missing":
        (tmp_path / "cv2/__init__.py").write_text(
            "raise ImportError('libGL.so.1: cannot open shared object file')"
        )
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    if broken == "an empty folder is left":
        monkeypatch.setattr(sys, "path", [str(tmp_path)])  # a namespace package is found last
    else:
        monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert np.array_equal(array(FAST["rgb"]), np.asarray(pil(FAST["rgb"])))
    (warning,) = caught
    assert "apt-get install libgl1 libglib2.0-0 libxcb1" in str(warning.message)
    assert "pip install opencv-python-headless" in str(warning.message)


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, ptools.image_lmdb.decode\n"
        "assert not {'PIL', 'numpy', 'cv2', 'torch'} & set(sys.modules)"
    )
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=path, check=True)


def test_loaders_are_found_by_name_and_survive_pickling() -> None:
    for name, function in (("pil", pil), ("array", array)):
        found = find_loader(name)  # type: ignore[arg-type]
        assert found is function
        assert pickle.loads(pickle.dumps(found)) is function


def test_a_function_is_its_own_loader() -> None:
    assert find_loader(len) is len


@pytest.mark.parametrize("loader", ["cv2", "", None, 3])
def test_an_unknown_loader_is_refused(loader: Any) -> None:
    with pytest.raises(UsageError, match="is no loader"):
        find_loader(loader)


def test_a_damaged_plain_png_raises_in_both_or_in_neither(imagefolder: Any) -> None:
    data, chance = FILES["RGB PNG"], random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            expected = imagefolder(bytes(damaged))
        except Exception:
            with pytest.raises(Exception):  # noqa: B017 - PIL raises many kinds
                array(bytes(damaged))
        else:
            assert np.array_equal(array(bytes(damaged)), expected)
            assert np.array_equal(np.asarray(pil(bytes(damaged))), expected)
