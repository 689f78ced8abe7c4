"""Everything that is done to a checkpoint's tree, from the wrappers' names to the dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.containers import Weights, choose_weights, find_weights, is_extra_state
from ptools.checkpoint.edit import cast, compact, move, rename, rename_in_optimizer
from ptools.checkpoint.look.entries import shape_text
from ptools.checkpoint.look.sharing import slack_in
from ptools.checkpoint.names.naming import Named, Naming, check_wishes, is_wanted, new_names
from ptools.checkpoint.names.wrappers import changes
from ptools.checkpoint.pickles.modules import state_dicts
from ptools.checkpoint.pickles.nodes import Node, mapping
from ptools.checkpoint.pickles.plain import Change, make_plain
from ptools.checkpoint.pickles.tensors import tensor_of, tensors_below
from ptools.errors import PtoolsError, UsageError
from ptools.files import human_bytes

if TYPE_CHECKING:
    from ptools.checkpoint.names.matching import Match

THE_PICKLE = "the pickle"  # where a change is that concerns all of it
_WORTH_A_WORD = 1 << 20  # bytes that no tensor sees


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asks of the content; see `fix_ckpt`."""

    naming: Naming = field(default_factory=Naming)
    model: Any = None
    to: str = "cpu"
    weights_only: bool = False
    ema: bool = False
    dtype: str | None = None
    compact: bool = False


@dataclass(slots=True)
class Fixed:
    """The tree as it is to be written, and what was done to it."""

    root: Node
    weights: Weights | None = None
    containers: tuple[str, ...] = ()
    changes: list[Change] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    renamed: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    locations: Counter[tuple[str, str]] = field(default_factory=Counter)
    dtypes: Counter[tuple[str, str]] = field(default_factory=Counter)
    saved_bytes: int = 0
    match: Match | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def anything(self) -> bool:
        """Whether anything was changed."""
        counted = self.renamed or self.locations or self.dtypes or self.saved_bytes
        listed = self.changes or self.modules or self.left_out or self.added
        return bool(counted or listed)

    def leave_out_all_but_tensors(self) -> None:
        """For formats that hold nothing else."""
        pairs = mapping(self.root) or []
        self.left_out += [str(name) for name, value in pairs if tensor_of(value) is None]
        pairs[:] = [(name, value) for name, value in pairs if tensor_of(value) is not None]


def fix(checkpoint: Checkpoint, wishes: Wishes) -> Fixed:
    """Do what the wishes say to the checkpoint's tree.

    Raises:
        PtoolsError: there are no weights, or two would get one name.
        UsageError: a wish fits nothing in the checkpoint.
    """
    root, modules = state_dicts(checkpoint.root)
    root, changed = make_plain(root)
    if checkpoint.protocol not in (None, 2):
        written = f"protocol {checkpoint.protocol}"
        changed = [Change(THE_PICKLE, written, "protocol 2, as torch's own"), *changed]
    fixed = Fixed(root, changes=changed, notes=list(checkpoint.notes))
    for module in modules:
        fixed.modules.append(module.label)
        fixed.notes += module.notes
    if next(tensors_below(root), None) is None:
        hint = f"see what is in it: ptools fix-ckpt info {checkpoint.path}"
        raise PtoolsError(f"{checkpoint.path} holds no tensors", hint=hint)
    _name(fixed, wishes)
    if wishes.dtype:
        found = [weights.node for weights in find_weights(fixed.root)]
        fixed.dtypes = cast(found or [fixed.root], wishes.dtype)
    if wishes.compact:
        fixed.saved_bytes = compact(fixed.root)
    else:
        slack = sum(found.bytes for found in slack_in(("", t) for t in tensors_below(fixed.root)))
        if slack >= _WORTH_A_WORD:
            amount = human_bytes(slack)
            note = f"{amount} of it is memory that no tensor sees: --compact cuts it off"
            fixed.notes.append(note)
    if wishes.to != "keep":  # last: on meta there is nothing left to change
        fixed.locations = move(fixed.root, wishes.to)
    return fixed


def _name(fixed: Fixed, wishes: Wishes) -> None:
    """Rename the weights, take those that are asked for, and leave out the rest."""
    found = find_weights(fixed.root)
    fixed.containers = tuple(weights.label for weights in found)
    alone = wishes.weights_only or wishes.ema
    if not found and not (alone or wishes.naming != Naming()):
        return
    around = _text_keys(fixed.root) if all(weights.keys for weights in found) else []
    if found:
        names = [name for weights in found for name in _text_keys(weights.node)]
        check_wishes(wishes.naming, names, around)
    gone = _unwanted(around, wishes.naming)
    staying = [weights for weights in found if not gone.intersection(weights.keys[:1])]
    if found and not staying:
        raise UsageError("--keep and --drop leave no weights", hint=_there_is(found))
    taken = fixed.weights = _take(staying, wishes)
    for weights in [taken] if alone else staying:
        _rename(fixed, weights, wishes)
    if "pytorch-lightning_version" in around and wishes.naming == Naming():
        fixed.notes += _prefix_note(taken)
    if alone or wishes.naming.like is not None:
        _leave_out_strays(fixed, taken)
    if not taken.tensors():
        raise UsageError("--keep and --drop leave no weights", hint=_there_is(found))
    if alone:
        gone = {key for key in around if key != taken.keys[0]}
    _leave_out(fixed, [key for key in around if key in gone])
    if alone:
        fixed.root = taken.node


