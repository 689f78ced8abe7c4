"""The page, as it is read on a terminal of 80 columns and through a pipe."""

import io
from dataclasses import replace

from rich.console import Console

from ptools.debug.findings import Finding, Table, TensorStats
from ptools.debug.render import page, verdict
from ptools.debug.report import DebugReport, Pass
from ptools.program.places import Place
from ptools.program.process import Ended

PLACE = Place(
    "/home/me/train.py",
    31,
    "Head.forward",
    source="return x / x.sum(1, keepdim=True)",
    part="x.sum(1, keepdim=True)",
    module="Net.head",
    called_from=Place("/home/me/main.py", 7, "<module>", source="loss = net(x)", part="net(x)"),
)
FINDING = Finding(
    kind="nan",
    summary="aten::div made NaN",
    places=(("made", PLACE),),
    facts=("it reached the loss",),
    advice="add an eps to the denominator",
    step=1200,
    tick=1200,
    tensors=(TensorStats("other", (8, 1), "float32", 0.0, 2.5, 1, 0, 0, None),),
)
REPORT = DebugReport(
    program="train.py",
    mode="watch",
    seed=7,
    ranks=1,
    passes=(Pass("watch", 3.84, 1200, Ended(3)), Pass("nan", 4.11, 1200, Ended(3))),
    findings=(FINDING,),
    notes=("a note",),
    tables=(Table("gradients", ("module", "norm"), (("Net.head", 0.5),)),),
    watched=True,
    complete=True,
    steps=1200,
    ticks=1200,
    exit_code=3,
)


def shown(report: DebugReport, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False).print(page(report))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_the_page_of_a_finding() -> None:
    assert shown(REPORT) == [
        "aten::div made NaN at step 1,200",
        "  made   /home/me/train.py:31 in Head.forward, module Net.head",
        "         return x / x.sum(1, keepdim=True)",
        "                    ^^^^^^^^^^^^^^^^^^^^^^",
        "         called from /home/me/main.py:7 in <module>",
        "         loss = net(x)",
        "                ^^^^^^",
        "  other  8x1 float32, 0 to 2.5, 1 zero",
        "         it reached the loss",
        "  do     add an eps to the denominator",
        "",
        "gradients",
        "module    norm",
        "Net.head   0.5",
        "",
        "note: a note",
        "ran mode watch 3.8 s, then mode nan 4.1 s (--seed 7 repeats it)",
        "aten::div made NaN at /home/me/train.py:31",
    ]


def test_a_long_line_is_folded_and_loses_nothing() -> None:
    source = "loss = " + " + ".join(f"criterion_{n}(output_{n})" for n in range(9))
    place = replace(PLACE, source=source, part="criterion_8(output_8)", called_from=None)
    lines = shown(replace(REPORT, findings=(replace(FINDING, places=(("made", place),)),)))
    assert max(map(len, lines)) <= 80
    assert "".join(source.split()) in "".join("".join(lines).split())
    assert "^" not in "".join(lines)


def test_an_expression_that_stands_there_twice_is_not_marked() -> None:
    place = replace(PLACE, source="x = a / b + a / b", part="a / b", called_from=None)
    assert "^" not in "".join(
        shown(replace(REPORT, findings=(replace(FINDING, places=(("made", place),)),)))
    )


def test_what_would_command_a_terminal_is_shown_as_text() -> None:
    finding = replace(FINDING, summary="\x1b[2J made NaN", advice="\x07")
    assert not {"\x1b", "\x07"} & set("".join(shown(replace(REPORT, findings=(finding,)))))


def test_the_verdict_where_nothing_was_found() -> None:
    clean = replace(REPORT, findings=(), exit_code=0)
    assert verdict(clean) == "nothing found in 1,200 steps and 1,200 backward calls (mode watch)"
    assert verdict(replace(clean, steps=0, ticks=0)).startswith("nothing found: no backward, no")
    assert verdict(replace(clean, complete=False)) == "nothing found before the program was ended"
    assert verdict(replace(clean, watched=False, exit_code=2)) == (
        "this program did not import torch: nothing was watched; the program's exit code is 2"
    )


def test_the_verdict_of_several_ranks() -> None:
    report = replace(REPORT, findings=(replace(FINDING, rank=1), FINDING), ranks=2)
    expected = "aten::div made NaN on rank 1 at /home/me/train.py:31, and 1 more finding"
    assert verdict(report) == expected
    assert "--seed" not in "".join(shown(report))


def test_infinities_are_told_by_their_sign() -> None:
    stats = TensorStats("self", (), "float16", None, None, 0, 0, 5, (), negative_infs=3)
    text = "\n".join(shown(replace(REPORT, findings=(replace(FINDING, tensors=(stats,)),))))
    assert "scalar float16, 2 inf, 3 -inf" in text
    assert "first at" not in text  # a scalar has one place only
