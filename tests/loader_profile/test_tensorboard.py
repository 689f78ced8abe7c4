"""What TensorBoard itself reads from the runs of a profile made by hand."""

from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import get_experiment, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import (
    STATUS_SUCCESS,
    ColParams,
    GetExperimentRequest,
    ListSessionGroupsRequest,
)
from tensorboard.plugins.hparams.backend_context import Context

from ptools.errors import UsageError
from ptools.loader_profile.report import (
    Advice,
    LoaderProfile,
    Settings,
    Stage,
    Trial,
    Verdict,
    Wait,
)
from ptools.loader_profile.tensorboard import write_tensorboard

NOW = Settings(4, 128, 2)
SWEEP = {"w0_b128_p0", "w10_b128_p2", "w4_b128_p2", "w4_b64_p2", "w7_b128_p2"}
SWEEP |= {"w7_b128_p2_unordered"}


@pytest.fixture
def plain(bare: LoaderProfile, trial: Callable[..., Trial]) -> LoaderProfile:
    """One rate and nothing else."""
    return replace(bare, current=trial(NOW, 640.0))


@pytest.fixture
def tried(plain: LoaderProfile, trial: Callable[..., Trial]) -> LoaderProfile:
    """Many settings, of which some differ by more than the number of workers."""
    return replace(
        plain,
        with_step=trial(NOW, 512.0, step=0.15, wait=Wait(0.05, 0.0, 0.1, 0.1, 0.1)),
        predicted={0: 170.0, 1: 180.0, 4: 700.0, 10: 1000.0, 7: 1000.0},
        trials=(
            trial(NOW.with_workers(0), 160.0),
            trial(NOW.with_workers(10), 990.0),
            trial(NOW.with_workers(7), 900.0),
            trial(replace(NOW, num_workers=7, in_order=False), 910.0),
            trial(replace(NOW, batch_size=64), 650.0),
        ),
        best=trial(NOW.with_workers(7), 960.0),
    )