def _unwanted(entries: Sequence[str], naming: Naming) -> set[str]:
    """What lies around the weights and is to go; globs that name no entry are not about it."""
    keep = [glob for glob in naming.keep if any(is_wanted(key, [glob], ()) for key in entries)]
    return {key for key in entries if not is_wanted(key, keep, naming.drop)}


def _leave_out(fixed: Fixed, gone: Sequence[str]) -> None:
    """Take entries from around the weights; what they were converted to no longer matters."""
    fixed.left_out += gone
    pairs = mapping(fixed.root)
    if gone and pairs is not None:
        pairs[:] = [(key, value) for key, value in pairs if key not in gone]
    fixed.changes = [c for c in fixed.changes if not (c.became and _is_below(c.where, gone))]
    fixed.modules = [m for m in fixed.modules if not _is_below(m.partition(" at ")[2], gone)]


def _leave_out_strays(fixed: Fixed, weights: Weights) -> None:
    """Take out what a module refuses to load: all that is no tensor, but for its extra state."""
    for key, value in list(weights.node.pairs):
        if tensor_of(value) is None and not is_extra_state(key):
            weights.node.pairs.remove((key, value))
            fixed.left_out.append(f"{weights.where}.{key}" if weights.where else f"{key}")


def _is_below(where: str, entries: Sequence[str]) -> bool:
    return any(where == entry or where.startswith((f"{entry}.", f"{entry}[")) for entry in entries)


def _take(found: Sequence[Weights], wishes: Wishes) -> Weights:
    """The likeliest weights, or with a model those that fill most of it."""
    usual = choose_weights(found, wishes.ema)
    if wishes.naming.like is None:
        return usual
    candidates = [usual, *(weights for weights in found if weights.is_ema == usual.is_ema)]
    return max(candidates, key=lambda weights: _named(weights, wishes.naming).fits)


def _named(weights: Weights, naming: Naming) -> Named:
    shapes = {name: tensor.shape for name, tensor in weights.tensors().items()}
    others = [name for name in _text_keys(weights.node) if name not in shapes]
    return new_names(shapes, naming, others)


def _rename(fixed: Fixed, weights: Weights, wishes: Wishes) -> None:
    named = _named(weights, wishes.naming)
    taken = weights is fixed.weights
    if not taken and named.match is not None and not named.match.complete:
        named = _named(weights, replace(wishes.naming, like=None))  # another model's
    rename(weights.node, named.names)
    fixed.renamed.update(changes(named.names))
    gone = [name for name, new in named.names.items() if new is None]
    fixed.left_out += [f"{weights.where}.{name}" if weights.where else name for name in gone]
    fixed.notes += named.notes
    if not taken:
        return
    rename_in_optimizer(fixed.root, named.names)
    if named.match is not None:
        fixed.match = _proven(fixed, weights, named.match, wishes.model)


def _proven(fixed: Fixed, weights: Weights, match: Match, model: Any) -> Match:
    from ptools.checkpoint.names.proof import add_tied, proven

    match, tied = add_tied(match, model, weights.node)
    fixed.added += tied
    fixed.notes += [f"{new} is added: the model ties it to {old}" for new, old in tied.items()]
    match = proven(match, model, weights.node, weights.tensors())
    if not (match.complete or match.matched):
        raise PtoolsError(
            f"nothing in it fits the model: {_misfit(match)}",
            hint="see what is in it: ptools fix-ckpt info CKPT",
        )
    return match


def _prefix_note(weights: Weights) -> list[str]:
    """How to get the model in a LightningModule, whose attribute's name is before its own."""
    tops = Counter(name.partition(".")[0] for name in weights.tensors())
    ((top, count),) = tops.most_common(1)
    if 2 * count <= tops.total():
        return []
    added = f"{count:,} names start with '{top}.', which the LightningModule adds"
    return [f"{added}: --strip {top} removes it"]


def _misfit(match: Match) -> str:
    """An example of what is wrong."""
    if match.mismatched:
        name, ours, theirs = match.mismatched[0]
        return f"{name} is {shape_text(ours)} here, {shape_text(theirs)} in the model"
    beside = f", but {match.unexpected[0]!r}" if match.unexpected else ""
    return f"that has {match.missing[0]!r}{beside}"


def _there_is(found: Sequence[Weights]) -> str:
    return f"there is {', '.join(weights.label for weights in found)}"


def _text_keys(node: Node) -> list[str]:
    return [key for key, _ in mapping(node) or () if isinstance(key, str)]
