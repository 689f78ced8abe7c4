"""What a file is that is not read as a checkpoint, told by its name and its first bytes."""

from __future__ import annotations

import difflib
import io
import re
import shlex
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import AnyStr

from ptools.checkpoint.data.archive import lay_out
from ptools.checkpoint.data.content import FileRange
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.output.torch_file import file_size
from ptools.checkpoint.pickles.nodes import Global, Node, Tuple
from ptools.checkpoint.pickles.tensors import STORAGES
from ptools.checkpoint.pickles.unpickle import unpickle
from ptools.errors import PtoolsError, UsageError
from ptools.files import human_bytes

_HEAD = 4096  # bytes
_LARGEST_CUT_PICKLE = 8 << 20  # bytes that are read to tell how many are missing
_LOCAL = struct.Struct("<4s4xH16xHH")  # a zip's local header: compression, lengths of name, extra
_AGAIN = "download or copy it again"
_WAIT = "wait until it is finished, or download it again"
_CONVERT = "convert it to safetensors in the framework that wrote it"
_UNPACK = "unpack it: {tool} {{path}} > unpacked, and take that"
_TEXT = rb"(?=[\t-\r\x1b -~\x80-\xff]+\Z)"  # what follows is text

# A pattern at the start, what it tells the file to be, and what to do; the first one counts.
_NAMES = (
    (r".*\.(part|partial|crdownload|download|incomplete|aria2)\Z", "an unfinished download", _WAIT),
    (r".*\.data-\d{5}-of-\d{5}\Z", "a part of a TensorFlow checkpoint", _CONVERT),
    (r".*\.index\Z", "the index of a TensorFlow checkpoint", _CONVERT),
    (r".*\.pb\Z", "a TensorFlow graph", _CONVERT),
    (r".*\.onnx\Z", "an ONNX model", "onnx.load reads it, its weights are the initializers"),
    (r".*\.py\Z", "a Python source file", "give the checkpoint that it saves or loads"),
)
_CONTENTS = (
    (rb"\Z", "empty", _AGAIN),
    (rb"\0+\Z", "nothing but zeros at its start, as an interrupted download leaves it", _AGAIN),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "type: git lfs pull"),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|\?xml)",
        "a web page: the download was answered with a page, not with the file",
        "open it in a browser to see why, then download it again",
    ),
    (rb"\x1f\x8b", "compressed with gzip", _UNPACK.format(tool="gzip -dc")),
    (rb"BZh[1-9]", "compressed with bzip2", _UNPACK.format(tool="bzip2 -dc")),
    (rb"\xfd7zXZ\0", "compressed with xz", _UNPACK.format(tool="xz -dc")),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK.format(tool="zstd -dc")),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x {path}"),
    (rb"Rar!\x1a\x07", "a RAR archive", "unpack it: unrar x {path}"),
    (
        rb".{257}ustar",
        "a tar archive",
        "unpack it: tar -xf {path}; if torch before 0.1.10 wrote it, load and save it with torch",
    ),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", _CONVERT),
    (rb".{4}TFL3", "a TensorFlow Lite model", _CONVERT),
    (rb"\x93NUMPY", "a NumPy array", "numpy.load reads it, torch.save writes a dict of tensors"),
    (rb"GGUF", "a GGUF model (llama.cpp)", "take the weights that it was converted from"),
    (rb"GGML|ggml|lmgg|tjgg", "a GGML model", "take the weights that it was converted from"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP", "an image", "give the checkpoint instead"),
    (
        rb"\x80[\x02-\x05].*(joblib|sklearn)",
        "a pickle of joblib or scikit-learn",
        "joblib.load reads it, but runs the code in it: only if you trust it",
    ),
    (
        rb"\x80[\x02-\x05]",
        "a pickle, but none of torch.save",
        "pickle.load reads it, but runs the code in it: only if you trust it",
    ),
    (rb"x[\x01\x9c\xda]", "compressed with zlib, as joblib does", "joblib.load may read it"),
    (
        rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a]",
        "a protobuf, such as an ONNX model",
        "onnx.load reads ONNX, its weights are the initializers",
    ),
    (
        _TEXT + rb"\s*[{\[]",
        "JSON",
        "give the weights, the folder they are in, or their *.index.json",
    ),
    (
        _TEXT + rb"(.*\n)?(import \w|from [\w.]+ import |def \w+\(|class \w+[(:])",
        "Python source",
        "give the checkpoint that it saves or loads",
    ),
    (_TEXT, "a text file", "see what it says: head {path}"),
)
_MEMBERS = (  # of a zip archive, one a line
    (r"([^\n]+\.npy\n)+\Z", "a NumPy .npz archive", "numpy.load reads it"),
    (
        r".*(^|\n|/)(archive_format|serialized_exported_program\.json)\n",
        "a program of torch.export",
        "torch.export.load reads it, torch.save writes its state_dict",
    ),
    (r".*/\.data/extern_modules\n", "a torch.package", "torch.package.PackageImporter reads it"),
    (r".*model\.weights\.h5\n", "a Keras model", _CONVERT),
    (r".*\.(pth?|bin|ckpt|safetensors)\n", "a zip with checkpoints in it", "type: unzip {path}"),
    (r"", "a zip archive, but none of torch.save", "see what is in it: unzip -l {path}"),
)
_FOLDERS = (  # what is in a folder, one a line
    (r".*(^|\n)saved_model\.pb\n", "a TensorFlow SavedModel", _CONVERT),
    (r".*\.data-\d{5}-of-\d{5}\n", "a folder with a TensorFlow checkpoint", _CONVERT),
    (r".*(^|\n)_CHECKPOINT_METADATA\n", "a checkpoint of Orbax (JAX)", _CONVERT),
)


