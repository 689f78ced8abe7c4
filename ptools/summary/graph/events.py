"""A graph as a run that TensorBoard shows, written without `torch.jit`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptools.errors import UsageError
from ptools.events import event_file
from ptools.inputs import Inputs
from ptools.summary.graph.record import GraphNode, record_graph
from ptools.summary.ladder import Subject
from ptools.summary.report import Rung


def write_graph(subject: Subject, inputs: Inputs, rung: Rung, directory: Path, name: str) -> Path:
    """Write the graph of the forward as a new TensorBoard run, and return its folder.

    The folder is `directory`/`name`, with `-2`, `-3` and so on appended if that exists. `rung`
    is one on which the forward runs; on `cpu` all results are held in memory to the end. Raises
    UsageError if `directory` can't be written to, and what the forward raises.

        >>> write_graph(Subject(model), inputs, "meta", Path("runs"), "resnet50")
        PosixPath('runs/resnet50')
    """
    recorded = record_graph(subject, inputs, rung)
    try:
        folder = _new_folder(directory, name)
        _write_events(folder, recorded)
    except OSError as error:
        raise UsageError(
            f"cannot write to {directory}: {error.strerror or error}",
            hint="name a folder that you may write to",
        ) from error
    return folder


def _new_folder(directory: Path, name: str) -> Path:
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file", hint="name a folder, existing or not")
    directory.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "model"
    number = 1
    while True:
        folder = directory / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _write_events(folder: Path, recorded: Iterable[GraphNode]) -> None:
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.versions_pb2 import VersionDef

    versions = VersionDef(producer=22)
    graph = GraphDef(node=[_node_def(node) for node in recorded], versions=versions)
    with event_file(folder) as add:
        add(graph_def=graph.SerializeToString())


def _node_def(node: GraphNode) -> Any:
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    def shape(sizes: tuple[int, ...]) -> Any:
        return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])

    shapes = AttrValue.ListValue(shape=[shape(sizes) for sizes in node.shapes])
    attributes = {
        "_output_shapes": AttrValue(list=shapes),
        "dtype": AttrValue(s=", ".join(node.dtypes).encode()),
    }
    if node.macs is not None:
        attributes["macs"] = AttrValue(i=node.macs)
    return NodeDef(name=node.name, op=node.op, input=node.inputs, attr=attributes)
