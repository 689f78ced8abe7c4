"""Do something when the user's program has imported a module, without importing it for the user."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

Callback = Callable[[ModuleType], None]


def after_import(name: str, callback: Callback) -> None:
    """Call `callback` with the module `name`: at once if it is there, else when it has been loaded.

    Looking for the module (`importlib.util.find_spec`) does not count. A module that fails to load
    is waited for again.
    """
    module = sys.modules.get(name)
    if module is not None and not _is_loading(module):
        callback(module)
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.waiting.setdefault(name, []).append(callback)


def _is_loading(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


class _Finder:
    """Finds the modules that are waited for, through the other finders."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callback]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                self._tell_when_loaded(spec)
                return spec
        return None

    def _tell_when_loaded(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        # A class as loader, as of built-in modules, is shared by all its modules.
        if loader is None or isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return
        load = loader.exec_module

        def load_and_tell(module: ModuleType) -> None:
            del loader.exec_module
            load(module)
            for callback in self.waiting.pop(spec.name, []):
                callback(module)

        # On the loader itself: a loader around it would hide what else it can do (get_source).
        loader.exec_module = load_and_tell  # type: ignore[method-assign]


_FINDER = _Finder()
