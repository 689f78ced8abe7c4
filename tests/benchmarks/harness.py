"""What the benchmark scripts share: fresh processes, tables that Markdown takes, versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import import_torchvision  # its models import beside a CPU torch too

__all__ = ["import_torchvision", "in_fresh_process", "show", "show_versions"]


def in_fresh_process(script: str, *arguments: str, seconds: float = 900) -> Any:
    """What `python script arguments` prints as JSON in its last line, or "error: ..." as text."""
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"error: not done in {seconds:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return last if last.startswith("error: ") else f"error: {last}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table: the first column to the left, the others to the right."""
    table = Table(box=box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 1000
        console.width = console.measure(table).maximum
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    print(f"\n{title}\n", *filter(None, lines), "", sep="\n", flush=True)


def show_versions(*packages: str) -> None:
    """Print the versions of Python, torch and the packages, and what machine this is."""
    found = []
    for name in ("torch", *packages):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}, {cores} cores"
    print(f"Python {platform.python_version()}, {', '.join(found)}; {system}")
