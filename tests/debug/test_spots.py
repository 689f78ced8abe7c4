"""Where in the user's code something happens."""

import inspect
import re
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ptools.debug.mode import Log, watching
from ptools.debug.nan.mode import Nan
from ptools.program.clock import Clock
from ptools.program.modules import Modules
from ptools.program.spots import spot


def test_a_spot_is_the_line_the_expression_and_the_module() -> None:
    modules = Modules()
    spots = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            spots.append((spot(modules), inspect.currentframe().f_lineno))  # type: ignore[union-attr]
            return x

    model = nn.Sequential(nn.Identity(), Net())
    with modules.watching():
        model(torch.ones(1))
    ((taken, line),) = spots
    place = taken.place(modules)
    assert place is not None
    assert (place.file, place.line, place.part) == (__file__, line, "spot(modules)")
    assert (place.function.split(".")[-1], place.module) == ("forward", "Sequential.1")
    assert place.called_from is None


def test_a_line_of_an_installed_package_names_the_line_that_called_it(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "installed.py"
    package.parent.mkdir()
    package.write_text("def run(call):\n    return call()\n")
    known: dict[str, object] = {}
    exec(compile(package.read_text(), str(package), "exec"), known)
    modules = Modules()
    call = known["run"]
    assert callable(call)
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    place = call(lambda_of(package, modules)).place(modules)
    assert (place.file, place.line) == (str(package), 1)
    assert place.called_from is not None
    assert (place.called_from.file, place.called_from.line) == (__file__, line)


def lambda_of(file: Path, modules: Modules) -> object:
    """A function of an installed file that takes a spot."""
    return eval(compile("lambda: spot(modules)", str(file), "eval"), {**globals(), **locals()})


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x * 2

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient * 2


class Zoo(nn.Module):
    """Nodes of many kinds, a line each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        x = self.norm(x)
        halves = x.chunk(2, -1)
        x = torch.cat(halves[::-1], -1)
        x = Double.apply(x)
        x = x.relu_()
        x = x + 1
        x[:, 0] = 2.0
        with torch.no_grad():
            constant = x * 2
        x = x * constant
        x, _ = self.attention(x, x, x)
        x, _ = self.recurrent(x)
        x = torch.einsum("bij,bkj->bik", x, x)
        x = checkpoint(lambda t: (t * 2).exp(), x, use_reentrant=False)
        x = x.transpose(1, 2).contiguous().flatten(1)
        x.mul_(0.5)
        return x.logsumexp(1).std()


def test_the_forward_lines_of_nodes_are_those_of_anomaly_mode() -> None:
    mode = Nan(Log(), Clock(), Modules())
    with warnings.catch_warnings(), watching(mode):
        warnings.simplefilter("ignore")
        with torch.autograd.set_detect_anomaly(True, check_nan=False):
            loss = Zoo()(torch.randn(2, 3, 4))
    ours, theirs = {}, {}
    for node in nodes(loss.grad_fn):
        traceback = node.metadata.get("traceback_", [])
        known = mode._tracer.lines.of(node)
        # A parameter's own node has no line of a forward; that of a view is made when it is used.
        if known is None or "AsStrided" in node.name():
            assert re.search("AccumulateGrad|AsStrided", node.name())
            continue
        place = known.place(mode.modules)
        assert place is not None
        ours[node] = place.line
        found = [re.search(r'py", line (\d+)', text) for text in traceback if __file__ in text]
        theirs[node] = int(found[-1].group(1)) if found and found[-1] else 0
    assert ours == theirs
    assert len(ours) > 50


def nodes(root: torch.autograd.graph.Node | None) -> set[torch.autograd.graph.Node]:
    """All nodes of a graph."""
    seen: set[torch.autograd.graph.Node] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return seen
