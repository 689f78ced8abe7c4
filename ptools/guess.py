"""What a model takes: `--input` as it may have been meant, what it declares, honest guesses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import nn

from ptools.inputs import Inputs, TensorSpec, from_value


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Those of the forward, by name; none where it has no signature to read."""
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}


def forward_arguments(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the forward's parameters: those without a default, and the others."""
    required: list[str] = []
    optional: list[str] = []
    for p in _parameters(model).values():
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            (required if p.default is p.empty else optional).append(p.name)
    return required, optional


def given(inputs: Inputs, model: nn.Module) -> Iterator[Inputs]:
    """`--input` as it may have been meant: as it stands, or without its batch dimension.

    A convolution's rank says which; where nothing says it, as it stands comes first.
    """
    batched = replace(
        inputs,
        args=tuple(TensorSpec((1, *spec.shape), spec.dtype) for spec in inputs.args),
        origin=f"{inputs.origin} {inputs}, a batch of 1 added",
    )
    leaf = first_layer(model)
    rank = _rank(leaf[1]) if leaf else None
    lacks_batch = [len(spec.shape) == (rank or 0) - 1 for spec in inputs.args]
    if lacks_batch and all(lacks_batch):
        yield batched
        return
    yield inputs
    if inputs.args and rank is None:
        yield batched


def declared(model: nn.Module, namespace: Mapping[str, Any]) -> Inputs | None:
    """What stands beside the target (`example_inputs`) or on the model says it takes."""
    for name in ("example_inputs", "example_input", "dummy_inputs", "dummy_input"):
        if name in namespace:
            value = namespace[name]
            value = value() if callable(value) else value
            return from_value(value, "declared", f"{name} beside the model")
    example = getattr(model, "example_input_array", None)
    if example is not None:
        return from_value(example, "declared", "the model's example_input_array")
    return _from_config(model) or _from_size_attribute(model)


def _from_config(model: nn.Module) -> Inputs | None:
    """Hugging Face: `main_input_name` says which input, the config how large."""
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(name, str) or config is None:
        return None
    parts = [getattr(config, part, None) for part in ("text_config", "vision_config")]
    look = _Lookup([c for c in (*parts, config) if c is not None])
    longest = look("max_position_embeddings", "n_positions") or 128
    length = min(128, longest) if longest > 0 else 128
    ids = TensorSpec((1, length), torch.int64)
    side = look("image_size") or 224
    height, width = side if isinstance(side, list | tuple) else (side, side)
    shapes: dict[str, TensorSpec] = {
        "input_ids": ids,
        "pixel_values": TensorSpec((1, look("num_channels") or 3, height, width)),
        "input_features": TensorSpec(
            (1, look("num_mel_bins") or 80, 2 * (look("max_source_positions") or 1500))
        ),
        "input_values": TensorSpec((1, 16000)),
    }
    if name not in shapes:
        return None
    kwargs = {name: shapes[name]}
    takes = _parameters(model)
    if all(parts) and "pixel_values" in takes:  # reads texts and looks at pictures
        kwargs |= {"input_ids": ids, "pixel_values": shapes["pixel_values"]}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        kwargs["decoder_input_ids"] = ids
    return Inputs((), kwargs, "declared", f"{type(config).__name__} (main_input_name={name})")


class _Lookup:
    """The first of several names that the first of several configs has."""

    def __init__(self, configs: Sequence[Any]) -> None:
        self.configs = configs

    def __call__(self, *names: str) -> Any:
        for config in self.configs:
            for name in names:
                if (value := getattr(config, name, None)) is not None:
                    return value
        return None


def _from_size_attribute(model: nn.Module) -> Inputs | None:
    """`default_cfg["input_size"]` (timm), `in_size` and `in_channels` (pytorchcv), `image_size`."""
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        if isinstance(config, Mapping) and _is_shape(config.get("input_size"), 3):
            origin = f"the model's {name}"
            return Inputs((TensorSpec((1, *config["input_size"])),), {}, "declared", origin)
    leaf = first_layer(model)
    if leaf is None or not isinstance(leaf[1], nn.Conv2d):
        return None
    for owner in (model, getattr(model, "patch_embed", None)):
        for name in ("in_size", "img_size", "image_size", "input_size"):
            size = getattr(owner, name, None)
            size = (size, size) if isinstance(size, int) else size
            if _is_shape(size, 2):
                spec = TensorSpec((1, leaf[1].in_channels, *size))
                return Inputs((spec,), {}, "declared", f"the model's {name}")
    return None


def _is_shape(value: Any, rank: int) -> TypeGuard[Sequence[int]]:
    if not isinstance(value, tuple | list) or len(value) != rank:
        return False
    return all(isinstance(item, int) and item > 0 for item in value)


_RANKS = {f"{kind}{n}d": n + 2 for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)}


