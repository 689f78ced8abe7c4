"""Write a tree of nodes to a file, for torch to load: nothing is checked on the way."""

from __future__ import annotations

from pathlib import Path

from ptools.checkpoint.data.copying import write_contents
from ptools.checkpoint.output.torch_file import plan_torch_file
from ptools.checkpoint.output.writing import Plan
from ptools.checkpoint.pickles.nodes import Node


def write_tree(root: Node, path: Path) -> None:
    """Write a torch file that holds `root`; the file must not exist."""
    write_plain(plan_torch_file(root, path.name.partition(".")[0]), path)


def write_plain(plan: Plan, path: Path) -> None:
    """Write a planned file; it must not exist."""
    with path.open("xb") as file:
        copied = write_contents(file.fileno(), plan.placed, lambda nbytes: None)
        plan.finish(file.fileno(), copied)
