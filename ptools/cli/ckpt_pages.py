"""`ptools fix-ckpt info` and `ptools fix-ckpt diff`, which need no Typer."""

from pathlib import Path

from ptools import console
from ptools.errors import UsageError

NOT_EQUAL = 3
_LISTED = 10


def show_info(words: list[str], json: bool) -> int:
    """`fix-ckpt info`."""
    from ptools.checkpoint.look.info import describe
    from ptools.checkpoint.look.pages import info_page

    info = describe(only_checkpoint(words))
    if json:
        console.show_json("fix-ckpt info", info.to_dict())
    else:
        console.write(info_page(info))
    return 0


def show_diff(words: list[str], json: bool) -> int:
    """`fix-ckpt diff`."""
    from ptools.checkpoint.look.diff import diff_checkpoints
    from ptools.checkpoint.look.pages import diff_page

    if len(words) != 2:
        raise UsageError("diff takes two checkpoints", hint="ptools fix-ckpt diff a.pt b.pt")
    first, second = words
    diff = diff_checkpoints(first, second)
    if json:
        console.show_json("fix-ckpt diff", diff.to_dict())
    else:
        console.write(diff_page(diff))
    return 0 if diff.equal else NOT_EQUAL


def only_checkpoint(words: list[str]) -> Path:
    """The checkpoint that was named, or the only one here."""
    if len(words) > 1:
        hint = f"leave out {words[1]}; if it belongs to an option, repeat that: --drop A --drop B"
        raise UsageError(f"one checkpoint at a time, not {len(words)}", hint)
    if words:
        return Path(words[0])
    from ptools.checkpoint.formats import find_checkpoints

    here = find_checkpoints(Path())
    if len(here) == 1:
        return here[0]
    if not here:
        raise UsageError("there is no checkpoint here", hint="give its path")
    listed = "".join(f"\n  ptools fix-ckpt {path}" for path in here[:_LISTED])
    raise UsageError(f"there are {len(here)} checkpoints here", hint=f"name one:{listed}")
