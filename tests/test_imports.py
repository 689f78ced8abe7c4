import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ptools.imports import after_import


@pytest.fixture
def seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the callbacks of a test noted; modules come from `folder`."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield []


def test_the_callback_gets_the_module_when_it_has_been_loaded(
    write: Callable[[str, str], Path], seen: list[str]
) -> None:
    write("seen_once.py", "value = 1\n")
    after_import("seen_once", lambda module: seen.append(f"first {module.value}"))
    after_import("seen_once", lambda module: seen.append("second"))
    assert importlib.util.find_spec("seen_once") is not None
    assert seen == []  # looking for it is not importing it
    import seen_once  # type: ignore[import-not-found]

    assert seen == ["first 1", "second"]
    assert inspect.getsource(seen_once) == "value = 1\n"
    importlib.reload(seen_once)
    assert seen == ["first 1", "second"]


def test_a_module_that_is_there_is_told_at_once(seen: list[str]) -> None:
    after_import("json", lambda module: seen.append(module.__name__))
    assert seen == ["json"]


def test_a_module_of_a_package_is_told_before_its_package_is_done(
    write: Callable[[str, str], Path], seen: list[str]
) -> None:
    write("seen_pack/__init__.py", "from seen_pack import inner\n")
    write("seen_pack/inner.py", "")
    for name in ("seen_pack", "seen_pack.inner"):
        after_import(name, lambda module: seen.append(module.__name__))
    importlib.import_module("seen_pack")
    assert seen == ["seen_pack.inner", "seen_pack"]


def test_a_module_that_is_being_loaded_is_waited_for(
    write: Callable[[str, str], Path], seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(module: ModuleType) -> None:
        seen.append(f"{module.done}")

    write("seen_half.py", "import sys\nsys.hook_half()\ndone = True\n")
    monkeypatch.setattr(sys, "hook_half", lambda: after_import("seen_half", hook), raising=False)
    after_import("seen_half", hook)
    importlib.import_module("seen_half")
    assert seen == ["True", "True"]


def test_a_module_that_fails_is_waited_for_again(
    write: Callable[[str, str], Path], seen: list[str]
) -> None:
    write("seen_later.py", "raise ValueError('first')\n")
    after_import("seen_later", lambda module: seen.append("loaded"))
    with pytest.raises(ValueError, match="first"):
        importlib.import_module("seen_later")
    assert seen == []
    write("seen_later.py", "# a longer text, so that no cached one is taken for it\n")
    importlib.import_module("seen_later")
    assert seen == ["loaded"]


def test_a_module_that_does_not_exist_is_missing_as_ever(seen: list[str]) -> None:
    after_import("seen_never", lambda module: seen.append("loaded"))
    with pytest.raises(ModuleNotFoundError, match="No module named 'seen_never'"):
        importlib.import_module("seen_never")
