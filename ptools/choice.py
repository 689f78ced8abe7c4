"""Choose the model, or the loader, in a module when the user gave no name."""

import ast
import inspect
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from ptools.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_INSTANCES = ("model", "net")
_FACTORIES = ("build_model", "create_model", "get_model", "make_model")
_LOADER_FACTORIES = ("build_loader", "create_loader", "get_loader", "make_loader")


def choose_model(module: ModuleType, where: str) -> str:
    """The name of the model in `module`, which the user calls `where`.

    In this order: an instance called `model` or `net`; the only instance; a factory called
    `build_model`, `create_model`, `get_model` or `make_model`; the only class that no other class
    there uses. Instances without parameters (losses, activations) do not count.

    Raises:
        UsageError: there is no such thing, or several; the candidates are listed.
    """
    from torch import nn

    instances = _instances(module)
    for name in _INSTANCES:
        if name in instances:
            return name
    factories = [name for name in _FACTORIES if _is_function_of(module, name)]
    classes = _classes(module, nn.Module)
    outermost = _outermost(module, classes)
    for names in (instances, factories, outermost):
        if len(names) == 1:
            return names[0]
        if len(names) > 1 and not (names is instances and factories):
            _ask_which(where, names, "models")
    if classes:
        _ask_which(where, classes, "models")
    _ask_for_name(module, where, "builds the model", "nn.Module, nor a function such as get_model")


def choose_loader(module: ModuleType, where: str) -> str:
    """The name of what loads data in `module`, which the user calls `where`.

    In this order: the only DataLoader; the only factory called `build_loader`, `create_loader`,
    `get_loader` or `make_loader`; the only instance of a Dataset; the only class of one.

    Raises:
        UsageError: there is no such thing, or several; the candidates are listed.
    """
    from torch.utils.data import DataLoader, Dataset

    factories = [name for name in _LOADER_FACTORIES if _is_function_of(module, name)]
    for names in (
        _named(module, DataLoader),
        factories,
        _named(module, Dataset),
        _classes(module, Dataset),
    ):
        if len(names) == 1:
            return names[0]
        if names:
            _ask_which(where, names, "loaders")
    needed = "DataLoader, no Dataset, nor a function such as make_loader"
    _ask_for_name(module, where, "makes the loader", needed)


def _named(module: ModuleType, kind: type) -> list[str]:
    """The first name of each instance."""
    found: dict[int, str] = {}
    for name, value in vars(module).items():
        if isinstance(value, kind):
            found.setdefault(id(value), name)
    return list(found.values())


def _instances(module: ModuleType) -> list[str]:
    from torch import nn

    found: dict[int, str] = {}  # by identity: one object may have two names
    for name, value in vars(module).items():
        if not isinstance(value, nn.Module):
            continue
        if name in _INSTANCES or (id(value) not in found and _has_parameters(value)):
            found[id(value)] = name
    return list(found.values())


def _has_parameters(module: "nn.Module") -> bool:
    return next(module.parameters(), None) is not None


def _is_function_of(module: ModuleType, name: str) -> bool:
    value = vars(module).get(name)
    # `from timm import create_model` makes no factory of the user's own.
    return inspect.isroutine(value) and value.__module__ == module.__name__


def _classes(module: ModuleType, kind: type) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, kind)
        and value.__module__ == module.__name__
        and value.__name__ == name
    ]


def _outermost(module: ModuleType, classes: list[str]) -> list[str]:
    """The classes that no other one uses, be it through functions of the module."""
    mentions = _mentions(module)
    used = {name for user in classes for name in _reachable(user, mentions) if name != user}
    return [name for name in classes if name not in used]


def _mentions(module: ModuleType) -> dict[str, set[str]]:
    """For each class and function of the source, the names that its text mentions."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):  # no source, as in a compiled module
        return {}
    return {
        node.name: {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def _reachable(start: str, mentions: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in mentions.get(waiting.pop(), set()) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def _ask_which(where: str, names: list[str], kind: str) -> NoReturn:
    raise UsageError(
        f"{where} holds several {kind}", hint=f"choose one:\n{_commands(where, names)}"
    )


def _ask_for_name(module: ModuleType, where: str, what: str, needed: str) -> NoReturn:
    named = [name for name, value in vars(module).items() if _is_own_callable(module, value)]
    hint = f"name what {what}:\n{_commands(where, named or ['NAME'])}"
    raise UsageError(f"{where} defines no {needed}", hint=hint)


def _commands(where: str, names: list[str]) -> str:
    return "\n".join(f"  {where}:{name}" for name in names)


def _is_own_callable(module: ModuleType, value: object) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__
