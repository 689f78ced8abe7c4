"""The page of a `FusionReport`, as it is read."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ptools import console
from ptools.fusion.options import Cast
from ptools.fusion.render import Written, page, verdict
from ptools.fusion.report import (
    Difference,
    FusionReport,
    Latency,
    Left,
    Operations,
    Variant,
)
from ptools.fusion.steps import Fold, Own
from ptools.fusion.trials import Trial

MERGE = Fold("block.wide", (3, 3), (1, 1), 1, (("block.bn", ()), ("block.narrow", ("0",))))
LATENCY = Latency((0.0354, 0.0349, 0.0361), (0.0302, 0.02999, 0.031), (1.17, 1.1, 1.22), 45, 2)
REPORT = FusionReport(
    name="Net",
    model=nn.Identity(),
    example=Trial((torch.zeros(1),), {}, "1"),
    inputs="1x3x224x224 float32",
    input_source="guessed",
    trials=("1x3x224x224 float32 (seed 0)", "2x3x224x224 float32 (seed 1)"),
    provers=("observation", "torch.export"),
    export_problem=None,
    steps=(MERGE, Own("stem", "fuse"), Own("head", "fuse")),
    norms=53,
    left=(),
    operations=(Operations(53, 1, 53, 16, 1174), Operations(53, 1, 0, 16, 121)),
    parameters=(25_557_032, 25_530_472),
    macs=(4_089_184_256, 999),
    difference=Difference(5.44e-06, 1.41e-06, 0.99999999, 1.0, 3),
    tolerance=1e-4,
    latency=LATENCY,
)
PAGE = """\
model   Net with 1x3x224x224 float32, guessed
folded  53 of 53 batch norms
merged  1 block of parallel branches
own     2 modules by a fuse() of their own

                           before             after
convolutions                   53                53
linear                          1                 1
batch norms                    53                 0
additions                      16                16
operations in all           1,174               121
parameters                 25.6 M            25.5 M
MACs                       4.09 G               999
latency                   35.4 ms           30.2 ms
95 % interval     34.9 to 36.1 ms   30.0 to 31.0 ms

speed  1.17 times as fast (1.10 to 1.22), 45 runs in turn on 2 threads
proof  observation and torch.export agree
tried  1x3x224x224 float32 (seed 0)
       2x3x224x224 float32 (seed 1)
error  at most 5.4e-06, 1.4e-06 of the output's spread; cosine 1; top-1 the same in 100% of 3 rows

equal: error 1.4e-06 of the output's spread, 53 of 53 batch norms folded
"""


def shown(report: FusionReport, written: tuple[Written, ...] = ()) -> str:
    """The page as it goes into a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        console.show(page(report, written))
        return str(sys.stdout.getvalue())


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_whole_page() -> None:
    assert words(shown(REPORT)) == words(PAGE)


def test_the_page_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    left = tuple(Left(f"layer4.block.{i}.norm", "BatchNorm2d", "follows cat") for i in range(9))
    variants = (Variant("channels last", LATENCY, REPORT.difference, REPORT.difference),)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    console.show(page(replace(REPORT, left=left, variants=variants)))
    assert max(map(len, terminal.getvalue().splitlines())) <= 80
    assert "100% of 3 rows" in words(terminal.getvalue())


def test_batch_norms_that_stay_are_grouped_by_reason_and_long_lists_end() -> None:
    many = tuple(Left(f"block{i}.bn", "BatchNorm2d", "follows cat") for i in range(15))
    text = shown(replace(REPORT, left=(*many, Left("aux", "BatchNorm2d", "did not run"))))
    assert "folded  37 of 53 batch norms, 16 left" in text
    assert "15: follows cat (block0.bn, block1.bn, block2.bn, and 12 more)" in text
    assert "1: did not run (aux)" in text


def test_one_prover_says_why_it_is_alone() -> None:
    alone = replace(REPORT, provers=("observation",), export_problem="torch.export: no (net.py:3)")
    assert "observation alone; torch.export: no (net.py:3)" in shown(alone)


