"""Optimizers by the name a person types: `adamw`, `sgd(lr=0.1, momentum=0.9)`, `none`."""

from __future__ import annotations

import ast
import difflib
from typing import Any

import torch

from ptools.errors import UsageError


def make_optimizer(text: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer | None:
    """The torch.optim optimizer called `text` (case does not matter), None for "none".

    Raises UsageError for an unknown name, arguments it does not take, or one that needs a closure.
    """
    name, arguments = _parse(text)
    if name.lower() == "none":
        return None
    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
        if value not in (torch.optim.Optimizer, torch.optim.LBFGS)
    }
    if name.lower() not in classes:
        near = difflib.get_close_matches(name.lower(), classes, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of: none, {', '.join(sorted(classes))}"
        raise UsageError(f"no optimizer called {name}", hint=hint)
    kind = classes[name.lower()]
    if kind is torch.optim.SGD:
        arguments.setdefault("lr", 0.1)
    try:
        return kind(parameters, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--optimizer {text}: {error}") from error


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    try:
        tree = ast.parse(text, mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            values = {k.arg: ast.literal_eval(k.value) for k in tree.keywords if k.arg}
            return tree.func.id, values
    except (SyntaxError, ValueError):
        pass
    raise UsageError(
        f"--optimizer {text}: not an optimizer",
        hint="write adamw, or with arguments 'sgd(lr=0.1, momentum=0.9)'",
    )