def runs(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(run: Path) -> Any:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values, in the order of the file."""
    return [(event.step, event.value) for event in read(run).Scalars(tag)]


def sweep(folder: Path) -> tuple[Any, dict[str, Any]]:
    """What TensorBoard's hparams plugin makes of a folder: the experiment, a session by run."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = Context(TBContext(data_provider=provider, logdir=str(folder)))
    asked = RequestContext(), context, "experiment"
    experiment = get_experiment.Handler(*asked, GetExperimentRequest()).run()
    request = ListSessionGroupsRequest(
        allowed_statuses=[STATUS_SUCCESS],
        slice_size=100,
        col_params=[ColParams(metric=metric.name) for metric in experiment.metric_infos],
    )
    groups = list_session_groups.Handler(*asked, request).run().session_groups
    return experiment, {group.sessions[0].name: group for group in groups}


def metrics(group: Any) -> dict[str, float]:
    return {metric.name.tag: metric.value for metric in group.metric_values}


def page(folder: Path) -> str:
    """The text as TensorBoard gives it to the browser."""
    (event,) = read(folder / "measured").Tensors("profile/text_summary")
    return markdown_to_safe_html(event.tensor_proto.string_val[0])


def test_each_of_the_settings_is_one_run(tried: LoaderProfile, folder: Path) -> None:
    write_tensorboard(tried, folder)
    assert runs(folder) == SWEEP | {"measured", "predicted"}


def test_the_name_of_a_run_says_what_is_not_the_default(
    plain: LoaderProfile, trial: Callable[..., Trial], folder: Path
) -> None:
    settings = Settings(2, None, 8, persistent_workers=True, pin_memory=True)
    write_tensorboard(replace(plain, current=trial(settings, 10.0)), folder)
    assert runs(folder) == {"w2_p8_persistent_pinned", "measured"}


def test_the_plugin_lists_the_sweep_with_its_settings_and_metrics(
    tried: LoaderProfile, folder: Path
) -> None:
    write_tensorboard(tried, folder)
    experiment, groups = sweep(folder)
    assert groups.keys() == SWEEP
    values = groups["w7_b128_p2_unordered"].hparams
    assert {name: values[name].number_value for name in ("num_workers", "batch_size")} == {
        "num_workers": 7,
        "batch_size": 128,
    }
    assert values["in_order"].string_value == "False"
    assert metrics(groups["w10_b128_p2"]) == pytest.approx(
        {"rate_per_s": 990.0, "wait_p95_ms": 200.0, "startup_s": 2.0, "stall": 0.0}
    )
    info = {column.name: column.domain_discrete for column in experiment.hparam_infos}
    assert [value.number_value for value in info["num_workers"].values] == [0, 4, 7, 10]


def test_a_flag_that_is_always_the_same_is_no_column(tried: LoaderProfile, folder: Path) -> None:
    write_tensorboard(tried, folder)
    experiment, _ = sweep(folder)
    names = {column.name for column in experiment.hparam_infos}
    assert names == {"num_workers", "batch_size", "prefetch_factor", "in_order"}


def test_without_a_step_there_is_no_stall(tried: LoaderProfile, folder: Path) -> None:
    write_tensorboard(replace(tried, with_step=None), folder)
    experiment, groups = sweep(folder)
    assert {metric.name.tag for metric in experiment.metric_infos} == {
        "rate_per_s",
        "wait_p95_ms",
        "startup_s",
    }
    assert "stall" not in metrics(groups["w4_b128_p2"])


def test_a_stall_is_what_the_rate_leaves_of_the_step(tried: LoaderProfile, folder: Path) -> None:
    """128 samples at 640/s take 200 ms, of which a step of 150 ms covers three quarters."""
    write_tensorboard(tried, folder)
    assert curve(folder / "w4_b128_p2", "stall") == [(4, pytest.approx(0.25))]


def test_the_curves_have_the_number_of_workers_as_their_step(
    tried: LoaderProfile, folder: Path
) -> None:
    """Of the settings that differ by nothing else; the best counts as it was measured last."""
    write_tensorboard(tried, folder)
    measured = curve(folder / "measured", "rate_per_s")
    assert measured == [(0, 160.0), (4, 640.0), (7, 960.0), (10, 990.0)]
    assert curve(folder / "predicted", "rate_per_s") == sorted(tried.predicted.items())
    assert curve(folder / "w7_b128_p2_unordered", "rate_per_s") == [(7, 910.0)]


def test_the_charts_find_their_tags(tried: LoaderProfile, folder: Path) -> None:
    write_tensorboard(tried, folder)
    events = read(folder / "measured")
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    series = [one for chart in layout.category[0].chart for one in chart.margin.series]
    tags = {tag for one in series for tag in (one.value, one.lower, one.upper)}
    assert tags == {"rate_per_s", "wait_p50_ms", "wait_p95_ms", "wait_p99_ms"}
    assert tags <= set(events.Tags()["scalars"])


def test_the_page_holds_the_verdict_the_tables_and_the_warnings(
    tried: LoaderProfile, folder: Path
) -> None:
    told = replace(
        tried,
        stages=(Stage("Blur", "transform", 1, 0.003, 0.001, 0.0, 1500.0),),
        verdict=Verdict("transform", "Blur", "75% of the time", "make it cheaper", 1.6),
        advice=Advice(NOW.with_workers(7), 2.0),
        warnings=("the machine is busy",),
    )
    write_tensorboard(told, folder)
    html = page(folder)
    assert "<strong>transform Blur</strong>: 75% of the time. To do: make it cheaper" in html
    assert "<code>DataLoader(..., num_workers=7, prefetch_factor=2)</code>" in html
    assert "a step of 150 ms waits 25.0% of its time" in html
    assert "<li>the machine is busy</li>" in html
    assert html.count("<table>") == 2
    cells = [f"<td>{cell}</td>" for cell in ("Blur", "transform", 1, "3.00", "1.00", 0, "1,500")]
    assert "\n".join(cells) in html
    assert "<td>best</td>\n<td>960</td>\n<td>864 to 1,060</td>" in html


def test_a_name_that_looks_like_markup_is_shown_as_it_is(
    plain: LoaderProfile, folder: Path
) -> None:
    name = "<lambda> a|b __init__ *x*\n# y"
    write_tensorboard(
        replace(plain, stages=(Stage(name, "transform", 1, 0.003, 0.001, 0.0),)), folder
    )
    html = page(folder)
    assert "<td><lambda> a|b __init__ *x* # y</td>" in unescape(html)
    assert "&#60;lambda&#62;" in html


def test_a_bare_profile_can_be_looked_at(plain: LoaderProfile, folder: Path) -> None:
    write_tensorboard(replace(plain, interrupted=True), folder / "new" / "log")
    _, groups = sweep(folder / "new" / "log")
    assert groups.keys() == {"w4_b128_p2"}
    assert "Interrupted" in page(folder / "new" / "log")


def test_other_things_in_the_folder_are_left_alone(tried: LoaderProfile, folder: Path) -> None:
    (folder / "training").mkdir()
    (folder / "notes").write_text("mine")
    write_tensorboard(tried, folder)
    assert (folder / "notes").read_text() == "mine"
    assert "training" in runs(folder)


def test_a_run_of_the_same_name_is_refused_before_anything_is_written(
    tried: LoaderProfile, folder: Path
) -> None:
    (folder / "w10_b128_p2").mkdir()
    with pytest.raises(UsageError, match="already holds a run w10_b128_p2") as caught:
        write_tensorboard(tried, folder)
    assert "another folder" in str(caught.value.hint)
    assert runs(folder) == {"w10_b128_p2"}


def test_a_file_in_place_of_the_folder_is_refused(plain: LoaderProfile, folder: Path) -> None:
    (folder / "log").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        write_tensorboard(plain, folder / "log")
