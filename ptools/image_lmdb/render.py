"""Reports as pages of text: one fact a line, the verdict last."""

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ptools.console import counted, escaped
from ptools.files import human_bytes
from ptools.image_lmdb.report import PackReport, Skipped

if TYPE_CHECKING:
    from ptools.image_lmdb.export import ExportReport
    from ptools.image_lmdb.info import DatabaseInfo
    from ptools.image_lmdb.merge import MergeReport
    from ptools.image_lmdb.unpack import UnpackReport
    from ptools.image_lmdb.verify import VerifyReport
    from ptools.image_lmdb.view import ViewReport

_WIDTH = 9  # of the left column
_SHOWN = 5  # files of a list
_CLASSES = _PROBLEMS = 20

Facts = Iterator[tuple[str, str]]


def page(facts: Facts, verdict: str) -> str:
    """Titles and texts in two columns, and the last line."""
    lines = [f"{title:<{_WIDTH}} {escaped(text)}".rstrip() for title, text in facts]
    return "\n".join([*lines, "", escaped(verdict)]) + "\n"


def pack_page(report: PackReport) -> str:
    """What was packed, what was left out, and how to read it."""
    return page(_pack_facts(report), _pack_verdict(report))


def listed(title: str, files: Sequence[Skipped], more: str) -> Facts:
    """The first files of a list, each with its reason."""
    for index, file in enumerate(files[:_SHOWN]):
        yield (title if index == 0 else "", f"{file.path}: {file.reason}")
    if len(files) > _SHOWN:
        yield "", f"and {len(files) - _SHOWN:,} more{more}"


def _pack_facts(report: PackReport) -> Facts:
    classes, images = counted(report.classes, "class", "classes"), counted(report.images, "image")
    yield "source", f"{report.source}: {classes}, {images}, {human_bytes(report.source_bytes)}"
    yield "output", _output(report)
    if report.bytes != report.source_bytes:
        saved = 1 - report.bytes / max(report.source_bytes, 1)
        yield "made anew", f"{human_bytes(report.bytes)} of image files, {saved:.1%} saved"
    if report.shards_kept:
        yield "resumed", f"{counted(report.shards_kept, 'shard')} finished by an earlier run"
    where = f": see {report.output}/skipped.jsonl" if report.complete else ""
    yield from listed("skipped", report.skipped, where)
    yield from listed("kept", report.kept, "")
    if report.seconds:
        rate = f"{report.images / report.seconds:,.0f} images/s"
        speed = f"{human_bytes(report.source_bytes / report.seconds)}/s"
        yield "time", f"{report.seconds:.1f} s: {rate}, {speed}"
    if report.complete and not report.dry_run:
        yield "read it", "from ptools import LMDBImageFolder"
        path, copied = report.output, ""
        if "://" in path:
            path, copied = path.rstrip("/").rpartition("/")[2], "  # when it is copied to a disk"
        yield "", f"dataset = LMDBImageFolder({path!r}, transform=transform){copied}"


def _output(report: PackReport) -> str:
    shards = counted(report.shards, "shard")
    most = "at most " if report.dry_run else ""
    return f"{report.output}: {shards}, {most}{human_bytes(report.file_bytes)}"


def _pack_verdict(report: PackReport) -> str:
    images = counted(report.images, "image")
    if report.dry_run:
        return f"{report.output}: {images} to pack; nothing was written (--dry-run)"
    if not report.complete:
        return f"{report.output}: {images} packed; other parts are still missing"
    left_out = f", {counted(len(report.skipped), 'file')} skipped" if report.skipped else ""
    bad = f", {len(report.kept):,} of them bad" if report.kept else ""
    return f"{report.output}: {images} packed{bad}{left_out}"


def clipped_warning(count: int) -> str:
    """Why a picture may be white: a property of ImageFolder's loader, not of packing."""
    return (
        f"{counted(count, 'image')} of 16-bit grey: ImageFolder's loader, and so ours, clips what "
        "is above 255 to white; pass a loader of your own to see it"
    )


def info_page(info: "DatabaseInfo") -> str:
    """What a set holds."""
    return page(_info_facts(info), f"{info.path}: {_holding(info.images, len(info.classes))}")


