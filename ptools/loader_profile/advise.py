"""The settings to paste, once there is a verdict."""

from dataclasses import replace

from ptools.loader_profile.facts import BETTER, WORTH, Facts, deeper_suffices, fewer_workers
from ptools.loader_profile.report import Advice, Verdict


def advise(facts: Facts, verdict: Verdict) -> Advice | None:
    """Settings that serve better; None if the current ones are as good as any that were tried."""
    now = facts.current.settings
    best = facts.best.settings if facts.best is not None else now
    settings, gain = now, None
    if verdict.kind == "head-of-line":
        settings = facts.deeper if deeper_suffices(facts) else replace(now, in_order=False)
    elif verdict.kind in ("too few workers", "storage") and _is_larger(facts):
        settings, gain = best, facts.gain
    elif verdict.kind == "too many workers or threads" and (fewer := fewer_workers(facts)):
        settings = now.with_workers(fewer)
        gain = facts.gain if settings == best else None
    elif verdict.kind not in ("consumer", "serialised") and _is_leaner(facts):
        settings, gain = best, facts.gain
    if settings.num_workers and facts.start_up_gain >= WORTH:
        settings = replace(settings, persistent_workers=True)
    return Advice(settings, gain) if settings != now else None


def _is_larger(facts: Facts) -> bool:
    """Whether more workers were better."""
    best, now = facts.best, facts.current.settings
    more = best is not None and best.settings.num_workers > now.num_workers
    return more and facts.gain >= WORTH


def _is_leaner(facts: Facts) -> bool:
    """Whether fewer workers were surely better."""
    best, now = facts.best, facts.current.settings
    fewer = best is not None and best.settings.num_workers < now.num_workers
    return fewer and facts.sure_gain >= BETTER
