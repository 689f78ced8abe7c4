"""A fixed tree on its way to the disk, and the report of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.containers import find_weights
from ptools.checkpoint.data.content import Content
from ptools.checkpoint.data.copying import Advance
from ptools.checkpoint.fixing import Fixed
from ptools.checkpoint.output.destination import Destination
from ptools.checkpoint.output.inplace import patch
from ptools.checkpoint.output.safetensors_file import aliases_in
from ptools.checkpoint.output.shards import plans
from ptools.checkpoint.output.writing import (
    Plan,
    check_sources,
    check_space,
    new_folder,
    write_hashed,
    write_plan,
)
from ptools.checkpoint.pickles.nodes import storages
from ptools.checkpoint.pickles.tensors import named_tensors
from ptools.checkpoint.report import Checked, FixReport, Renaming

_SUFFIX = {True: "safetensors", False: "bin"}  # of shards


@dataclass(frozen=True, slots=True)
class Job:
    """A fixed tree on its way to the disk; `before` are the storages' contents as they were."""

    checkpoint: Checkpoint
    fixed: Fixed
    where: Destination
    before: Mapping[int, Content]
    source_bytes: int
    force: bool
    advance: Advance

    @property
    def needed(self) -> bool:
        """Whether there is anything to fix."""
        return self.fixed.anything or self.checkpoint.format != self.where.format

    def only_pickle_changed(self) -> bool:
        """Whether the file's records can stay as they are, in the order torch counts on."""
        now = {id(storage): storage.content for storage in storages(self.fixed.root)}
        same = list(now) == list(self.before) and all(now[key] is self.before[key] for key in now)
        return same and self.checkpoint.format == self.where.format == "torch zip"

    def patch(self) -> FixReport:
        path = self.checkpoint.path
        check_space(len(self.checkpoint.pickle or b""), path)
        patch(path, self.fixed.root)
        return self.report((path,), Checked())

    def write(self, hashed: bool) -> FixReport:
        """Write the files, each complete before it has its name."""
        files = plans(self.fixed.root, self.where)
        path = self.where.path
        check_space(sum(plan.nbytes for plan in files.values()), path)
        checked = self.check_changed_sources(files.values())
        if self.where.shard_size is not None:
            with new_folder(path) as folder:
                for name, plan in files.items():
                    checked += self.write_one(plan, folder / name)
            return self.report(tuple(path / name for name in files), checked)
        (plan,) = files.values()
        if not hashed:
            checked += self.write_one(plan, path)
            return self.report((path,), checked)
        path, written = write_hashed(lambda target: self.write_one(plan, target), path, self.force)
        return self.report((path,), checked + written)

    def write_one(self, plan: Plan, path: Path) -> Checked:
        force = self.force or path == self.checkpoint.path
        return write_plan(plan, path, self.checkpoint.files[0], force, self.name_of, self.advance)

    def check_changed_sources(self, files: Iterable[Plan]) -> Checked:
        """Verify the storages that are not copied as they are, whose checksum comes out anew."""
        copied = {id(content) for plan in files for _, content in plan.placed}
        contents = [
            content
            for storage in storages(self.fixed.root)
            if (content := self.before.get(id(storage))) is not None
            and content.crc is not None
            and id(content) not in copied
        ]
        check_sources(contents, self.name_of)
        return Checked(len(contents), sum(content.nbytes for content in contents), 0)

    def name_of(self, content: Content) -> str:
        """What the user calls the weights that a content holds."""
        for weights in find_weights(self.fixed.root):
            for name, tensor in weights.tensors().items():
                storage = tensor.storage
                if storage and content in (storage.content, self.before.get(id(storage))):
                    return name
        keys = (s.key for s in storages(self.fixed.root) if s.content is content)
        return f"storage {next(keys, '?')}"

    def report(self, outputs: tuple[Path, ...], checked: Checked) -> FixReport:
        fixed, weights = self.fixed, self.fixed.weights
        tensors = named_tensors(fixed.root) if weights is None else weights.tensors()
        aliases = aliases_in(tensors)
        loaded = outputs or (self.where.path if self.needed else self.checkpoint.path,)
        return FixReport(
            source=self.checkpoint.path,
            format=self.checkpoint.format,
            source_bytes=self.source_bytes,
            outputs=outputs,
            output_bytes=sum(path.stat().st_size for path in outputs),
            output_format=self.where.format,
            containers=fixed.containers,
            taken=weights.label if weights else None,
            tensors=len(tensors),
            renamed=tuple(Renaming(old, new, count) for (old, new), count in fixed.renamed.items()),
            locations=dict(fixed.locations),
            dtypes=dict(fixed.dtypes),
            changes=tuple(fixed.changes),
            left_out=tuple(fixed.left_out),
            modules=tuple(fixed.modules),
            aliases=aliases,
            saved_bytes=fixed.saved_bytes,
            checked=checked,
            match=fixed.match,
            notes=tuple(fixed.notes),
            anything=self.needed,
            load=_load_line(loaded, fixed, self.where, bool(aliases)),
        )


def _load_line(outputs: Sequence[Path], fixed: Fixed, where: Destination, tied: bool) -> str:
    """The line of Python that loads the weights."""
    path = str(outputs[0])
    read = "torch.load({}, weights_only=True)"
    if where.safetensors:
        read = "safetensors.torch.load_file({})"
    if where.shard_size is not None:
        files = f"sorted(Path({str(where.path)!r}).glob('*.{_SUFFIX[where.safetensors]}'))"
        return f"for file in {files}: model.load_state_dict({read.format('file')}, strict=False)"
    if where.safetensors and tied:  # load_state_dict would miss the second names
        return f"safetensors.torch.load_model(model, {path!r})"
    inside = ""
    if fixed.weights is not None and fixed.weights.node is not fixed.root:
        inside = "".join(f"[{part!r}]" for part in fixed.weights.keys)
    return f"model.load_state_dict({read.format(repr(path))}{inside})"
