"""A port that nobody else can take: bound by the launcher, served by the first process.

A free port that is found, given up and bound again later can be taken meanwhile. So the launcher
keeps listening, hands its socket to rank 0, and that serves torch's store from it.
"""

import functools
import os
from types import ModuleType

TYPE_CHECKING = False  # that of typing takes long, and each process imports this
if TYPE_CHECKING:
    import socket
    from typing import Any

LISTEN = "PTOOLS_LAUNCH_LISTEN"  # the descriptor, in rank 0
GIVEN = "PTOOLS_LAUNCH_PORT"  # what all ranks were given
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
_kept: list[object] = []  # a store that is collected stops to serve


def listen() -> "socket.socket":
    """A listening socket on a free port of this machine; a child may inherit it."""
    import socket  # which the processes do not need

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.set_inheritable(True)
    return listener


def install() -> None:
    """In a process: serve the store, when the program imports torch.distributed."""
    if GIVEN in os.environ:
        from ptools.imports import after_import

        after_import("torch.distributed.distributed_c10d", _prepare)


def _prepare(module: ModuleType) -> None:
    given = int(os.environ[GIVEN])
    if LISTEN in os.environ:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        descriptor = int(os.environ.pop(LISTEN))
        _kept.append(
            TCPStore(
                "127.0.0.1", given, None, True, wait_for_workers=False, master_listen_fd=descriptor
            )
        )
    start = module.init_process_group

    @functools.wraps(start)
    def init_process_group(*arguments: "Any", **options: "Any") -> "Any":
        from urllib.parse import urlsplit

        # A script that sets a port of its own serves it by itself.
        method = options.get("init_method") or next(iter(arguments[1:]), None)
        own = urlsplit(method).port if method else os.environ.get("MASTER_PORT")
        os.environ[_AGENT_STORE] = str(own is None or int(own) == given)
        return start(*arguments, **options)

    module.init_process_group = init_process_group  # type: ignore[attr-defined]
