"""Calls in a model's code that did not run: found by reading it, or rightly passed over."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptools.fusion.callsites import unproven
from ptools.fusion.observe import observe
from ptools.usercode import load_file


class ConvBN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


def reason(model: nn.Module, names: tuple[str, ...] = ("conv", "bn")) -> str | None:
    trace, _ = observe(model.eval(), (torch.randn(1, 2, 8, 8),), {})
    return unproven(model, names, trace)


def line_of(text: str) -> int:
    """The line of this file that ends in a comment."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.endswith(f"  # {text}"))


def test_what_ran_is_proven() -> None:
    assert reason(ConvBN()) is None


def test_a_branch_that_did_not_run_is_named_by_its_line() -> None:
    class Net(ConvBN):
        def forward(self, x: torch.Tensor, raw: bool = False) -> torch.Tensor:
            if raw:
                return self.conv(x)  # the raw branch
            return self.bn(self.conv(x))

    line = line_of("the raw branch")
    assert reason(Net()) == f"test_callsites.py:{line} also calls conv, and did not run"


def test_a_method_that_nobody_called_counts() -> None:
    class Net(ConvBN):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu()

    assert "also calls conv" in (reason(Net()) or "")


def test_a_norm_called_elsewhere_counts() -> None:
    class Net(ConvBN):
        def normalised(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(x)

    assert "also calls bn" in (reason(Net()) or "")


def test_the_same_statement_elsewhere_is_proven() -> None:
    class Net(ConvBN):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x))

    assert reason(Net()) is None


