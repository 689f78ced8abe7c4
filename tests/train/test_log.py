"""What a training logs, as TensorBoard reads it."""

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ptools.errors import PtoolsError, UsageError
from ptools.train.log import Log


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0))
    return events.Reload()


KINDS = ("scalars", "images", "histograms", "tensors")


def curve(folder, name):
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def steps_shown(folder, name):
    """By the other reader, which feeds TensorBoard's pages."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    return [event.step for event in EventAccumulator(str(folder)).Reload().Tensors(name)]


def test_numbers_are_on_disk_when_the_call_returns(folder):
    log = Log("runs/a")
    log(1, loss=0.5, lr=torch.tensor(0.25), count=np.float32(3), **{"eval/top-1": 1})
    log(4, loss=torch.tensor([[2.0]], dtype=torch.float64), flag=True)
    assert curve("runs/a", "loss") == [(1, 0.5), (4, 2.0)]
    assert curve("runs/a", "lr") == [(1, 0.25)]
    assert curve("runs/a", "count") == [(1, 3.0)]
    assert curve("runs/a", "eval/top-1") == [(1, 1.0)]
    assert curve("runs/a", "flag") == [(4, 1.0)]


def test_nan_and_inf_are_logged_as_they_are(folder):
    Log("a")(0, x=math.nan, y=torch.tensor(-math.inf), z=1e300)
    assert math.isnan(curve("a", "x")[0][1])
    assert curve("a", "y") == [(0, -math.inf)]
    assert curve("a", "z") == [(0, math.inf)]  # TensorBoard's numbers are float32


def test_other_processes_do_nothing(folder):
    log = Log("a", is_main=False)
    log(-1, **{"no name": "no number"})
    log.histograms(0, None)
    log.images(0, "x", None)
    log.figure(0, "x", None)
    log.text(0, "x", "")
    log.hparams({})
    log.load_state_dict({"step": 3})
    log.close()
    assert not [*folder.iterdir()]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log: log(0.5, loss=1), "step 0.5 is no whole number"),
        (lambda log: log(None, loss=1), "step None is no whole number"),
        (lambda log: log(-1, loss=1), "below 0"),
        (lambda log: log(6, loss=1), "step 6 comes after step 7"),
        (lambda log: log(8, **{"my loss": 1}), "'my loss' cannot name a curve"),
        (lambda log: log(8, loss="0.3"), "loss is '0.3', no number"),
        (lambda log: log(8, loss=None), "loss is None, no number"),
        (lambda log: log(8, loss=torch.ones(3)), r"loss is a tensor of shape \(3,\)"),
        (lambda log: log(8, loss=torch.tensor(1j)), "no number"),
        (lambda log: log.images(8, "x", torch.rand(3, 8, 8)), r"\(3, 8, 8\) is no batch of images"),
        (lambda log: log.images(8, "x", torch.rand(1, 2, 8, 8)), "is no batch of images"),
        (lambda log: log.images(8, "x", torch.ones(1, 3, 8, 8).long()), "images of torch.int64"),
        (lambda log: log.figure(8, "x", 3), "a int is no figure"),
    ],
)
def test_bad_input_is_one_clear_error(folder, call, message):
    log = Log("a")
    log(7, loss=1)
    with pytest.raises(UsageError, match=message) as caught:
        call(log)
    assert caught.value.hint
    assert curve("a", "loss") == [(7, 1.0)]


def test_a_step_that_is_missing_is_named(folder):
    with pytest.raises(TypeError, match="'step'"):
        Log("a")(loss=0.3)


def test_a_folder_that_cannot_be_made_is_one_clear_error(write):
    with pytest.raises(PtoolsError, match="cannot write to a: ") as caught:
        Log(write("a", "").name)(0, loss=1)
    assert "folder" in caught.value.hint


def waits(monkeypatch, log, step, **values):
    """Log tensors as if they were on a device, of which the CPU knows nothing yet."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    log(step, **values)


