"""Look at a set in TensorBoard: a grid of thumbnails for each class, and a table."""

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptools.errors import PtoolsError, UsageError
from ptools.events import event_file
from ptools.files import human_bytes
from ptools.image_lmdb.database import Images, open_images
from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.thumbnails import LARGEST_SIDE, grid_side, make_grid, thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

_TABLE = "classes"  # the tag of the table
_HEAD = "| class | images | shown | of these undecodable | size of the shown |"


@dataclass(frozen=True)
class Grid:
    """The grid of one class."""

    tag: str
    name: str  # of the class
    images: int
    shown: int
    undecodable: int  # of those that are shown
    shown_bytes: int


@dataclass(frozen=True)
class ViewReport:
    """What was written for TensorBoard."""

    path: Path
    log_dir: Path
    images: int
    classes: int
    grids: tuple[Grid, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(grid.tag for grid in self.grids)

    @property
    def shown(self) -> int:
        return sum(grid.shown for grid in self.grids)

    @property
    def undecodable(self) -> int:
        return sum(grid.undecodable for grid in self.grids)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: sizes in bytes."""
        paths = {"path": str(self.path), "log_dir": str(self.log_dir)}
        return {**asdict(self), **paths, "shown": self.shown, "undecodable": self.undecodable}


def view(
    path: str | Path,
    log_dir: str | Path,
    per_class: int = 16,
    max_classes: int = 50,
    size: int = 128,
) -> ViewReport:
    """Write images of each class to an event file; `tensorboard --logdir LOG_DIR` shows them.

    Where there are more than `max_classes` classes, or `per_class` images of one, those at even
    distances are taken. Thumbnails have `size` x `size` pixels and show what training gets: no
    EXIF orientation is applied. An image that cannot be decoded is a tile with a cross.

    Raises:
        NotADatabase: there is nothing that can be read.
        DamagedDatabase: its metadata is damaged.
        PtoolsError: it holds no images.
        UsageError: `log_dir` cannot be written to, or a grid would be too large.
    """
    if min(per_class, max_classes, size) < 1 or grid_side(per_class, size) > LARGEST_SIDE:
        raise UsageError(
            f"no grid can have {per_class:,} images of {size} x {size} pixels",
            hint=f"show fewer or smaller ones: a grid has at most {LARGEST_SIDE:,} pixels a side",
        )
    images = open_images(path)
    members = _members(images.labels(), max_classes)
    if not members:
        raise PtoolsError(f"{path} holds no images", hint=f"see ptools lmdb info {path}")
    tags = _tags(images.classes[label] for label in members)
    with event_file(Path(log_dir)) as add:
        grids = []
        for (label, found), tag in zip(members.items(), tags, strict=True):
            files = [_file(images, found[place]) for place in _spread(len(found), per_class)]
            tiles = [None if file is None else thumbnail(file, size) for file in files]
            add(summary=_summary(tag, image=_picture(tiles, size)))
            shown_bytes = sum(len(file) for file in files if file is not None)
            counts = len(found), len(tiles), tiles.count(None), shown_bytes
            grids.append(Grid(tag, images.classes[label], *counts))
        report = ViewReport(
            Path(path), Path(log_dir), len(images), len(images.classes), tuple(grids)
        )
        add(summary=_summary(_TABLE, **_text(_table(report))))
    return report


def _members(labels: "array[int]", most: int) -> "dict[int, array[int]]":
    """The images of each class that is shown, by class number."""
    present = sorted(set(labels))
    members = {present[place]: array("Q") for place in _spread(len(present), most)}
    for index, label in enumerate(labels):
        if label in members:
            members[label].append(index)
    return members


def _spread(count: int, most: int) -> list[int]:
    """At most so many places of `count`, at even distances."""
    number = min(count, most)
    return [place * count // number for place in range(number)]


def _tags(names: Iterable[str]) -> list[str]:
    """Names as TensorBoard takes them, each another one."""
    tags = {_TABLE: 0}  # in order
    for name in names:
        plain = tag = re.sub(r"[^-/\w.]", "_", name).strip("/") or "_"
        number = 1
        while tag in tags:
            number += 1
            tag = f"{plain}-{number}"
        tags[tag] = 0
    return list(tags)[1:]


def _file(images: Images, index: int) -> bytes | None:
    """The bytes of an image, if they are what was packed."""
    try:
        return images.fetch([index])[0].data
    except DamagedDatabase:
        return None


def _picture(tiles: "Sequence[Image | None]", size: int) -> Any:
    """A grid, as an event holds it."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    grid, png = make_grid(tiles, size), BytesIO()
    grid.save(png, "PNG")
    return Summary.Image(
        height=grid.height, width=grid.width, colorspace=3, encoded_image_string=png.getvalue()
    )


def _table(report: ViewReport) -> str:
    """The classes that are shown, in Markdown."""
    lines = [
        f"images: {report.images:,}; classes: {report.classes:,}, shown: {len(report.grids):,}",
        "",
        _HEAD,
        "| --- " + "| ---: " * 4 + "|",
    ]
    for grid in report.grids:
        counts = f"{grid.images:,} | {grid.shown:,} | {grid.undecodable:,}"
        lines.append(f"| {grid.tag} | {counts} | {human_bytes(grid.shown_bytes)} |")
    return "\n".join(lines)


def _text(text: str) -> dict[str, Any]:
    """A text for TensorBoard's plugin of that name: the fields of a `Summary.Value`."""
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return {
        "metadata": SummaryMetadata(plugin_data=plugin),
        "tensor": TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
    }


def _summary(tag: str, **fields: Any) -> Any:
    """A `Summary` of one value."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, **fields)])