def verify_page(report: "VerifyReport") -> str:
    """What is wrong with a set, or that nothing is."""
    facts: list[tuple[str, str]] = []
    for index, one in enumerate(report.problems[:_PROBLEMS]):
        image = "" if one.index is None else f", image {one.index}"
        path = "" if one.path is None else f" ({one.path})"
        facts.append(("" if index else "wrong", f"{one.file}{image}{path}: {one.what}"))
    if report.problem_count > _PROBLEMS:
        facts.append(("", f"and {report.problem_count - _PROBLEMS:,} more"))
    facts += [("note", note) for note in report.notes]
    checked = f"{counted(report.images, 'image')}, {human_bytes(report.bytes)}"
    facts.append(("checked", f"{checked} in {report.seconds:.1f} s"))
    same = f", all as in {report.against}" if report.against else ""
    verdict = f"every checksum holds{same}"
    if not report.ok:
        verdict = f"{counted(report.problem_count, 'problem')} found"
    return page(iter(facts), f"{report.path}: {verdict}")


def unpack_page(report: "UnpackReport") -> str:
    """What was restored."""
    facts = [("from", f"{report.path}: {_holding(report.images, report.classes)}")]
    if report.kept:
        facts.append(("resumed", f"{counted(report.kept, 'file')} written by an earlier run"))
    files = f"{counted(report.files, 'file')}, {human_bytes(report.bytes)}"
    return page(iter(facts), f"{report.output}: {files} restored in {report.seconds:.1f} s")


def merge_page(report: "MergeReport") -> str:
    """What was joined."""
    facts = [("from", ", ".join(map(str, report.paths)))]
    facts.append(("files", f"{counted(report.shards, 'shard')}, {human_bytes(report.file_bytes)}"))
    if report.duplicates:
        facts.append(("twice", f"{counted(report.duplicates, 'image')} with the path of another"))
    if report.skipped:
        facts.append(("skipped", f"{counted(report.skipped, 'file')} when the sets were packed"))
    return page(iter(facts), f"{report.output}: {_holding(report.images, report.classes)}")


def export_page(report: "ExportReport") -> str:
    """What was written as tar files."""
    facts = [("files", f"{counted(report.shards, 'tar file')}, {human_bytes(report.file_bytes)}")]
    pattern = f"{report.output}/shard-{{000000..{report.shards - 1:06d}}}.tar"
    facts.append(("read it", f'webdataset.WebDataset("{pattern}").decode("pil")'))
    return page(iter(facts), f"{report.output}: {counted(report.images, 'image')} written")


def view_page(report: "ViewReport") -> str:
    """What can be looked at."""
    facts = [("look", f"tensorboard --logdir {shlex.quote(str(report.log_dir))}")]
    if report.undecodable:
        facts.append(("bad", f"{counted(report.undecodable, 'image')} that cannot be decoded"))
    shown = f"{report.shown:,} of {counted(report.images, 'image')}"
    classes = counted(report.classes, "class", "classes")
    return page(iter(facts), f"{report.log_dir}: {shown} shown, of {classes}")


def _holding(images: int, classes: int) -> str:
    return f"{counted(images, 'image')} in {counted(classes, 'class', 'classes')}"


def _info_facts(info: "DatabaseInfo") -> Facts:
    version = "" if info.version is None else f", version {info.version}"
    yield "format", f"{info.kind}{version}"
    nbytes = "" if info.bytes is None else f", {human_bytes(info.bytes)}"
    yield "images", f"{info.images:,}{nbytes}"
    if info.smallest_bytes is not None and info.largest_bytes is not None:
        sizes = (info.smallest_bytes, info.median_bytes or 0, info.largest_bytes)
        smallest, median, largest = map(human_bytes, sizes)
        yield "sizes", f"{smallest} to {largest}, half up to {median}"
    for index, (name, count) in enumerate(list(info.classes.items())[:_CLASSES]):
        yield "" if index else "classes", f"{name}: {count:,}"
    if len(info.classes) > _CLASSES:
        yield "", f"and {len(info.classes) - _CLASSES:,} more"
    yield "files", f"{counted(len(info.shards), 'shard')}, {human_bytes(info.file_bytes)}"
    if info.skipped:
        yield "skipped", f"{counted(info.skipped, 'file')}: see {info.path}/skipped.jsonl"
