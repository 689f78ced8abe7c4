"""How long `ptools.summarize` takes beside `torchinfo.summary`, on the same model and input.

Run `python tests/benchmarks/summary_speed.py [ROUNDS]`; torchinfo and torchvision must be
installed. Warm: in one process both tools take turns on one model, and the ratio is the median
of the ratios of neighbouring runs, so that a busy machine slows both alike. ptools remembers the
shapes that it met; the first call of each tool, without that, stands beside. Cold: a fresh process
imports the libraries, builds the model and summarises it, which is what one command costs; ptools
once gets the built model, as torchinfo does, and once the function that builds it. Beside them
stands what importing torch and torchvision alone takes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from harness import import_torchvision, in_fresh_process, show, show_versions

MODELS = ("resnet50", "vit_b_16", "densenet121")
COLD = {
    "imports": "torch and torchvision alone",
    "torchinfo": "torchinfo",
    "model": "ptools, given the model",
    "factory": "ptools, given the function",
}
COLD_RUNS = 3


def runners(name: str) -> dict[str, Callable[[], Any]]:
    """One call a tool, all on the same model and input."""
    import torch
    import torchinfo

    import ptools

    model = import_torchvision().models.get_model(name, weights=None)
    image = torch.randn(1, 3, 224, 224)
    return {
        "torchinfo": lambda: torchinfo.summary(model, input_data=image, verbose=0),
        "ptools": lambda: ptools.summarize(model, image),
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def warm(name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, a list a tool, the first call first."""
    tools = runners(name)
    times = {tool: [seconds(call)] for tool, call in tools.items()}
    for _ in range(rounds):
        for tool, call in tools.items():
            times[tool].append(seconds(call))
    return times


def first(times: list[float]) -> float:
    return times[0]


def median(times: list[float]) -> float:
    return statistics.median(times[1:])


def least(times: list[float]) -> float:
    return min(times[1:])


def warm_row(name: str, rounds: int) -> list[str]:
    times = in_fresh_process(__file__, "warm", name, str(rounds))
    if isinstance(times, str):
        return [name, times, *[""] * 6]
    theirs, ours = times["torchinfo"], times["ptools"]
    ratio = statistics.median(a / b for a, b in zip(theirs[1:], ours[1:], strict=True))
    figures = [f(ts) for ts in (theirs, ours) for f in (first, median, least)]
    return [name, *(f"{1000 * figure:.0f}" for figure in figures), f"{ratio:.1f}x"]


def cold(tool: str, name: str) -> None:
    """What a fresh process does: everything from the imports on."""
    import torch

    models = import_torchvision().models

    def factory() -> torch.nn.Module:
        return models.get_model(name, weights=None)

    image = torch.randn(1, 3, 224, 224)
    if tool == "torchinfo":
        import torchinfo

        torchinfo.summary(factory(), input_data=image, verbose=0)
    elif tool != "imports":
        import ptools

        ptools.summarize(factory() if tool == "model" else factory, image)
    print("{}")


def cold_row(name: str) -> list[str]:
    times: dict[str, list[float]] = {tool: [] for tool in COLD}
    for _ in range(COLD_RUNS):
        for tool, measured in times.items():
            start = time.perf_counter()
            answer = in_fresh_process(__file__, "cold", tool, name)
            if isinstance(answer, str):
                return [name, answer, "", "", ""]
            measured.append(time.perf_counter() - start)
    return [name, *(" / ".join(f"{t:.1f}" for t in sorted(ts)) for ts in times.values())]


def main(rounds: int = 15) -> None:
    columns = ["model", "torchinfo first", "median", "min", "ptools first", "median", "min"]
    show(
        f"Warm: ms a call, {rounds} rounds in turns",
        [*columns, "median of ratios"],
        [warm_row(name, rounds) for name in MODELS],
    )
    show(
        f"Cold: seconds of a fresh process, import + build + summary, {COLD_RUNS} runs",
        ["model", *COLD.values()],
        [cold_row(name) for name in MODELS],
    )
    show_versions("torchinfo", "torchvision")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["warm", name, rounds]:
            print(json.dumps(warm(name, int(rounds))))
        case ["cold", tool, name]:
            cold(tool, name)
        case arguments:
            main(*map(int, arguments))