_SIDES = (224, 32, 28, 256, 64, 96, 128, 384, 299, 512, 448, 336, 240, 192, 320, 1024, 480, 16)


_LENGTHS = (1024, 16000, 128, 4096)


_VOLUMES = (
    (16, 112, 112),
    (16, 224, 224),
    (96, 96, 96),
    (64, 64, 64),
    (32, 224, 224),
    (32, 32, 32),
)


def first_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first leaf module that has parameters and is no normalisation: it meets the input."""
    for name, module in model.named_modules():
        is_leaf = next(module.children(), None) is None
        has_parameters = next(module.parameters(), None) is not None
        if is_leaf and has_parameters and "Norm" not in type(module).__name__:
            return name, module
    return None


def in_its_dtype(inputs: Inputs, model: nn.Module) -> Inputs:
    """The inputs with a dtype where none was chosen: that of the model's weights.

    A first layer that looks up its input wants integers.
    """
    leaf = first_layer(model)
    looks_up = leaf is not None and isinstance(leaf[1], nn.Embedding | nn.EmbeddingBag)
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    native = torch.int64 if looks_up else next(floating, torch.float32)

    def filled(spec: TensorSpec) -> TensorSpec:
        return spec if spec.dtype is not None else replace(spec, dtype=native)

    args, kwargs = inputs.make(filled)
    return replace(inputs, args=args, kwargs=kwargs)


def guesses(model: nn.Module) -> Generator[Inputs, str | None, None]:
    """Inputs worth trying, likeliest first, from the shape that the first layer asks for.

    After each, the caller may `send` the error message of the attempt: sizes that it names are
    tried next ("Input height (224) doesn't match model (378)").
    """
    leaf = first_layer(model)
    if leaf is None or len(forward_arguments(model)[0]) > 1:
        return
    name, layer = leaf
    keyword = _only_keyword(model)
    tried: set[tuple[int, ...]] = set()
    queue = list(_shapes(layer))
    while queue:
        shape = queue.pop(0)
        if shape in tried:
            continue
        tried.add(shape)
        origin = f"{name} ({type(layer).__name__})" if name else type(layer).__name__
        spec = TensorSpec(shape)
        args, kwargs = ((), {keyword: spec}) if keyword else ((spec,), {})
        message = yield Inputs(args, kwargs, "guessed", origin)
        if message and len(shape) == 4:
            sides = [int(n) for n in re.findall(r"\b\d{2,4}\b", message)]
            queue[:0] = [(*shape[:2], side, side) for side in sides if 8 <= side <= 2048]


def _only_keyword(model: nn.Module) -> str | None:
    """The required argument's name, where it can't be given by position."""
    parameters = _parameters(model).values()
    required = (p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    return next(required, None)


def _rank(layer: nn.Module) -> int | None:
    """Dimensions of a convolution's input, batch included; None for another layer."""
    names = (kind.__name__.removeprefix("Lazy") for kind in type(layer).__mro__)
    return next((_RANKS[name] for name in names if name in _RANKS), None)


def _shapes(layer: nn.Module) -> Iterator[tuple[int, ...]]:
    channels = getattr(layer, "in_channels", 0) or 3
    rank = _rank(layer)
    if rank == 3:
        yield from ((1, channels, length) for length in _LENGTHS)
    elif rank == 4:
        yield from ((1, channels, side, side) for side in _SIDES)
    elif rank == 5:
        yield from ((1, channels, *volume) for volume in _VOLUMES)
    elif isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        yield (1, 128)
        yield (128,)
    elif isinstance(layer, nn.RNNBase):
        yield (1, 16, layer.input_size)
    elif isinstance(layer, nn.Linear):
        features = layer.in_features or 16
        yield (1, features)
        yield (1, 16, features)
    yield from ((1, 3, side, side) for side in (224, 256, 384))
