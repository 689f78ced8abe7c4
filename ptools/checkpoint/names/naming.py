"""What the entries of a state_dict are to be called: the wrappers' rule and the user's wishes."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ptools.checkpoint.names.wrappers import rename_prefixes, unwrap
from ptools.errors import UsageError

if TYPE_CHECKING:
    from ptools.checkpoint.names.matching import Match, Shapes

Names = dict[str, str | None]  # old name -> new one, None: left out
_ALIKE = 0.5  # of a misspelt name and the one that is meant


@dataclass(frozen=True, slots=True)
class Naming:
    """The wishes. `strip` are prefixes ("none": leave wrappers in), `rename` (regex, replacement).

    `keep` and `drop` are globs; `like` the names and shapes of the model that is to load them.
    """

    strip: tuple[str, ...] = ()
    rename: tuple[tuple[re.Pattern[str], str], ...] = ()
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    like: Shapes | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """The new names, what to tell about them, and how they fit the model, if one is given."""

    names: Names
    notes: tuple[str, ...] = ()
    match: Match | None = None

    @property
    def fits(self) -> int:
        """How many tensors of the model are filled."""
        return self.match.matched if self.match else 0


def new_names(shapes: Shapes, naming: Naming, others: Sequence[str] = ()) -> Named:
    """Apply the wishes to the names of one state_dict; `others` are those of no tensor.

    These, such as a module's extra state, go where their module goes. A prefix is looked for before
    and after the wrappers are removed, so that it may be written either way.
    """
    names: Names = {name: name for name in shapes}
    prefixes = [f"{prefix.rstrip('.')}." for prefix in naming.strip if prefix != "none"]
    early = [prefix for prefix in prefixes if any(name.startswith(prefix) for name in shapes)]
    names = _mapped(names, _stripper(early))
    notes: tuple[str, ...] = ()
    if "none" not in naming.strip and naming.like is None:
        unwrapped = unwrap(_present(names))
        names, notes = _mapped(names, unwrapped.names.get), unwrapped.left
    late = [prefix for prefix in prefixes if prefix not in early]
    names = _mapped(names, _stripper(late))
    for pattern, replacement in naming.rename:
        names = _mapped(names, partial(pattern.sub, replacement))
    matched = None
    if naming.like is not None:
        at = {new: shapes[old] for old, new in names.items() if new is not None}
        from ptools.checkpoint.names.matching import match

        fitted = match(at, naming.like)
        # What the model lacks goes if nothing else is missing: else it may be just that.
        lost = set(fitted.unexpected) if fitted.complete else set()
        names = _mapped(names, lambda name: _without(fitted.names.get(name), lost))
        matched = replace(fitted, unexpected=()) if lost else fitted
    names |= _moved(others, names)
    keep = [glob for glob in naming.keep if any(_matches(glob, name) for name in _present(names))]
    names = _mapped(names, lambda name: name if is_wanted(name, keep, naming.drop) else None)
    return Named(names, notes, matched)


def check_wishes(naming: Naming, names: Sequence[str], entries: Sequence[str]) -> None:
    """Refuse a prefix or pattern that nothing has.

    Raises:
        UsageError: with the nearest name there is.
    """
    known = [*names, *entries]
    bare = [new for new in unwrap(known).names.values() if new]
    for prefix in naming.strip:
        start = f"{prefix.rstrip('.')}."
        if prefix != "none" and not any(name.startswith(start) for name in [*known, *bare]):
            tops = sorted({f"{name.partition('.')[0]}." for name in known if "." in name})
            hint = f"they start with {', '.join(tops[:8])}" if tops else None
            raise UsageError(f"no name starts with {start!r}", hint=hint)
    for pattern, _ in naming.rename:
        if not any(pattern.search(name) for name in [*known, *bare]):
            raise UsageError(f"no name matches {pattern.pattern!r}", hint=_example(known))
    if naming.like is None:
        for glob in (*naming.keep, *naming.drop):
            if not any(_matches(glob, name) for name in _renamed([*known, *bare], naming)):
                parts = [*entries, *(name.partition(".")[0] for name in names), *names]
                near = difflib.get_close_matches(glob, parts, n=1, cutoff=_ALIKE)
                hint = f"did you mean {near[0]!r}?" if near else _example(known)
                raise UsageError(f"nothing is called {glob!r}", hint=hint)


def parse_rename(text: str) -> tuple[re.Pattern[str], str]:
    """Read `REGEX=REPLACEMENT`; the = of a look-ahead or look-behind does not count.

    Raises:
        UsageError: there is no =, or the expression is none.
    """
    parts = re.split(r"(?<!\(\?)(?<!\(\?<)=", text, maxsplit=1)
    if len(parts) != 2:
        raise UsageError(f"cannot read --rename {text!r}", hint="write 'REGEX=REPLACEMENT'")
    try:
        pattern = re.compile(parts[0])
        pattern.sub(parts[1], "")  # the replacement may refer to groups that are not there
    except (re.error, IndexError) as error:
        raise UsageError(f"--rename {text!r} is no regular expression: {error}") from error
    return pattern, parts[1]


def is_wanted(name: str, keep: Sequence[str], drop: Sequence[str]) -> bool:
    """Whether the globs leave a name in."""
    kept = not keep or any(_matches(glob, name) for glob in keep)
    return kept and not any(_matches(glob, name) for glob in drop)


def _matches(glob: str, name: str) -> bool:
    """A glob means a name, or all names below it."""
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"{glob.rstrip('.')}.*")


def _stripper(prefixes: Sequence[str]) -> Callable[[str], str]:
    def strip(name: str) -> str:
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        return name

    return strip


def _mapped(names: Names, change: Callable[[str], str | None]) -> Names:
    return {old: None if new is None else change(new) for old, new in names.items()}


def _moved(others: Sequence[str], names: Names) -> Names:
    """New names for what lies in the modules of these."""
    places = {other: other.rpartition(".") for other in others}
    modules = {module: rename_prefixes([module], names)[module] for module, _, _ in places.values()}
    return {
        other: f"{modules[module]}.{last}" if modules[module] else last
        for other, (module, _, last) in places.items()
    }


def _present(names: Mapping[str, str | None]) -> list[str]:
    return [name for name in names.values() if name is not None]


def _without(name: str | None, lost: set[str]) -> str | None:
    return None if name in lost else name


def _renamed(names: Sequence[str], naming: Naming) -> list[str]:
    found = [*names]
    for prefix in naming.strip:
        found += [name.removeprefix(f"{prefix.rstrip('.')}.") for name in found]
    for pattern, replacement in naming.rename:
        found += [pattern.sub(replacement, name) for name in found]
    return found


def _example(names: Sequence[str]) -> str | None:
    return f"there is, for example, {names[0]!r}" if names else None