def refusal(path: Path) -> PtoolsError:
    """The error for what is no checkpoint: what it looks like, and what to do about it."""
    try:
        if path.is_dir():
            return _refused_folder(path)
        if not path.exists():
            return _missing(path)
        if not path.is_file():
            return NotACheckpoint(f"{path} is no regular file", hint="copy it into one")
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"PK\3\4"):
            return _looks(path, _MEMBERS, "".join(f"{name}\n" for name in member_names(path)))
        if _first(_NAMES, path.name):
            return _looks(path, _NAMES, path.name)
        return _looks(path, _CONTENTS, head)
    except OSError as error:
        return unreadable(path, error)
    except CorruptCheckpoint as error:
        return error


def unreadable(path: Path, error: OSError) -> PtoolsError:
    """The error for what the system does not let us read."""
    hint = "see ls -l: you lack the permission" if isinstance(error, PermissionError) else None
    why = error.strerror or error
    return NotACheckpoint(f"{error.filename or path} cannot be read: {why}", hint)


def member_names(path: Path) -> list[str]:
    """The names in a zip archive.

    Raises:
        CorruptCheckpoint: it is cut short or damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise _cut_short(path)
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
        raise CorruptCheckpoint(f"{path} is no sound zip archive: {error}", _AGAIN) from error


def _looks(path: Path, table: Sequence[tuple[AnyStr, str, str]], text: AnyStr) -> NotACheckpoint:
    unknown = "no checkpoint that is known here", "torch's files and safetensors are"
    what, hint = _first(table, text) or unknown
    return NotACheckpoint(f"{path} is {what}", hint.format(path=shlex.quote(str(path))))


def _first(table: Sequence[tuple[AnyStr, str, str]], text: AnyStr) -> tuple[str, str] | None:
    for pattern, what, hint in table:
        if re.match(pattern, text, re.DOTALL):
            return what, hint
    return None


def _refused_folder(folder: Path) -> PtoolsError:
    names = "".join(f"{entry.name}\n" for entry in folder.iterdir())
    if _first(_FOLDERS, names):
        return _looks(folder, _FOLDERS, names)
    return UsageError(f"there is no checkpoint in the folder {folder}", hint="give a file")


def _missing(path: Path) -> PtoolsError:
    if path.is_symlink():
        return NotACheckpoint(f"{path} is a link to {path.readlink()}, which does not exist")
    if not path.parent.is_dir():
        return NotACheckpoint(f"{path} does not exist", hint=f"there is no folder {path.parent}")
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else None
    return NotACheckpoint(f"{path} does not exist", hint)


def _cut_short(path: Path) -> CorruptCheckpoint:
    size, full = path.stat().st_size, _full_size(path)
    if full is None or full <= size:
        return CorruptCheckpoint(f"{path} is cut short: the end of the archive is missing", _AGAIN)
    missing = f"about {human_bytes(full - size)} of {human_bytes(full)} are missing"
    return CorruptCheckpoint(f"{path} is cut short: {missing}", _AGAIN)


def _full_size(path: Path) -> int | None:
    """The size of a torch zip that is cut short, from its pickle, which comes first."""
    sizes: dict[str, int] = {}

    def add(identifier: Node) -> None:
        match identifier:
            case Tuple([_, Global(name=kind), str(key), _, int(numel), *_]):
                sizes[f"data/{key}"] = numel * STORAGES[kind][1]
            case _:
                raise ValueError("no storage")

    with path.open("rb") as file:
        start = file.read(_LOCAL.size).ljust(_LOCAL.size)
        _, compression, name_length, extra_length = _LOCAL.unpack(start)
        folder, _, name = file.read(name_length).decode("utf-8", "replace").partition("/")
        file.seek(extra_length, io.SEEK_CUR)
        stream = io.BytesIO(file.read(_LARGEST_CUT_PICKLE))
    if name != "data.pkl" or compression:
        return None
    try:
        unpickle(stream, add)
        before = {"data.pkl": stream.tell(), ".format_version": 1, ".storage_alignment": 2}
        after = {"version": 2, ".data/serialization_id": 40}
        records = before | {"byteorder": 6} | sizes | after
        contents = [(name, FileRange(path, 0, nbytes)) for name, nbytes in records.items()]
        return file_size(lay_out(folder, contents))
    except (CorruptCheckpoint, ValueError, struct.error):
        return None
