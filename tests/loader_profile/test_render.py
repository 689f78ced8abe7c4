"""The sentences of the page of a profile, from profiles made by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ptools.loader_profile.render import verdict
from ptools.loader_profile.report import Advice, LoaderProfile, Trial, Verdict, Wait

Shown = Callable[..., list[str]]
LineOf = Callable[[LoaderProfile, str], str]


@pytest.fixture
def line_of(shown: Shown) -> LineOf:
    """The only line of the page that starts so."""

    def find(profile: LoaderProfile, start: str) -> str:
        (line,) = [line for line in shown(profile) if line.lstrip().startswith(start)]
        return " ".join(line.split())

    return find


def advising(profile: LoaderProfile, gain: float | None, **changes: Any) -> LoaderProfile:
    """The same, with other settings advised."""
    settings = replace(profile.current.settings, **changes)
    return replace(profile, advice=Advice(settings, gain))


def test_the_first_line_answers_the_first_question(full: LoaderProfile, shown: Shown) -> None:
    assert shown(full)[0] == "a step of 60 ms waits 25% of the time for data"


def test_a_loader_that_keeps_up_with_the_step_is_said_to(full: LoaderProfile, shown: Shown) -> None:
    assert full.with_step is not None
    fast = replace(full.with_step, wait=Wait(0.0003, 0, 0, 0, 0))
    said = "the loader keeps up with a step of 60 ms, which waits under 1% of the time"
    assert shown(replace(full, with_step=fast))[0] == said


def test_the_first_line_agrees_with_the_verdict(full: LoaderProfile, shown: Shown) -> None:
    told = Verdict("consumer", None, "", "", 1.0)
    assert shown(replace(full, verdict=told))[0].startswith("the loader keeps up with a step of 60")


def test_without_a_step_the_fastest_step_is_named(bare: LoaderProfile, shown: Shown) -> None:
    assert shown(bare)[0] == "the loader keeps up with training steps of 50 ms or more"


def test_the_last_lines_are_what_to_paste_and_the_verdict(
    full: LoaderProfile, shown: Shown
) -> None:
    *_, paste, last = shown(full)
    assert paste == "DataLoader(..., num_workers=6, prefetch_factor=2, persistent_workers=True)"
    assert last == (
        "train.py:loader: 640 samples/s, limited by transform Blur; "
        "the settings above give 1.50 times the rate"
    )


@pytest.mark.parametrize("gain", [None, 0.9, 1.0, 1.04])
def test_a_gain_that_is_small_or_unknown_is_not_promised(
    full: LoaderProfile, shown: Shown, gain: float | None
) -> None:
    *_, paste, last = shown(advising(full, gain, num_workers=1))
    assert paste == "DataLoader(..., num_workers=1, prefetch_factor=2)"
    assert last.endswith("limited by transform Blur")
    assert "1.05 times the rate" in shown(advising(full, 1.05, num_workers=1))[-1]


def test_what_is_not_advised_is_not_there_to_paste(full: LoaderProfile, shown: Shown) -> None:
    *_, paste, last = shown(replace(full, advice=None))
    said = "keep num_workers=2, prefetch_factor=2: nothing that was tried is better"
    assert paste == said
    assert "settings above" not in last
    assert shown(replace(full, advice=None, best=None, gain=None))[-2] == said


def test_what_is_no_data_loader_has_no_settings(bare: LoaderProfile, shown: Shown) -> None:
    assert shown(bare)[-2] == "no DataLoader: there are no settings to try"


def test_start_up_is_set_against_an_epoch(
    full: LoaderProfile, trial: Callable[..., Trial], line_of: LineOf
) -> None:
    assert line_of(full, "start-up").endswith("first batch: 5% of every epoch of 760 batches")
    kept = trial(replace(full.current.settings, persistent_workers=True), 640.0)
    assert "of the first epoch" in line_of(replace(full, current=kept), "start-up")


def test_rate_batches_and_memory(full: LoaderProfile, line_of: LineOf) -> None:
    assert line_of(full, "rate") == "rate 640 samples/s (576 to 704), 20.0 batches/s of 32"
    assert line_of(full, "batch  ") == "batch 32 samples in 2 tensors, 18.00 MiB"
    assert line_of(full, "/dev/shm") == "/dev/shm 72.00 MiB needed, 64.00 MiB free"


def test_an_interval_that_says_nothing_is_not_printed(bare: LoaderProfile, line_of: LineOf) -> None:
    once = replace(bare.current, high=6e11, batches=1)
    assert "640 samples/s (from 1 batch only)" in line_of(replace(bare, current=once), "rate")


def test_two_clocks_say_why_nothing_was_ready(full: LoaderProfile, line_of: LineOf) -> None:
    assert "ready" in line_of(replace(full, clocks=2), "clocks")


def test_transfer_and_overhead(full: LoaderProfile, bare: LoaderProfile, line_of: LineOf) -> None:
    gpu = "to the GPU a batch to NVIDIA H200: 2.00 ms, 0.900 ms if pinned"
    assert line_of(full, "to the GPU") == gpu
    assert "1.02 times the CPU" in line_of(full, "overhead")
    assert "not measured (no GPU)" in line_of(bare, "to the GPU")


def test_what_is_missing_is_said(
    full: LoaderProfile, bare: LoaderProfile, shown: Shown, line_of: LineOf
) -> None:
    part = replace(bare, batch=full.batch, interrupted=True)
    assert line_of(part, "not measured") == (
        "not measured where the time goes, the rates to expect, other settings"
    )
    assert shown(part)[-2] == "now: num_workers=2, prefetch_factor=2; no other settings were tried"
    assert shown(part)[-1] == "train.py:loader: 640 samples/s; INCOMPLETE: interrupted"
    assert not [line for line in shown(full) if line.startswith("not measured")]


def test_it_fits_80_columns_with_nothing_lost(
    full: LoaderProfile, bare: LoaderProfile, shown: Shown
) -> None:
    for profile in (bare, full, replace(full, clocks=2, interrupted=True)):
        narrow, wide = shown(profile, 80), shown(profile)
        assert max(map(len, narrow)) <= 80
        assert "…" not in "".join(narrow)
        assert "".join("".join(narrow).split()) == "".join("".join(wide).split())


def test_names_of_users_cannot_command_the_terminal(full: LoaderProfile, shown: Shown) -> None:
    evil = "\x1b[2J[bold]"
    stage = replace(full.stages[0], name=evil)
    line = replace(full.lines[0], source=evil)
    told = Verdict("transform", evil, evil, evil, 2.0)
    text = "".join(shown(replace(full, target=evil, stages=(stage,), lines=(line,), verdict=told)))
    assert "\x1b" not in text
    assert text.count("[bold]") == 7


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("consumer", "it keeps up"),
        ("serialised", "its workers wait for each other"),
        ("head-of-line", "rare slow samples hold up the others"),
        ("balanced", "no single part holds it back"),
        ("too few workers", "limited by too few workers"),
        ("decode", "limited by decode"),
    ],
)
def test_every_kind_of_verdict_is_a_sentence(bare: LoaderProfile, kind: str, said: str) -> None:
    told = replace(bare, verdict=Verdict(kind, None, "", "", 1.0))
    assert verdict(told) == f"train.py:loader: 640 samples/s, {said}"
