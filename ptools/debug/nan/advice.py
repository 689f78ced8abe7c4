"""What to do about a number that is not finite, by the operation that made it."""

from __future__ import annotations

from ptools.debug.nan.births import Birth

_ROOT = "a root has an infinite slope at 0: add an eps inside it, sqrt(x + eps)"
_NEGATIVE = "keep the argument of the root above 0: clamp(min=0), or add an eps inside it"
_LOG = "keep the argument of the logarithm above 0: log(x + eps), clamp(min=eps) or log_softmax"
_DIVIDE = "keep the denominator from 0: add an eps, clamp(min=eps), or skip the empty case"
_EDGE = "keep the argument inside the edges of its range: clamp(-1 + eps, 1 - eps)"
_POWER = "keep the base of the power above 0: clamp(min=eps) before it"
_ROW = "a row is masked everywhere: leave one entry open, or skip such rows"
_EXP = "exp overflows: use logsumexp, softmax or expm1, or clamp the argument above"
_ANGLE = "the angle of (0, 0) has no slope: replace such points before the operation"
_DISTANCE = "the distance of equal points has an infinite slope: add an eps inside its root"
_MEAN = "the mean or deviation of too few elements: skip it, or use unbiased=False"
_MASK = (
    "mask the input, not the output: where(ok, x, 1.0) before the operation; "
    "a gradient of 0 times an infinite slope is NaN"
)
_HALF = "beyond 65504 fp16 is infinite: use bfloat16, or float32 for this operation"
_RATE = "lower the learning rate, warm it up, or clip the gradients' norm"
_EPS = "the optimizer divided by 0: give it a larger eps, and float32 parameters"
_MEMORY = "fill what torch.empty returns: torch.zeros, or an nn.init function"
_DATA = "look at this sample: drop it, fill what is missing, or mask it before it is used"
BEGIN_EARLIER = "run with --at-step 0, or begin earlier: it was made before the tracing began"
_KEPT = "a NaN that is masked in the forward comes back in the backward: mask before it is made"
_SUMS = ("mean", "var", "std", "sum", "norm")

_BY_WORD = (
    (("softmax",), _ROW),
    (("sqrt", "norm", "pow"), _ROOT),
    (("log",), _LOG),
    (("acos", "asin", "atanh", "erfinv"), _EDGE),
    (("atan2",), _ANGLE),
    (("cdist", "pdist"), _DISTANCE),
    (("std", "var", "mean"), _MEAN),
    (("exp",), _EXP),
    (("div", "reciprocal", "rdiv", "prod"), _DIVIDE),
)


def advice_for(birth: Birth) -> str:
    """One sentence; empty if nothing general can be said."""
    match birth.source:
        case "memory":
            return _MEMORY
        case "batch" | "outside":
            return _DATA
        case "before":
            return BEGIN_EARLIER
    if birth.optimizer:
        return _EPS if "div" in birth.op else _RATE
    if any(parent.kind == "nan" for parent in birth.parents):
        return _KEPT
    return _of_operation(birth)


def _of_operation(birth: Birth) -> str:
    first = birth.parents[0] if birth.parents else None
    half = _is_half(birth)
    if "softmax" in birth.op and not birth.node and not _grew(birth):
        overflow = first is not None and "fill" not in first.op and half
        return _HALF if overflow else _ROW
    if first is not None and first.source in ("batch", "outside") and not birth.node:
        return _DATA
    if first is not None and first.source == "operation" and not first.optimizer:
        if birth.node and not first.node:
            return _MASK
        own = _by_word(first)
        return own if own and own != _RATE else _HALF if half or _is_half(first) else _RATE
    if half and birth.kind == "inf":
        return _HALF
    if birth.forward is not None and "div" in birth.op:  # in a backward of the user's own
        return _DIVIDE
    if birth.node and "div" in birth.op:
        return _by_word(birth) if _by_word(birth) in (_ROOT, _ANGLE) else _MASK
    return _by_word(birth) or (_RATE if birth.kind == "inf" else "")


def _is_half(birth: Birth) -> bool:
    return any(stats.dtype == "float16" for stats in birth.tensors)


def _grew(birth: Birth) -> bool:
    """Whether what went in held +inf, which no mask puts there."""
    return any(stats.infs > stats.negative_infs for stats in birth.tensors[1:])


def _by_word(birth: Birth) -> str:
    name = (birth.node or birth.op).lower()
    if "sqrt" in name and not birth.node:
        return _NEGATIVE
    if "pow" in name and not birth.node:
        return _POWER if birth.kind == "nan" else _RATE
    if birth.kind == "inf" and not birth.node and any(one in name for one in _SUMS):
        return _RATE  # numbers that are finite, but too large
    return next((text for words, text in _BY_WORD if any(one in name for one in words)), "")