def test_numbers_on_a_device_are_read_together_and_as_they_were(folder, monkeypatch):
    log, loss = Log("a"), torch.tensor(1.0)
    now = SimpleNamespace(monotonic=lambda: 0.0, time=lambda: 0.0)
    monkeypatch.setattr("ptools.train.log.time", now)
    log.flush()
    log._read = 0.0
    waits(monkeypatch, log, 1, loss=loss)
    loss += 1
    log(2, loss=2.0)
    assert not Path("a").exists()
    log.flush()
    assert curve("a", "loss") == [(1, 1.0), (2, 2.0)]
    log(3, loss=loss)
    now.monotonic = lambda: 10.5
    log(4, loss=4.0)
    assert curve("a", "loss") == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 4.0)]


def test_what_waits_is_written_at_exit_and_nothing_is_imported_before(folder):
    script = (
        "import sys, torch\n"
        "from ptools.train.log import Log\n"
        "log = Log('a')\n"
        "assert 'tensorboard' not in sys.modules\n"
        "torch.Tensor.is_cpu = False\n"
        "log(1, loss=torch.tensor(1.0))\n"
        "assert 'tensorboard' not in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
    assert curve("a", "loss") == [(1, 1.0)]


def test_a_resumed_training_replaces_what_came_after_its_checkpoint(folder):
    first = Log("a")
    for step in range(10):
        first(step, loss=step)
        if step == 5:
            state = first.state_dict()
    first.close()
    second = Log("a")
    second.text(0, "arguments", "again")
    second.load_state_dict(state)
    for step in range(6, 8):
        second(step, loss=step + 100)
    expected = [(step, step) for step in range(6)] + [(6, 106), (7, 107)]
    assert curve("a", "loss") == expected
    assert steps_shown("a", "loss") == [step for step, _ in expected]
    assert steps_shown("a", "arguments/text_summary") == [0]
    second.load_state_dict({"step": 3})  # back to the best one, in the same process
    second(4, loss=-1)
    assert curve("a", "loss") == [*expected[:4], (4, -1.0)]
    assert steps_shown("a", "loss") == [0, 1, 2, 3, 4]


def test_a_training_that_starts_afresh_replaces_the_one_before(folder):
    for value in (1, 2):
        log = Log("a")
        log.text(0, "arguments", str(value))
        for step in range(1, 4):
            log(step, loss=value)
        log.close()
    assert curve("a", "loss") == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert steps_shown("a", "loss") == [1, 2, 3]


def test_a_log_that_was_closed_goes_on_where_it_was(folder):
    log = Log("a")
    log(1, loss=1)
    log.close()
    log(1, lr=2)
    log(2, loss=3)
    log.close()
    assert curve("a", "loss") == [(1, 1.0), (2, 3.0)]
    assert curve("a", "lr") == [(1, 2.0)]


def test_a_checkpoint_leaves_no_hole_in_the_curves(folder, monkeypatch):
    log = Log("a")
    waits(monkeypatch, log, 1, loss=torch.tensor(1.0))
    assert log.state_dict() == {"step": 1}
    assert curve("a", "loss") == [(1, 1.0)]


def test_steps_that_another_writer_logged_are_replaced_too(folder):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter("a") as writer:
        for step in range(4):
            writer.add_scalar("loss", step, step)
    Log("a")(2, loss=5)
    assert curve("a", "loss") == [(0, 0.0), (1, 1.0), (2, 5.0)]
    assert steps_shown("a", "loss") == [0, 1, 2]


def test_histograms_of_parameters_and_gradients(folder):
    model = nn.Sequential(nn.Linear(100, 10), nn.Linear(10, 2, bias=False))
    model[0](torch.rand(4, 100)).sum().backward()
    with torch.no_grad():
        model[1].weight[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    log = Log("a")
    log.histograms(3, model)
    events, weight = read("a"), model[0].weight.detach().double().numpy()
    (event,) = events.Histograms("parameters/0.weight")
    shown = event.histogram_value
    assert (event.step, shown.num, shown.min, shown.max) == (3, 1000, weight.min(), weight.max())
    assert shown.sum == pytest.approx(weight.sum())
    assert shown.bucket[1:] == np.histogram(weight, shown.bucket_limit)[0].tolist()
    (event,) = events.Histograms("gradients/0.bias")
    assert event.histogram_value.sum == 40.0
    assert "gradients/1.weight" not in events.Tags()["histograms"]
    assert events.Histograms("parameters/1.weight")[0].histogram_value.num == 17
    assert curve("a", "nonfinite/parameters/1.weight") == [(3, 3.0)]


def test_gradients_are_those_of_the_step_in_a_hook_of_the_optimizer(folder):
    model, log = nn.Linear(3, 1), Log("a")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: log.histograms(1, model))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert read("a").Histograms("gradients/bias")[0].histogram_value.sum == 2.0


def picture(folder, name):
    (event,) = read(folder).Images(name)
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert image.size == (event.width, event.height)
    return image


def test_a_batch_becomes_one_grid_pixel_by_pixel(folder):
    batch = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    Log("a").images(0, "inputs", batch)
    shown = torch.from_numpy(np.array(picture("a", "inputs"))).permute(2, 0, 1)
    assert shown.shape == (3, 4 * 2 + 2, 6 * 3 + 2 * 2)
    assert torch.equal(shown[:, :4, 8:14], batch[1])
    assert torch.equal(shown[:, 6:, :6], batch[3])
    assert not shown[:, 4:6].any()
    assert not shown[:, 6:, 16:].any()


def test_floats_are_shown_from_0_to_1_or_normalised(folder):
    batch = torch.tensor([-1.0, 0.0, 0.2, 1.0, 3.0, math.nan]).reshape(1, 1, 1, 6)
    log = Log("a")
    log.images(0, "cut", batch)
    log.images(0, "whole", batch, normalise=True)
    log.images(0, "flat", torch.ones(1, 1, 2, 2), normalise=True)
    assert np.array(picture("a", "cut")).tolist() == [[0, 0, 51, 255, 255, 0]]
    assert np.array(picture("a", "whole")).tolist() == [[0, 64, 76, 128, 255, 0]]
    assert np.array(picture("a", "flat")).tolist() == [[0, 0], [0, 0]]


def test_a_figure_is_drawn_by_itself(folder):
    drawing = Image.new("RGBA", (7, 5), (1, 2, 3, 255))
    figure = SimpleNamespace(savefig=lambda file, format: drawing.save(file, format))
    Log("a").figure(2, "confusion", figure)
    shown = picture("a", "confusion")
    assert (shown.size, shown.getpixel((0, 0))) == ((7, 5), (1, 2, 3, 255))


def test_text_is_read_as_text(folder):
    log = Log("a")
    log.text(0, "note", "**bold**")
    log(5, loss=1)
    log.text(5, "note", "later")
    events = read("a").Tensors("note/text_summary")
    assert [(one.step, one.tensor_proto.string_val[0]) for one in events] == [
        (0, b"**bold**"),
        (5, b"later"),
    ]


def test_text_alone_is_written_in_the_end(folder):
    log = Log("a")
    log.text(0, "note", "alone")
    log.close()
    log.close()
    assert steps_shown("a", "note/text_summary") == [0]


def test_hyperparameters_and_metrics_are_a_row_of_the_plugin(folder):
    from tensorboard.backend.event_processing import data_provider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    log = Log("runs/a")
    log(9, accuracy=0.25)
    log.hparams({"lr": 0.5, "amp": True, "data": Path("x"), "none": None}, accuracy=0.75)
    multiplexer = EventMultiplexer().AddRunsFromDirectory("runs").Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, "runs")
    context = backend_context.Context(SimpleNamespace(data_provider=provider))
    request = RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), []
    )
    wanted = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS], start_index=0, slice_size=9, include_metrics=True
    )
    handler = list_session_groups.Handler(request, context, "", wanted)
    (group,) = handler.run().session_groups
    assert {name: value.WhichOneof("kind") for name, value in group.hparams.items()} == {
        "lr": "number_value",
        "amp": "string_value",
        "data": "string_value",
        "none": "string_value",
    }
    (metric,) = group.metric_values
    assert (metric.name.tag, metric.value, metric.training_step) == ("hparam/accuracy", 0.75, 9)
    assert [one.name.tag for one in experiment.metric_infos] == ["hparam/accuracy"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_number_on_a_gpu_is_not_waited_for(folder):
    log, loss = Log("a"), torch.tensor(1.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        log(1, loss=loss)
        loss += 1
        log(2, loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    log.flush()
    assert curve("a", "loss") == [(1, 1.0), (2, 2.0)]
