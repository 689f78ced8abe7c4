"""The last line of `ptools repro`: what a person reads first."""

from ptools.program.places import Place
from ptools.repro.render import verdict
from ptools.repro.report import ReproReport
from ptools.repro.verdict import Verdict

OWN = Place("train.py", 7, "main")
INSTALLED = Place("site-packages/models/bert.py", 58, "__init__", called_from=OWN)


def last_line(place: Place) -> str:
    found = Verdict("random", "aten::normal_ drew other numbers", 2, places=(("at", place),))
    return verdict(ReproReport("train.py", found, (), (), True, 1, 3, 4, 5, 6, exit_code=3))


def test_the_last_line_names_the_users_line_and_not_the_packages() -> None:
    told = "the runs part at step 2 at train.py:7: aten::normal_ drew other numbers"
    assert last_line(OWN) == last_line(INSTALLED) == told
