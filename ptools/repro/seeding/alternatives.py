"""What to write instead of an operation that has no deterministic version.

After the list in torch's documentation of `use_deterministic_algorithms`.
"""

from __future__ import annotations

import re

# In the order in which they are tried, on the name by which torch's error calls the operation.
_INSTEAD = (
    ("adaptive_avg_pool2d", "for an output of 1x1 x.mean((2, 3), keepdim=True), else F.avg_pool2d"),
    ("adaptive_avg_pool3d", "for an output of 1 x.mean((2, 3, 4), keepdim=True)"),
    ("adaptive_max_pool2d", "for an output of 1x1 x.amax((2, 3), keepdim=True), else F.max_pool2d"),
    ("adaptive_max_pool3d", "for an output of 1 x.amax((2, 3, 4), keepdim=True)"),
    ("avg_pool3d", "F.conv3d with equal weights, or reshape and mean() if windows do not overlap"),
    ("fractional_max_pool2d", "F.max_pool2d, or F.interpolate(mode='area') before it"),
    ("fractional_max_pool3d", "F.max_pool3d"),
    (
        "max_unpooling",
        "zeros.flatten(2).scatter(2, indices.flatten(2), x.flatten(2)), then view",
    ),
    ("upsample_(linear|bilinear|bicubic|trilinear)", "mode='nearest', or a transposed convolution"),
    (
        "reflection_pad",
        "torch.cat of flip()ped borders, or mode='replicate', which is deterministic",
    ),
    ("nll_loss", "-log_probabilities.gather(1, target.unsqueeze(1)).mean()"),
    ("ctc_loss", "compute it on the CPU: F.ctc_loss(log_probs.cpu(), ...)"),
    ("embedding_bag.*max", "F.embedding(index, weight).amax(1)"),
    ("put_", "x.view(-1).index_copy_(0, index, source), or index_add_ to accumulate"),
    ("histc", "torch.histc(x.cpu(), ...).to(x.device)"),
    ("bincount", "torch.zeros(n, device=x.device).index_add(0, x, weights)"),
    ("median", "x.sort(dim), and of both results the one at (x.shape[dim] - 1) // 2"),
    ("kthvalue", "x.sort(dim), and of both results the one at k - 1"),
    ("grid_sampler", "F.grid_sample(x.cpu(), grid.cpu()).to(x.device)"),
    ("cumsum", "torch.cumsum(x.cpu(), dim).to(x.device), or x @ torch.ones(n, n).triu()"),
    ("scatter_(reduce|add)", "index_add, or scatter_reduce with reduce='sum', of flat tensors"),
    ("resize", "torch.empty() of the new shape, and copy_()"),
    ("[Ee]fficient.?[Aa]ttention", "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"),
)
_MESSAGES = (
    re.compile(r"([\w. ]+) does not have a deterministic implementation"),
    re.compile(r"(Memory Efficient attention) defaults to a non-deterministic algorithm"),
)
PATTERN = ".*(does not have a deterministic implementation|non-deterministic algorithm)"


def operation_in(message: str) -> str | None:
    """The operation that torch's warning or error is about; None if it is about something else."""
    found = [match for pattern in _MESSAGES if (match := pattern.search(message))]
    return found[0][1].strip() if found else None


def instead_of(operation: str) -> str | None:
    """What to write instead, where there is something."""
    return next((text for name, text in _INSTEAD if re.search(name, operation)), None)


def advice(operation: str) -> str:
    """The alternative as the end of a sentence."""
    text = instead_of(operation)
    return f"write {text}" if text else "run it on the CPU, or go on with --deterministic warn"
