"""Where runs part with the hash seed, the lines that make sets are named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.program.places import Place
from ptools.repro.conclude import conclude
from ptools.repro.suspects.sets import sets_in
from ptools.repro.verdict import Verdict

Write = Callable[[str, str], Path]
MADE = "the hash seed decides the order of the sets that are made at "


@pytest.mark.parametrize(
    ("line", "is_named"),
    [
        ("for name in {'a', 'b'}: pass", True),
        ("names = list(set(rows))", True),
        ("index = {name: i for i, name in enumerate({row for row in rows})}", True),
        ("names = frozenset(rows)", True),
        ("names = sorted(set(rows))", False),
        ("count = len({row for row in rows})", False),
        ("if name in {'a', 'b'}: pass", False),
        ("index = {'a': 1}", False),
        ("model.set(rows)", False),
    ],
)
def test_a_line_that_makes_a_set_in_an_order_is_named(
    line: str, is_named: bool, write: Write
) -> None:
    file = str(write("train.py", f"rows = 'ab'\n{line}\n"))
    assert sets_in([file, file]) == (f"{MADE}train.py:2" if is_named else "")


def test_many_are_counted_and_what_cannot_be_read_is_not_told(write: Write) -> None:
    file = str(write("train.py", "x = set(y)\n" * 6))
    listed = "train.py:1, train.py:2, train.py:3 and 3 more"
    assert sets_in(["gone.py", str(write("torn.py", "x = (")), file]) == f"{MADE}{listed}"


def test_only_a_parting_by_the_hash_seed_tells_of_sets(write: Write) -> None:
    place = Place(str(write("train.py", "x = set(y)\n")), 1, "main")
    verdict = Verdict("outside", "", 0, places=(("at", place),))
    assert conclude(verdict, ("hash",), ([], []), 0).facts == (f"{MADE}train.py:1",)
    assert conclude(verdict, ("fs",), ([], []), 0).facts == ()
    called = Place("site-packages/a.py", 1, "a", called_from=place)
    verdict = Verdict("outside", "", 0, places=(("at", called),))
    assert conclude(verdict, ("hash",), ([], []), 0).facts == (f"{MADE}train.py:1",)
