"""The names of `--amp`, and the variables by which each library learns of them."""

from ptools.errors import UsageError
from ptools.launcher.wire import AMP

# Accelerate's spelling and Fabric's (Accelerator.mixed_precision, _PRECISION_INPUT_STR).
_SPELLINGS = {
    "bf16": ("bf16", "bf16-mixed"),
    "fp16": ("fp16", "16-mixed"),
    "off": ("no", "32-true"),
}
# Levels of NVIDIA's apex, which torch.amp has replaced.
_LEVELS = {
    "O0": ("off", "everything in float32"),
    "O1": ("fp16", "autocast, with a GradScaler in the script"),
    "O2": (
        "fp16",
        "the nearest today: autocast keeps the weights in float32, which O2 had as a second copy",
    ),
    "O3": (
        "fp16",
        "the nearest today: nothing trains in float16 alone, as O3 did, without float32 weights",
    ),
}


def amp_environment(name: str) -> tuple[dict[str, str], str | None]:
    """The variables for the processes of a run, and a note if `name` is one of apex's levels.

    Accelerate prefers what the script itself says; Fabric prefers the variable.

    Raises:
        UsageError: there is no such name.
    """
    meant, note = _meaning(name)
    accelerate, fabric = _SPELLINGS[meant]
    variables = {AMP: meant, "ACCELERATE_MIXED_PRECISION": accelerate, "LT_PRECISION": fabric}
    return variables, note


def check_inject(name: str) -> None:
    """Whether autocast can be entered around the models of a script that knows nothing of it.

    Raises:
        UsageError: it cannot, or there is no such name.
    """
    meant, _ = _meaning(name)
    if meant == "fp16":
        raise UsageError(
            "fp16 cannot be injected: it needs a GradScaler around backward, clipping and step, "
            "which cannot be put into the loop of a script from outside",
            hint="--amp bf16 --inject needs none; or use torch.amp.GradScaler in the script",
        )
    if meant == "off":
        raise UsageError(
            f"--amp {name} leaves nothing to inject", hint="use --amp bf16, or drop --inject"
        )


def _meaning(name: str) -> tuple[str, str | None]:
    if name in _SPELLINGS:
        return name, None
    if name in _LEVELS:
        meant, why = _LEVELS[name]
        return meant, f"apex's level {name} is --amp {meant}: {why}"
    known = [*_SPELLINGS, *_LEVELS]
    import difflib

    near = difflib.get_close_matches(_plain(name), known, n=1)
    names = f"the names are {', '.join(_SPELLINGS)}, and apex's O0 to O3"
    raise UsageError(
        f"--amp does not know {name!r}", hint=f"did you mean {near[0]}?" if near else names
    )


def _plain(name: str) -> str:
    """What is meant by usual spellings of other libraries: BF16, bfloat16, float16, 16, o1, no."""
    lower = name.lower().removesuffix("-mixed")
    others = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "16": "fp16"}
    others |= {"no": "off", "none": "off", "fp32": "off", "float32": "off", "32": "off"}
    levels = {level.lower(): level for level in _LEVELS}
    return others.get(lower) or levels.get(lower.replace("0", "o", 1)) or levels.get(lower) or lower
