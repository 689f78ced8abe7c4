"""The scripts whose runs part, each by one planted cause, and what their comments tell of it.

`# <- parts` marks the line where the difference is made, `# class:` what kind it is, `# parts:` the
field of the batch in which it first shows, `# perturb:` what run B needs for it.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ptools.repro.verdict import Verdict

SCRIPTS = sorted(Path(__file__).with_name("parting").glob("*.py"))
_SLOW = set(
    """random_generator_in_spawned random_split random_numpy_augmentation random_seed_from_pid
    random_seed_too_late random_in_second_epoch flow_steps_drawn
    flow_stops_by_clock outside_uuid outside_late_noise
    order_walk order_rglob order_listdir outside_pid spawned_workers mixed_precision lbfgs
    sparse_embedding no_workers random_for_nothing views_and_complex checkpointing""".split()
)
CLEAN = sorted(Path(__file__).with_name("clean").glob("*.py"))


@dataclass(frozen=True)
class Truth:
    """What a verdict has to say: its class, and the line or the field."""

    kind: str
    line: int | None
    field: str
    perturb: tuple[str, ...]


@cache
def truth(script: Path) -> Truth:
    """What a script's comments tell."""
    text = script.read_text()
    lines = [number for number, line in enumerate(text.splitlines(), 1) if "# <- parts" in line]
    assert len(lines) <= 1, script
    return Truth(
        _told(text, "class"),
        lines[0] if lines else None,
        _told(text, "parts"),
        tuple(_told(text, "perturb").split(",")) if "# perturb:" in text else ("hash", "fs"),
    )


def is_slow(script: Path) -> bool:
    """Whether the fast tests have another of its kind, or it starts interpreters of its own."""
    return script.stem in _SLOW


def line_of(verdict: Verdict | None, script: Path) -> int | None:
    """The script's line that is named first."""
    place = verdict and verdict.where
    while place is not None and Path(place.file) != script:
        place = place.called_from
    return place.line if place else None


def is_right(verdict: Verdict | None, script: Path) -> bool:
    """Whether the class is the true one, and the line is, or the field of the batch."""
    true = truth(script)
    if verdict is None or verdict.kind != true.kind:
        return False
    named = true.line is not None and line_of(verdict, script) == true.line
    return named or (bool(true.field) and verdict.value.startswith(true.field))


def _told(text: str, what: str) -> str:
    found = re.search(rf"^# {what}: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
