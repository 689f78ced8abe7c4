"""Tensors and figures as the messages that TensorBoard shows."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import torch

from ptools.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

_BINS = 64
_GAP = 2  # pixels between the images of a grid


def histogram(name: str, values: torch.Tensor) -> list[Any]:
    """The histogram of the finite values; beside it the number of others, where there are any."""
    import numpy as np
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    values = values.detach().coalesce().values() if values.is_sparse else values.detach()
    everything = values.cpu().double().numpy().ravel()
    numbers = everything[np.isfinite(everything)]
    found = []
    if numbers.size:
        counts, edges = np.histogram(numbers, _BINS)
        message = HistogramProto(
            min=numbers.min(),
            max=numbers.max(),
            num=numbers.size,
            sum=numbers.sum(),
            sum_squares=(numbers * numbers).sum(),
            # A bucket holds what is above the limit before its own; the first has none before it.
            bucket_limit=edges,
            bucket=[0, *counts],
        )
        found.append(Summary.Value(tag=name, histo=message))
    if numbers.size < everything.size:
        others = everything.size - numbers.size
        found.append(Summary.Value(tag=f"nonfinite/{name}", simple_value=others))
    return found


def picture(name: str, image: Image) -> Any:
    """An image as PNG, which loses nothing."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    file = io.BytesIO()
    image.save(file, format="PNG")
    message = Summary.Image(
        height=image.height,
        width=image.width,
        colorspace=len(image.getbands()),
        encoded_image_string=file.getvalue(),
    )
    return Summary.Value(tag=name, image=message)


def grid(batch: torch.Tensor, normalise: bool) -> Image:
    """The images of a batch in rows, from the left and from the top.

    Raises:
        UsageError: it is no batch of images.
    """
    from PIL import Image

    if batch.dim() != 4 or batch.shape[1] not in (1, 3) or not batch.numel():
        raise UsageError(
            f"a tensor of shape {tuple(batch.shape)} is no batch of images",
            hint="N x 1 or 3 x height x width; images.unsqueeze(1) gives grey ones a channel",
        )
    pixels = _pixels(batch.detach().cpu(), normalise)
    count, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP
    canvas = torch.zeros(channels, *size, dtype=torch.uint8)
    for at, image in enumerate(pixels):
        top, left = at // columns * (height + _GAP), at % columns * (width + _GAP)
        canvas[:, top : top + height, left : left + width] = image
    # PIL takes grey without a channel.
    return Image.fromarray(canvas.permute(1, 2, 0).squeeze(2).numpy())


def drawn(figure: Any) -> Image:
    """A figure of matplotlib's.

    Raises:
        UsageError: it is none.
    """
    from PIL import Image

    if not hasattr(figure, "savefig"):
        raise UsageError(
            f"a {type(figure).__name__} is no figure of matplotlib's",
            hint="figure, axes = plt.subplots()",
        )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)


def _pixels(images: torch.Tensor, normalise: bool) -> torch.Tensor:
    if images.dtype == torch.uint8 and not normalise:
        return images
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UsageError(f"images of {images.dtype}", hint="torch.uint8, or floats of 0 to 1")
    images = images.float()
    if normalise:
        finite = images[images.isfinite()]
        low, high = (finite.min(), finite.max()) if finite.numel() else (0.0, 1.0)
        images = (images - low) / (high - low or 1.0)
    return images.nan_to_num(0).mul(255).round().clamp(0, 255).byte()
