"""Models of timm, torchvision and local Hugging Face folders: built with no weights, offline."""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ptools.errors import SHOW_TRACEBACK, PtoolsError, UsageError
from ptools.usercode import describe

Builder = Callable[..., Any]


def builder(zoo: str, name: str) -> Builder:
    """The function that builds `timm:name` or `torchvision:name`, with every download off.

    Raises:
        UsageError: the library has no such model.
        PtoolsError: the library is not installed, or does not work.
    """
    return _timm(name) if zoo == "timm" else _torchvision(name)


def folder_builder(folder: Path, changes: Mapping[str, Any]) -> tuple[str, Builder]:
    """The class named in a Hugging Face `config.json`, and a function that builds it.

    `changes` replace entries of the configuration. No weights are read.

    Raises:
        UsageError: the configuration is not usable, or has no such entry.
        PtoolsError: transformers is not installed, or does not work.
    """
    with _working("transformers"):
        transformers = import_module("transformers")
        config = _config(transformers, folder)
        name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        cls = getattr(transformers, name, None)
    if cls is None:
        raise UsageError(
            f"transformers has no class {name!r}, which {folder}/config.json names",
            hint="a newer transformers may have it; code that comes with a model is not run",
        )
    _change(config, changes, folder)
    create = cls.from_config if name.startswith("AutoModel") else cls
    return name, lambda: _build_from(create, config)


def _timm(name: str) -> Builder:
    with _working("timm"):
        timm = import_module("timm")
    if not timm.is_model(name):
        hint = _did_you_mean(name, timm.list_models())
        raise UsageError(f"timm has no model {name!r}", hint=hint)
    return _offline_call(partial(timm.create_model, name, pretrained=False))


def _torchvision(name: str) -> Builder:
    with _working("torchvision"):
        models = import_module("torchvision.models")
    if name not in models.list_models():
        hint = _did_you_mean(name, models.list_models())
        raise UsageError(f"torchvision has no model {name!r}", hint=hint)
    build = models.get_model_builder(name)
    fixed: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(build).parameters:
        fixed["weights_backbone"] = None  # its default downloads the backbone
    if "init_weights" in _class_parameters(build):
        fixed["init_weights"] = False  # slow truncated normals in the Inceptions
    return _offline_call(partial(build, **fixed))


def _class_parameters(build: Builder) -> Mapping[str, inspect.Parameter]:
    made = inspect.signature(build).return_annotation
    return inspect.signature(made).parameters if inspect.isclass(made) else {}


def _offline_call(build: Builder) -> Builder:
    def call(**arguments: Any) -> Any:
        for name in ("pretrained", "weights", "weights_backbone"):
            if value := arguments.pop(name, None):
                raise UsageError(
                    f"{name}={value!r} would download weights",
                    hint=f"leave {name} out: library models are built without weights",
                )
        with _offline():
            return build(**arguments)

    return call


def _config(transformers: Any, folder: Path) -> Any:
    try:
        with _offline():
            return transformers.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"transformers cannot read {folder}/config.json: {describe(error)}",
            hint=_config_hint(folder),
        ) from error


def _change(config: Any, changes: Mapping[str, Any], folder: Path) -> None:
    for name, value in changes.items():
        if not hasattr(config, name):
            hint = _did_you_mean(name, config.to_dict())
            raise UsageError(f"{folder}/config.json has no entry {name!r}", hint=hint)
        setattr(config, name, value)
    if hasattr(config, "use_pretrained_backbone"):
        config.use_pretrained_backbone = False  # it would download one


def _config_hint(folder: Path) -> str | None:
    try:
        entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "model_type" not in entries:
        return "a Hugging Face config.json has an entry model_type"
    return f"does this transformers know model_type {entries['model_type']!r}?"


def _build_from(create: Builder, config: Any) -> Any:
    import torch

    # transformers 4 called it torch_dtype.
    dtype = config.dtype if hasattr(config, "dtype") else getattr(config, "torch_dtype", None)
    before = torch.get_default_dtype()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        torch.set_default_dtype(dtype)
    try:
        with _offline():
            return create(config)
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _working(library: str) -> Iterator[None]:
    """Say in one sentence that a library is missing, or installed but broken."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            message, hint = f"{library} is not installed", f"pip install {library}"
        elif "torchvision::" in f"{error} {error.__cause__}":
            message = f"{library} cannot be imported: torchvision was built for another torch"
            hint = "install torch and torchvision together, from the same index"
        else:
            message, hint = f"{library} does not work: {describe(error)}", SHOW_TRACEBACK
        raise PtoolsError(message, hint=hint) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Set HF_HUB_OFFLINE where the Hub client looks: it reads the environment only once."""
    try:
        constants: Any = import_module("huggingface_hub.constants")
    except ModuleNotFoundError:  # torchvision alone
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _did_you_mean(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else None
