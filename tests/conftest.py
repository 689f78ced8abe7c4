"""Fixtures for all tests."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def import_torchvision() -> Any:
    """Import torchvision's Python part, also beside a torch for which it has no compiled part.

    Its models need nothing else, but `timm` and `transformers` import it too. Skips the test if
    torchvision is not installed.
    """
    pytest.importorskip("torch")
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _define_nms()
        sys.modules["torchvision._meta_registrations"] = ModuleType("_meta_registrations")
        return importlib.import_module("torchvision")


def _define_nms() -> None:
    import torch

    signature = "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    library = torch.library.Library("torchvision", "DEF")
    library.define(signature)
    _KEEP.append(library)  # a library that is collected takes its operators along


_KEEP: list[object] = []


@pytest.fixture(scope="session")
def torchvision() -> Any:
    return import_torchvision()


@pytest.fixture(autouse=True)
def clean_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give back modules, paths and settings as they were: targets are loaded for good."""
    for name in [name for name in os.environ if name.startswith("PTOOLS_")]:
        monkeypatch.delenv(name)
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    before = dict(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in sys.modules.keys() - before.keys():
        file = getattr(sys.modules[name], "__file__", None) or ""
        if "pytest-of-" in file:
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[[str, str], Path]:
    """Write a file into `folder`, making the folders on the way."""

    def write_file(name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