def test_the_same_statements_in_a_row_are_proven() -> None:
    class Net(ConvBN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            x = self.bn(x)
            return x.relu()

        def features(self, x: torch.Tensor) -> list[torch.Tensor]:
            found = [x]
            x = self.conv(x)
            x = self.bn(x)
            return [*found, x]

    assert reason(Net()) is None


def test_the_same_statement_without_the_one_after_it_is_not() -> None:
    class Net(ConvBN):
        def forward(self, x: torch.Tensor, raw: bool = False) -> torch.Tensor:
            if raw:
                x = self.conv(x)
                return x
            x = self.conv(x)
            x = self.bn(x)
            return x

    assert "also calls conv" in (reason(Net()) or "")


def test_the_same_statements_whose_middle_is_kept_are_not() -> None:
    class Net(ConvBN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = self.bn(y)
            return z

        def both(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = self.bn(y)
            return z + y

    assert "also calls conv" in (reason(Net()) or "")


@pytest.mark.parametrize(
    "condition",
    [
        "self.training",
        "self.training and flag",
        "torch.jit.is_scripting()",
        "not (not torch.jit.is_tracing() or flag)",
        "self.bn is None",
        "not self.bn is not None",
    ],
)
def test_a_branch_that_inference_never_takes_is_passed_over(
    condition: str, write: Callable[[str, str], Path]
) -> None:
    assert reason(_branching(condition, write)) is None


@pytest.mark.parametrize("condition", ["flag", "self.training or flag", "self.raw", "x.dim() == 5"])
def test_a_branch_that_another_call_may_take_is_not(
    condition: str, write: Callable[[str, str], Path]
) -> None:
    assert "model.py:12 also calls conv" in (reason(_branching(condition, write)) or "")


def _branching(condition: str, write: Callable[[str, str], Path]) -> nn.Module:
    text = f"""\
import torch
from torch import nn
class Net(nn.Module):
    raw = False
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x, flag=False):
        if {condition}:
            return self.conv(x)
        return self.bn(self.conv(x))
"""
    return _loaded(write("model.py", text))


def _loaded(path: Path) -> nn.Module:
    model: nn.Module = load_file(path).Net()
    return model


def test_what_follows_a_return_in_inference_is_passed_over() -> None:
    class Net(ConvBN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                return self.bn(self.conv(x))
            return self.conv(x)

    assert reason(Net()) is None


def test_two_ways_on_one_line_can_not_be_told_apart() -> None:
    class Net(ConvBN):
        def forward(self, x: torch.Tensor, raw: bool = False) -> torch.Tensor:
            return self.conv(x) if raw else self.bn(self.conv(x))

    assert "calls conv in one of several ways" in (reason(Net()) or "")


def test_an_expression_with_one_way_in_inference_is_proven() -> None:
    class Net(ConvBN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if self.bn is None else self.bn(self.conv(x))

    assert reason(Net()) is None


def test_calls_from_the_parent_count() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = ConvBN()

        def forward(self, x: torch.Tensor, raw: bool = False) -> torch.Tensor:
            return self.block.conv.forward(x) if raw else self.block(x)

    assert "calls block.conv.forward in one of" in (reason(Net(), ("block.conv", "block.bn")) or "")


def test_a_call_of_what_holds_all_of_it_is_proven() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = ConvBN()

        def forward(self, x: torch.Tensor, twice: bool = False) -> torch.Tensor:
            return self.block(self.block(x)) if twice else self.block(x)

    assert reason(Net(), ("block.conv", "block.bn")) is None


@pytest.mark.parametrize("raw", ["self.layers[0](x)", "self.layers[-2](x)", "self.layers[:1](x)"])
def test_children_of_a_sequential_are_found(raw: str, write: Callable[[str, str], Path]) -> None:
    text = f"""\
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    def forward(self, x, raw=False):
        if raw:
            return {raw}
        return self.layers(x)
"""
    found = reason(_loaded(write("model.py", text)), ("layers.0", "layers.1")) or ""
    assert re.match(r"model\.py:8 also calls layers\[.*\], and did not run", found)


def test_a_loop_over_children_is_followed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(2))
            self.bns = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(2))

        def forward(self, x: torch.Tensor, raw: bool = False) -> torch.Tensor:
            if raw:
                for conv in self.convs:
                    x = conv(x)
                return x
            for conv, bn in zip(self.convs, self.bns, strict=True):
                x = bn(conv(x))
            return x

    assert "also calls conv," in (reason(Net(), ("convs.1", "bns.1")) or "")


def test_overridden_methods_count_only_if_they_are_called() -> None:
    class Raw(ConvBN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    class Whole(Raw):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x))

    class Either(Raw):
        def forward(self, x: torch.Tensor, raw: bool = False) -> torch.Tensor:
            if raw:
                return super().forward(x)
            return self.bn(self.conv(x))

    assert reason(Whole()) is None
    assert "also calls conv" in (reason(Either()) or "")


def test_calls_while_building_are_over() -> None:
    class Net(ConvBN):
        def __init__(self) -> None:
            super().__init__()
            self.size = self.conv(torch.zeros(1, 2, 8, 8)).numel()

    assert reason(Net()) is None


@pytest.mark.parametrize(
    "statement",
    [
        "with torch.no_grad(): x = self.conv(x)",
        "while x.sum() > 1e9: x = self.conv(x)",
        "x = [self.conv(y) for y in x][0]",
        "x = (lambda y: self.conv(y))(x)",
        "conv = self.conv; x = conv(x)",
        "x = torch.relu(input=self.conv(x))",
        "x += self.conv(x)",
    ],
)
def test_calls_are_found_in_any_statement(
    statement: str, write: Callable[[str, str], Path]
) -> None:
    assert re.match(r"model\.py:13 also calls conv,", reason(_raw(statement, write)) or "")


def test_calls_are_found_in_any_block(write: Callable[[str, str], Path]) -> None:
    text = """\
match len(x):
            case 5:
                try:
                    return x
                except ValueError:
                    return self.conv(x)"""
    assert "model.py:18 also calls conv" in (reason(_raw(text, write)) or "")


def _raw(statement: str, write: Callable[[str, str], Path]) -> nn.Module:
    text = f"""\
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.bn(self.conv(x))

    def raw(self, x):
        {statement}
        return x
"""
    return _loaded(write("model.py", text))


def test_the_way_of_a_fused_module_is_passed_over() -> None:
    class Net(ConvBN):
        def forward_fuse(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    assert reason(Net()) is None


def test_without_source_there_is_nothing_to_say() -> None:
    space: dict[str, Any] = {"ConvBN": ConvBN}
    exec("class Net(ConvBN):\n  def raw(self, x):\n    return self.conv(x)", space)
    assert reason(space["Net"]()) is None
