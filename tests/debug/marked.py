"""The scripts in which the lines at fault are marked, and which lines a finding names."""

import re
from collections import defaultdict
from pathlib import Path

from ptools.debug import Finding

SCRIPTS = sorted(Path(__file__).with_name("threads").glob("*.py"))
KINDS = {
    "inplace_mask_data": "inplace-hidden",
    "inplace_clipped_early": "inplace-hidden",
    "nan_rate_too_high": "inf",
}


def marks(script: Path) -> dict[str, set[int]]:
    """The lines that carry a mark such as `# <- made`, by the mark."""
    found: dict[str, set[int]] = defaultdict(set)
    for number, line in enumerate(script.read_text().splitlines(), 1):
        for role in re.findall(r"# <- (\w+)", line):
            found[role].add(number)
    return found


def lines(finding: Finding, script: Path) -> dict[str, set[int]]:
    """The script's lines that a finding names, by their role."""
    found: dict[str, set[int]] = defaultdict(set)
    for role, place in finding.places:
        where = place.called_from or place
        assert Path(where.file) == script, where
        found[role].add(where.line)
    return found


def mode_of(script: Path) -> str:
    """The default, but for bugs of which torch and the losses say nothing."""
    return "inplace" if kind_of(script) == "inplace-hidden" else "watch"


def kind_of(script: Path) -> str:
    """The kind of finding that a script is to have, by its name."""
    return KINDS.get(script.stem, script.stem.partition("_")[0])
