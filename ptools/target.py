"""What the user points at: `WHERE[:NAME[(kwargs)]]`, found in a file, a module or a library.

    model.py                 the model in that file
    model.py:Net             a class, a factory or an instance by name; dots reach inside
    model.py:Net(width=64)   with arguments, as literals
    package.module:Net       an importable module
    timm:resnet50  torchvision:vit_b_16
    folder/                  a local Hugging Face folder with its config.json

Loading a file runs it, as any import does. Nothing is downloaded, and nothing is evaluated.
"""

import ast
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ptools import zoo
from ptools.choice import choose_loader, choose_model
from ptools.errors import SHOW_TRACEBACK, PtoolsError, UsageError
from ptools.usercode import describe, load_file, load_module, quiet_stdout

_CHECKPOINTS = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}
_FILE = re.compile(r"(?P<where>.+?\.py)(:(?P<name>.*))?", re.DOTALL)
_MODULE = re.compile(r"(?P<where>[^\W\d]\w*(\.[^\W\d]\w*)*)(:(?P<name>.*))?", re.DOTALL)
_CALL = re.compile(r"(?P<name>[^()]+)(\((?P<arguments>.*)\))?", re.DOTALL)
_FORMS = "write model.py:Net, package.module:Net, timm:resnet50, torchvision:vit_b_16, or a folder"
_LOADER_FORMS = "write train.py:loader, train.py:make_loader, or package.module:make_loader"


@dataclass(frozen=True)
class Target:
    """An object that was found, and what it takes to make a model of it.

    `obj` is an instance, or a class or function that `build` calls. `namespace` is the module
    where it was found (empty for library models), so that what lies beside it can be used.
    """

    spec: str
    label: str
    obj: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    positional: tuple[Any, ...] = ()
    namespace: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def build(self) -> Any:
        """The instance as it is, or what the class or function returns.

        Raises:
            UsageError: the arguments do not fit the signature.
            PtoolsError: the user's code raised; the original error is the `__cause__`.
        """
        if not _is_recipe(self.obj):
            if self.arguments or self.positional:
                raise UsageError(f"{self.spec} is not called: it takes no arguments")
            return self.obj
        self._check_arguments()
        try:
            with quiet_stdout():
                return self.obj(*self.positional, **self.arguments)
        except PtoolsError:
            raise
        except (Exception, SystemExit) as error:
            raise PtoolsError(
                f"building {self.label} raised {describe(error)}", hint=SHOW_TRACEBACK
            ) from error

    def _check_arguments(self) -> None:
        try:
            signature = inspect.signature(self.obj)
        except (TypeError, ValueError):  # some builtins have none
            return
        shown = f"{self.label}{_without_annotations(signature)}"
        known = signature.parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            for name in self.arguments.keys() - known.keys():
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean -a {near[0]}=...?" if near else f"it is {shown}"
                raise UsageError(f"{shown} has no argument {name!r}", hint=hint)
        try:
            bound = signature.bind_partial(*self.positional, **self.arguments).arguments
        except TypeError as error:
            raise UsageError(f"{shown} does not take these: {error}") from error
        missing = [name for name, parameter in known.items() if _is_required(parameter)]
        missing = [name for name in missing if name not in bound]
        if missing:
            flags = " ".join(f"-a {name}=..." for name in missing)
            raise UsageError(
                f"{shown} needs {', '.join(missing)}", hint=f"try: {self.spec} {flags}"
            )


def resolve(spec: str, arguments: Sequence[str] = ()) -> Target:
    """Find the object that `spec` names. `arguments` are `key=value` texts, as of `-a`.

    Raises:
        UsageError: nothing is there, several things are, or importing it failed.
        PtoolsError: a library that the target needs is not installed.
    """
    extra = dict(_argument(text) for text in arguments)
    if Path(spec).is_dir():
        return _folder_target(spec, extra)
    if (path := checkpoint_path(spec)) is not None:
        raise UsageError(f"{path} holds weights, not a model", hint=_FORMS)
    library, _, name = spec.partition(":")
    if library in ("timm", "torchvision") and not _FILE.fullmatch(spec):
        return _library_target(spec, library, name, extra)
    return _module_target(spec, extra, choose_model, _FORMS)


def resolve_loader(spec: str, arguments: Sequence[str] = ()) -> Target:
    """Find a DataLoader, a Dataset, or a function that makes one, in a file or a module.

    Raises:
        UsageError: nothing is there, several things are, or importing it failed.
    """
    extra = dict(_argument(text) for text in arguments)
    return _module_target(spec, extra, choose_loader, _LOADER_FORMS)