def test_a_speed_up_that_the_interval_does_not_show_is_not_claimed() -> None:
    noisy = replace(LATENCY, speedup=(1.3, 0.9, 2.0))
    assert "no difference to be seen (0.900 to 2.00 times" in shown(replace(REPORT, latency=noisy))


COARSE = Difference(1, 0.1, 1.0, rms=2.6e-3)


def test_options_show_speed_error_and_the_error_without_fusing() -> None:
    variants = (
        Variant("channels last", LATENCY, Difference(1e-5, 2e-5, 1.0, 0.99999, 20_000, 2e-6)),
        Variant(
            "bfloat16", None, Difference(1, 0.1, 1.0, rms=2.6e-3), Difference(1, 0.1, 1.0, rms=3e-3)
        ),
        Variant("float16", problem="no kernel on this CPU"),
    )
    lines = shown(replace(REPORT, variants=variants)).splitlines()
    assert "channels last 1.17 (1.10 to 1.22) 2.0e-06 over 99.99%" in map(words, lines)
    assert "bfloat16 2.6e-03 3.0e-03" in map(words, lines)
    assert "float16: no kernel on this CPU" in map(words, lines)


def test_the_verdict_tells_the_error_of_the_options_that_the_model_was_given() -> None:
    wide = Variant("bfloat16", None, Difference(1, 2.6e-3, 1.0))
    cast = replace(REPORT, steps=(*REPORT.steps, Cast(torch.bfloat16)), variants=(wide,))
    assert verdict(cast).endswith("53 of 53 batch norms folded; 2.6e-03 with bfloat16")
    assert "bfloat16" not in verdict(replace(REPORT, variants=(wide,)))


def test_the_verdict_names_the_options_that_the_model_was_not_given() -> None:
    failed = Variant("float16", problem="head.weight is too large for float16")
    told = verdict(replace(REPORT, variants=(failed,)))
    assert told.endswith("53 of 53 batch norms folded; without float16")


def test_written_files_come_with_a_line_that_loads_them() -> None:
    line = "model = ptools.load_fused(model, 'a.pt')"
    text = shown(REPORT, (Written(Path("a.pt"), "a.pt: 3 MiB", line),))
    assert "written  a.pt: 3 MiB\nload it  " + line in text


def test_16_bits_are_compared_with_the_model_that_is_not_fused() -> None:
    text = shown(replace(REPORT, unfused=Difference(1, 0.1, 1.0, rms=3e-3)))
    assert "3.0e-03" in text and "without fusing" in text


WIDE = Difference(2.0, 0.5, 0.9)
VERDICTS = {
    "not equal": (
        replace(REPORT, difference=WIDE),
        "NOT EQUAL: error 5.0e-01 of the output's spread, 1.0e-04 is allowed",
    ),
    "no batch norms": (
        replace(REPORT, norms=0, steps=()),
        "nothing to fold: the model has no batch norms",
    ),
    "none could be folded": (
        replace(REPORT, norms=1, steps=(), left=(Left("bn", "BatchNorm2d", "did not run"),)),
        "nothing was folded: 1 batch norm left, for the reasons above",
    ),
    "not a number": (
        replace(REPORT, difference=Difference(float("inf"), float("inf"), 0.0)),
        "NOT EQUAL: error inf of the output's spread, 1.0e-04 is allowed",
    ),
    "merged without batch norms": (
        replace(REPORT, norms=0),
        "equal: error 1.4e-06 of the output's spread, no batch norms, 3 changes",
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_last_line_is_the_verdict(case: str) -> None:
    report, last = VERDICTS[case]
    assert verdict(report) == last
    assert shown(report).splitlines()[-1] == last


def test_names_that_would_command_a_terminal_are_escaped() -> None:
    assert "\x1b" not in shown(replace(REPORT, name="\x1b[2J"))
