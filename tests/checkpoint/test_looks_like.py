import bz2
import gzip
import io
import lzma
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats import open_checkpoint
from ptools.checkpoint.formats.looks_like import _full_size, refusal
from ptools.errors import PtoolsError, UsageError
from ptools.files import human_bytes


def tar(names: tuple[str, ...] = ("sys_info", "pickle", "storages")) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    numpy.save(stream, numpy.ones(3))
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    numpy.savez(stream, a=numpy.ones(3), b=numpy.ones(3))
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "png")
    return stream.getvalue()


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


def pt2() -> bytes:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), stream)
    return stream.getvalue()


# name, content, what the error says, what the hint says
LOOKS: list[tuple[str, bytes, str, str]] = [
    ("m.pth", b"", "is empty", "again"),
    ("m.pth", b"<!DOCTYPE html>\n<html><body>404", "is a web page", "browser"),
    ("m.pth", b"\n\n  <HTML><head>", "is a web page", "browser"),
    ("m.pth", b'<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page", "browser"),
    (
        "m.bin",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a Git LFS pointer",
        "git lfs pull",
    ),
    ("m.pth.tar", tar(), "is a tar archive", "tar -xf"),
    ("m.pth.gz", gzip.compress(bytes(100)), "with gzip", "gzip -dc"),
    ("m.pth", bz2.compress(bytes(100)), "with bzip2", "bzip2 -dc"),
    ("m.pth", lzma.compress(bytes(100)), "with xz", "xz -dc"),
    ("m.pth", zlib.compress(bytes(100)), "with zlib", "joblib"),
    ("m.pth", b"\x28\xb5\x2f\xfd\x04\x58", "with zstd", "zstd -dc"),
    ("m.7z", b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive", "7z x"),
    ("m.pth.part", b"\x80\x02}", "is an unfinished download", "finished"),
    ("m.crdownload", bytes(10), "is an unfinished download", "finished"),
    ("m.pth", bytes(10_000), "nothing but zeros", "again"),
    ("m.pt2", pt2(), "is a program of torch.export", "torch.export.load"),
    ("m.h5", b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file", "safetensors"),
    ("m.ckpt.index", b"\0\1\2", "index of a TensorFlow checkpoint", "safetensors"),
    ("m.ckpt.data-00000-of-00001", b"\0\1\2", "part of a TensorFlow", "safetensors"),
    ("saved_model.pb", b"\x08\x01\x12\x04", "is a TensorFlow graph", "safetensors"),
    ("m.tflite", b"\x1c\0\0\0TFL3\x14\0", "is a TensorFlow Lite model", "safetensors"),
    ("m.npy", npy(), "is a NumPy array", "numpy.load"),
    ("m.npz", npz(), "is a NumPy .npz archive", "numpy.load"),
    ("m.onnx", b"\x08\x08\x12\x07pytorch\x1a\x05", "is an ONNX model", "onnx.load"),
    ("m", b"\x08\x08\x12\x07pytorch\x1a\x05\0", "such as an ONNX model", "onnx.load"),
    ("m.gguf", b"GGUF\3\0\0\0", "is a GGUF model", "converted"),
    ("m.zip", zipped("notes.txt", "src/a.py"), "a zip archive, but none", "unzip -l"),
    ("m.zip", zipped("run/best.pth", "notes"), "with checkpoints in it", "unzip"),
    ("m.keras", zipped("config.json", "model.weights.h5"), "is a Keras model", "safetensors"),
    ("config.json", b'{"hidden_size": 8}', "is JSON", r"\*\.index\.json"),
    ("m.pkl", pickle.dumps({"a": 1}), "is a pickle, but none", "trust"),
    ("m.pkl", pickle.dumps({"a": 1}, protocol=5), "is a pickle, but none", "trust"),
    ("m.joblib", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x13joblib.numpy_", "of joblib", "trust"),
    ("train.py", b"import torch\n", "is a Python source file", "checkpoint"),
    ("train", b"#!/usr/bin/env python\nimport torch\n", "is Python source", "checkpoint"),
    ("m.yaml", "lr: 0.1 # größer\n".encode(), "is a text file", "head"),
    ("m.pth", png(), "is an image", "checkpoint"),
    ("m.pth", b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "no checkpoint that is known", "torch"),
]


@pytest.mark.parametrize(
    ("name", "content", "says", "hint"), LOOKS, ids=[f"{row[0]} {row[2]}" for row in LOOKS]
)
def test_what_is_no_checkpoint_is_called_by_its_name(
    tmp_path: Path, name: str, content: bytes, says: str, hint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(NotACheckpoint, match=says) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint)


def test_a_command_in_a_hint_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "my model {0}.pth"
    path.write_bytes(gzip.compress(b"weights"))
    hint = refusal(path).hint
    assert hint is not None
    command = hint.removeprefix("unpack it: ").partition(" > ")[0]
    assert os.popen(command).read() == "weights"


@pytest.mark.parametrize("length", [1, 2, 3, 5, 9, 17, 40])
def test_any_beginning_of_any_file_is_refused_and_nothing_else(tmp_path: Path, length: int) -> None:
    torch.save({"a": torch.rand(3)}, tmp_path / "zip")
    torch.save({"a": torch.rand(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    contents = [content for _, content, _, _ in LOOKS]
    contents += [(tmp_path / name).read_bytes() for name in ("zip", "old")]
    for content in contents:
        path = tmp_path / "m"
        path.write_bytes(content[:length])
        assert isinstance(refusal(path), PtoolsError)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "resnet50.pth").touch()
    with pytest.raises(NotACheckpoint, match="does not exist") as caught:
        open_checkpoint(tmp_path / "resnet5O.pth")
    assert caught.value.hint == f"did you mean {tmp_path / 'resnet50.pth'}?"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "no" / "m.pth")
    assert error.hint == f"there is no folder {tmp_path / 'no'}"


def test_a_link_to_nothing_is_told_from_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "m.pth").symlink_to("objects/m")
    assert "is a link to objects/m, which does not exist" in refusal(tmp_path / "m.pth").message


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pth").symlink_to("m.pth")
    with pytest.raises(PtoolsError, match=r"m\.pth"):
        open_checkpoint(tmp_path / "m.pth")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="cannot be read: File name too long"):
        open_checkpoint(tmp_path / ("m" * 5000))


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.pth")
    with pytest.raises(NotACheckpoint, match="no regular file"):
        open_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize("target", ["open", "iterdir"])
def test_what_may_not_be_read_says_so(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal of the system is played."""
    path = tmp_path / "m.pth"
    path.touch()

    def deny(self: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, target, deny)
    with pytest.raises(NotACheckpoint, match=r"m\.pth cannot be read: Permission denied") as caught:
        open_checkpoint(path if target == "open" else tmp_path)
    assert "permission" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("saved_model.pb", "is a TensorFlow SavedModel"),
        ("m.ckpt.data-00000-of-00001", "is a folder with a TensorFlow checkpoint"),
        ("_CHECKPOINT_METADATA", "is a checkpoint of Orbax"),
    ],
)
def test_folders_of_others_are_called_by_their_names(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(NotACheckpoint, match=says):
        open_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    assert isinstance(refusal(tmp_path), UsageError)


def saved(path: Path) -> int:
    """A checkpoint with empty, shared and training tensors; its size."""
    model = nn.Sequential(nn.Linear(100, 200), nn.BatchNorm1d(200))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 100)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(state | {"empty": torch.empty(0), "view": model[0].weight[:5]}, path)
    return path.stat().st_size


def test_the_size_of_a_file_that_is_cut_short_is_known_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a name.pth"
    size = saved(path)
    assert _full_size(path) == size
    os.truncate(path, size // 2)
    assert _full_size(path) == size


def test_a_file_that_is_cut_short_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    size = saved(path)
    os.truncate(path, size - 70_000)
    expected = f"about {human_bytes(70_000)} of {human_bytes(size)} are missing"
    for name in ("m.pth", "m.pth.part"):
        with pytest.raises(CorruptCheckpoint, match=f"cut short: {expected}") as caught:
            open_checkpoint(path.rename(path.with_name(name)))
        path = path.with_name(name)
        assert caught.value.hint == "download or copy it again"


def test_every_cut_of_a_file_is_a_clean_error(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.rand(3)}, path)
    content = path.read_bytes()
    for length in range(4, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptCheckpoint, match="cut short"):
            open_checkpoint(path)


def test_a_cut_within_the_pickle_gives_no_number(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    saved(path)
    os.truncate(path, 300)
    with pytest.raises(CorruptCheckpoint, match="the end of the archive is missing"):
        open_checkpoint(path)


HOSTILE_STORAGES = {
    "more bytes than 64 bits count": ("FloatStorage", "0", 2**80),
    "fewer than none": ("FloatStorage", "0", -1),
    "an unknown class": ("Nonsense", "0", 1),
    "half a surrogate": ("FloatStorage", "\ud800", 1),
    "a name of a megabyte": ("FloatStorage", "0" * 1_000_000, 1),
    "no name": ("FloatStorage", None, 1),
}


def write_cut(path: Path, kind: str, key: str | None, numel: int) -> None:
    """A torch file that ends with its pickle, which is one storage."""
    name = pickle.dumps(key, protocol=2)[2:-1]
    count = pickle.dumps(numel, protocol=2)[2:-1]
    identifier = b"(X\x07\0\0\0storagectorch\n%s\n%sX\3\0\0\0cpu%st"
    identifier %= kind.encode(), name, count
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 0, 0x808, 0, 0, 0, 0, 0, 0, 10, 0)
    path.write_bytes(local + b"m/data.pkl\x80\x02" + identifier + b"Q.")


def test_one_storage_tells_the_size_of_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    write_cut(path, "FloatStorage", "0", 1 << 30)
    with pytest.raises(CorruptCheckpoint, match=r"about 4\.00 GiB of 4\.00 GiB are missing"):
        open_checkpoint(path)


@pytest.mark.parametrize("case", HOSTILE_STORAGES)
def test_a_hostile_pickle_in_a_cut_file_gives_no_number(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.pth"
    write_cut(path, *HOSTILE_STORAGES[case])
    with pytest.raises(CorruptCheckpoint, match="the end of the archive is missing"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["m.npz", "m.zip"])
def test_a_zip_of_others_that_is_cut_short_is_called_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(npz()[:200])
    with pytest.raises(CorruptCheckpoint, match="is cut short: the end of the archive"):
        open_checkpoint(path)


def test_a_zip_in_several_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    saved(path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x06\x07")
    content[at + 4] = 1  # the disk on which the directory is said to be
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="no sound zip archive"):
        open_checkpoint(path)