def checkpoint_path(spec: str) -> Path | None:
    """The file, when `spec` is a file of weights (.pt .pth .ckpt .bin .safetensors) that exists."""
    path = Path(spec)
    return path if path.suffix in _CHECKPOINTS and path.is_file() else None


def _folder_target(spec: str, extra: dict[str, Any]) -> Target:
    folder = Path(spec)
    if (folder / "config.json").is_file():
        label, build = zoo.folder_builder(folder, extra)
        return Target(spec, label, build)
    files = sorted(file.name for file in folder.glob("*.py"))[:5]
    hint = f"name a file in it: {', '.join(str(folder / name) for name in files)}"
    raise UsageError(f"the folder {spec} holds no config.json", hint=hint if files else _FORMS)


def _library_target(spec: str, library: str, call: str, extra: dict[str, Any]) -> Target:
    if not call:
        raise UsageError(f"{spec} names no model", hint=f"write {library}:resnet50")
    name, positional, inline = _parse_call(spec, call)
    if positional:
        raise UsageError(
            f"{spec}: give arguments by name", hint=f"write {library}:{name}(key=value)"
        )
    return Target(spec, name, zoo.builder(library, name), inline | extra)


def _module_target(
    spec: str, extra: dict[str, Any], choose: Callable[[ModuleType, str], str], forms: str
) -> Target:
    match = _FILE.fullmatch(spec) or _MODULE.fullmatch(spec)
    if match is None:
        beside = Path(f"{spec.partition(':')[0]}.py")
        hint = f"did you mean {beside}?" if beside.is_file() else forms
        raise UsageError(f"{spec!r} names no file, module or library model", hint=hint)
    where, call = match["where"], match["name"]
    if call is not None:
        name, positional, inline = _parse_call(spec, call)
    module = load_file(Path(where)) if where.endswith(".py") else load_module(where)
    if call is None:
        name, positional, inline = choose(module, where), (), {}
    obj = _reach(module, where, name)
    label = name if _is_recipe(obj) else type(obj).__name__
    return Target(
        spec if call else f"{where}:{name}", label, obj, inline | extra, positional, vars(module)
    )


def _reach(module: ModuleType, where: str, name: str) -> Any:
    obj: Any = module
    path, separator = where, ":"
    for part in name.split("."):
        if not hasattr(obj, part):
            known = [key for key in vars(obj) if not key.startswith("_")]
            own = [key for key in known if _is_defined_in(module, getattr(obj, key))]
            near = difflib.get_close_matches(part, known, n=1)
            raise UsageError(
                f"{path} has no {part!r}" + (f"; it defines {', '.join(own)}" if own else ""),
                hint=f"did you mean {path}{separator}{near[0]}?" if near else None,
            )
        obj = getattr(obj, part)
        path, separator = f"{path}{separator}{part}", "."
    return obj


def _is_defined_in(module: ModuleType, obj: Any) -> bool:
    return getattr(obj, "__module__", None) == module.__name__


def _parse_call(spec: str, call: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Split `Net(8, depth=2)` into its name and its literal arguments."""
    match = _CALL.fullmatch(call)
    if match is None:
        raise UsageError(f"cannot read {call!r} in {spec!r}", hint=_FORMS)
    name = match["name"].strip()
    try:
        parsed = ast.parse(f"f({match['arguments'] or ''})", mode="eval").body
        assert isinstance(parsed, ast.Call)
        positional = tuple(ast.literal_eval(node) for node in parsed.args)
        inline = {node.arg: ast.literal_eval(node.value) for node in parsed.keywords if node.arg}
        if len(inline) < len(parsed.keywords):
            raise ValueError("**kwargs")
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"cannot read the arguments of {call!r}",
            hint=f"write literals, such as {name}(width=64, name='a', sizes=[1, 2])",
        ) from error
    return name, positional, inline


def _argument(text: str) -> tuple[str, Any]:
    """Read `key=value`: the value as a Python literal if it is one, else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UsageError(f"cannot read -a {text}", hint="write -a name=value")
    if value in ("true", "false"):  # as text, "false" would count as true
        return key, value == "true"
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def _is_recipe(obj: Any) -> bool:
    return inspect.isclass(obj) or inspect.isroutine(obj) or isinstance(obj, functools.partial)


def _is_required(parameter: inspect.Parameter) -> bool:
    optional = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in optional


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=plain, return_annotation=signature.empty)
