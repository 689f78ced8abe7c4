"""Findings about parameters that are not trained, in words."""

from __future__ import annotations

from collections.abc import Iterable

from ptools.console import counted
from ptools.debug.findings import Finding
from ptools.debug.gradients.fates import Fate, Fates
from ptools.debug.gradients.flow import Cut
from ptools.program.places import Place

_SHOWN = 8
_FREEZE = "requires_grad_(False) says that this is on purpose"


def behind(
    cut: Cut, summary: str, fates: Iterable[Fate] = (), seen: Place | None = None
) -> Finding:
    """The finding that a cut is to blame for."""
    places: list[tuple[str, Place]] = [("off", cut.off)] if cut.off else []
    places += [("cut", cut.place)] if cut.place else []
    places += [("seen", seen)] if seen else []
    names = named(fates)
    return Finding(
        kind="cut-graph",
        summary=summary,
        places=tuple(places),
        facts=(
            "gradients are switched off here" if cut.off else f"{cut.op} gives no gradient back",
            *((f"without a gradient: {names}",) if names else ()),
        ),
        advice=_advice(cut) + (f", or {_FREEZE}" if names else ""),
        op=cut.op,
    )


def _advice(cut: Cut) -> str:
    if cut.off:
        return "move what is to be trained out of the block without gradients"
    if cut.op == "tensor":
        return "use the tensor itself: torch.tensor copies its numbers only"
    if not cut.smooth:
        return "use a smooth function: integers and truth values have no gradient"
    return f"leave out {cut.op} on the way to the loss"


def orphan(fates: list[Fate], book: Fates) -> Finding:
    held = fates[0].optimizer
    made = book.place(held.made) if held else None
    return _of(
        "orphan-parameter",
        f"the optimizer holds {counted(len(fates), 'parameter')} that the program never uses",
        fates,
        [("held", made), ("made", book.place(fates[0].made))],
        "make the optimizer after the model has its last form, from the model that is called",
    )


def unused(fates: list[Fate], book: Fates) -> Finding:
    return _of(
        "unused-parameter",
        f"no operation used {named(fates, 1)}",
        fates,
        [("made", book.place(fates[0].made))],
        f"call it in forward, or remove it; {_FREEZE}",
    )


def unreached(fates: list[Fate], book: Fates) -> Finding:
    return _of(
        "unreached-parameter",
        f"{named(fates, 1)} never got a gradient: no loss was computed from what it gave",
        fates,
        [("used", book.place(fates[0].in_graph)), ("made", book.place(fates[0].made))],
        f"let the loss depend on it, or remove it; {_FREEZE}",
    )


def zero(fates: list[Fate], book: Fates) -> Finding:
    half = any("float16" in str(one.dtype) for one in fates)
    return _of(
        "zero-gradient",
        f"the gradient of {named(fates, 1)} was exactly zero in every step",
        fates,
        [("used", book.place(fates[0].in_graph)), ("made", book.place(fates[0].made))],
        "scale the loss (torch.amp.GradScaler): small gradients are zero in float16"
        if half
        else "look for a dead ReLU, a saturated or clamped value, or a factor of zero behind it",
    )


def forgotten(fates: list[Fate], book: Fates) -> Finding:
    one = fates[0]
    if not one.registered:
        why = "keep modules in nn.ModuleList or as attributes: model.parameters() has to find them"
    elif one.order > book.last_optimizer:
        why = "make the optimizer after the model has its last form"
    else:
        why = f"give it to an optimizer; {_FREEZE}"
    return _of(
        "not-updated",
        f"{named(fates, 1)} got gradients, but no optimizer holds it",
        fates,
        [("made", book.place(one.made)), ("used", book.place(one.in_graph))],
        why,
    )


def _of(
    kind: str,
    summary: str,
    fates: list[Fate],
    places: list[tuple[str, Place | None]],
    advice: str,
) -> Finding:
    known = tuple((role, place) for role, place in places if place is not None)
    facts = (named(fates),) if len(fates) > 1 else ()
    return Finding(kind, summary, known, facts, advice)


def named(fates: Iterable[Fate], shown: int = _SHOWN) -> str:
    names = [one.name or "a parameter" for one in fates]
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest:,} more" if rest > 0 else "")
