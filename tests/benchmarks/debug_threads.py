"""Which line is at fault, in scripts from public threads: `ptools debug` beside `detect_anomaly`.

Run `python tests/benchmarks/debug_threads.py [PART OF A NAME ...]`.

The scripts are those of tests/debug/threads, with the true lines marked. A NaN has one, and the
line of a forward whose backward was written by hand counts too; an in-place bug has two: where the
tensor was saved and where it was changed; `half` names one.
"""

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from harness import show, show_versions

sys.path.insert(0, str(Path(__file__).parents[1] / "debug"))
from marked import SCRIPTS, kind_of, lines, marks, mode_of
from warm import Warm

from ptools.debug import debug_script

_FORWARD = "Traceback of forward call that caused the error:"
Answer = tuple[str, str]  # the lines named, and what to think of it


def main() -> None:
    """Print the table and the totals."""
    parts = sys.argv[1:] or [""]
    scripts = [one for one in SCRIPTS if any(part in one.stem for part in parts)]
    totals: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        warm = Warm(Path(folder), "ptools.debug.child", "ptools.debug.modes")
        for script in scripts:
            answers = ours(script, warm), anomaly(script, warm)
            for total, (_, verdict) in zip(totals, answers, strict=True):
                total[verdict] += 1
            rows.append([script.stem, _shown(truth(script)), *answers[0], *answers[1]])
        warm.close()
    show(
        "Lines named",
        ("script", "true", "ptools debug", "", "detect_anomaly", ""),
        [*rows, ["all", "", "", _counts(totals[0]), "", _counts(totals[1])]],
    )
    show_versions()


def truth(script: Path) -> set[int]:
    """The lines that a verdict has to name."""
    marked = marks(script)
    return marked["changed"] | marked["saved"] or marked["made"] or marked["read"]


def ours(script: Path, warm: Warm) -> Answer:
    """What `ptools debug` says."""
    found = debug_script(str(script), mode=mode_of(script), seed=0, runner=warm).findings
    if not found:
        return "", "silent"
    named, marked = lines(found[0], script), marks(script)
    told = {role: named[role] for role in marked}
    right = told == marked and found[0].kind == kind_of(script) and len(found) == 1
    return _shown(set().union(*told.values())), "right" if right else "wrong"


def anomaly(script: Path, warm: Warm) -> Answer:
    """What torch says under `torch.autograd.detect_anomaly`."""
    output = warm(["anomaly", str(script)], {}, True).output
    if "RuntimeError" not in output:
        return "", "silent"
    _, _, traceback = output.partition(_FORWARD)
    traceback = traceback.partition("(Triggered internally")[0]
    found = re.findall(rf'File "{re.escape(str(script))}", line (\d+)', traceback)
    named = {int(found[-1])} if found else set()
    if named and named in (truth(script), marks(script)["forward"]):
        return _shown(named), "right"
    if named and named == marks(script)["saved"]:
        return _shown(named), "half"
    return _shown(named), "wrong" if named else "no line"


def _counts(verdicts: Counter[str]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())


def _shown(named: set[int]) -> str:
    return ", ".join(map(str, sorted(named)))


if __name__ == "__main__":
    main()
