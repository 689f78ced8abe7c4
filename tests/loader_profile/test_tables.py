"""The tables of the page of a profile, from profiles made by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ptools.loader_profile.report import Advice, LoaderProfile, Trial
from ptools.loader_profile.tables import figure

Table = Callable[[LoaderProfile, str], list[str]]

BY_WORKERS = "workers predicted samples/s 95 % interval"
BY_BATCH_SIZE = "batch size workers samples/s 95 % interval"
STAGES = "stage, ms per sample run ready waiting share without it"


@pytest.fixture
def table(shown: Callable[..., list[str]]) -> Table:
    """The rows under the one that has these titles."""

    def find(profile: LoaderProfile, titles: str) -> list[str]:
        rows = [" ".join(line.split()) for line in shown(profile)]
        assert titles in rows, "there is no such table"
        below = rows[rows.index(titles) + 1 :]
        return below[: below.index("")]

    return find


def test_stages_share_what_ran_and_what_waited(full: LoaderProfile, table: Table) -> None:
    assert table(full, STAGES) == [
        "transform: Blur 3.00 1.00 0 ██████ 75% 1,500/s",
        "decode: cv2.imread 0.500 0 0.500 ██ 25% 660/s",
        "collate 0 0 0 0%",
    ]


def test_two_clocks_show_no_ready(full: LoaderProfile, table: Table) -> None:
    two = table(replace(full, clocks=2), "stage, ms per sample run waiting share without it")
    assert two[0] == "transform: Blur 3.00 0 ██████ 75% 1,500/s"


def test_rates_are_predicted_up_to_where_more_workers_gain_nothing(
    full: LoaderProfile, table: Table
) -> None:
    assert table(full, BY_WORKERS) == [
        "0 0",
        "1 250 250 225 to 275",
        "2 500 640 576 to 704 now",
        "4 1,000",
        "6 1,000 960 864 to 1,060 best",
    ]


def test_best_is_what_is_advised_rather_than_what_was_fastest(
    full: LoaderProfile, table: Table
) -> None:
    one = Advice(full.current.settings.with_workers(1), None)
    rows = table(replace(full, advice=one), BY_WORKERS)
    assert [row.split()[0] for row in rows if row.endswith("best")] == ["1"]
    assert "best" not in "".join(table(replace(full, advice=None), BY_WORKERS))


def test_a_batch_size_is_not_best_for_its_number_of_workers(
    full: LoaderProfile, trial: Callable[..., Trial], table: Table
) -> None:
    now = full.current.settings
    started_once = replace(full, advice=Advice(replace(now, persistent_workers=True), None))
    assert not [row for row in table(started_once, BY_BATCH_SIZE) if "best" in row]
    sizes = [trial(replace(now.with_workers(6), batch_size=size), 970.0) for size in (64, 128)]
    rows = table(replace(full, trials=tuple(sizes)), BY_BATCH_SIZE)
    assert [row.split()[0] for row in rows if "best" in row] == ["32"]


def test_a_rate_that_others_lowered_has_an_estimate_beside_it(
    full: LoaderProfile, table: Table
) -> None:
    def now(quiet_rate: float) -> str:
        current = replace(full.current, quiet_rate=quiet_rate)
        return table(replace(full, current=current), BY_WORKERS)[2]

    assert now(800.0).endswith("576 to 704 now, about 800 if idle")
    assert now(640.0 * 1.04).endswith("704 now")


def test_settings_that_are_not_the_default_are_said(
    full: LoaderProfile, trial: Callable[..., Trial], table: Table
) -> None:
    deep = trial(replace(full.current.settings, prefetch_factor=4, in_order=False), 640.0)
    rows = table(replace(full, current=deep), BY_WORKERS)
    assert rows[2].endswith("now, prefetch_factor=4, in_order=False")


def test_batch_sizes_have_a_table_of_their_own(
    full: LoaderProfile, shown: Callable[..., list[str]], table: Table
) -> None:
    assert table(full, BY_BATCH_SIZE) == [
        "32 2 640 576 to 704 now",
        "32 6 960 864 to 1,060 best",
        "64 2 650 585 to 715",
    ]
    assert "batch size" not in " ".join(shown(replace(full, trials=full.trials[:1])))


def test_lines_have_their_place_and_share(full: LoaderProfile, table: Table) -> None:
    assert table(full, "share line source") == ["71% /train/aug.py:33 image = blur(image)"]


def test_ascii_terminals_get_ascii_bars(
    full: LoaderProfile, shown: Callable[..., list[str]]
) -> None:
    assert [line for line in shown(full, encoding="ascii") if "######" in line]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0619, "0.062"), (19.38, "19.4"), (9.999, "10.0"), (12345, "12,300"), (2, "2.00")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text
