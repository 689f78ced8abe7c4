"""Which of this machine's addresses and interfaces faces the master, and whether it is the master.

What others guess from host names, which are often not resolvable between machines, the kernel's
routing table knows.
"""

import ctypes
import ipaddress
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ptools.errors import PtoolsError, UsageError

_PAUSE = 0.2  # seconds between two tries to connect
_SOMEWHERE = ("192.0.2.1", 9)  # an address that no machine has (RFC 5737): the default route
_Address = tuple[socket.AddressFamily, str]


@dataclass(frozen=True)
class Route:
    """How this machine sees the master."""

    master: str  # its address, resolved
    address: str  # this machine's own, as the master sees it
    interface: str | None  # that has this address; None if the system does not tell
    is_master: bool


def facing(master: str, port: int) -> Route:
    """The route from here to `master`. No packet is sent, but to resolve a name.

    Raises:
        PtoolsError: the name is unknown here, or there is no route.
    """
    reasons = []
    for family, address in _resolve(master, port):
        try:
            own = _own_address(family, address, port)
        except OSError as error:
            reasons.append(error.strerror or str(error))
            continue
        if _is_loopback(own) and not _is_loopback(master):
            return _outward(master)
        mine = {text for _, _, text in _interfaces()} | {own}
        return Route(address, own, _interface(own), is_master=address in mine)
    reason = ", ".join(reasons) or "its address is link-local"
    raise PtoolsError(
        f"there is no route from here to the master {master}: {reason}",
        hint="give its address in the network that the machines share: --master ADDRESS",
    )


def check_reachable(address: str, port: int, timeout: float) -> None:
    """Wait until the master's port answers.

    Raises:
        PtoolsError: it has not within `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while True:
        left = until - time.monotonic()
        try:
            socket.create_connection((address, port), timeout=max(left, _PAUSE)).close()
            return
        except OSError as error:
            reason = (
                "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            )
        if time.monotonic() + _PAUSE > until:
            break
        time.sleep(_PAUSE)
    raise PtoolsError(
        f"the master {joined(address, port)} did not answer in {timeout:.0f} s: {reason}",
        hint="start the same command on the master; or --master has a wrong address, or a firewall "
        "is between",
    )


def check_free(address: str, port: int) -> None:
    """On the master: see that the port can be had.

    Raises:
        PtoolsError: something else has it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise PtoolsError(
                f"this machine is the master, but port {port} cannot be had: {error.strerror}",
                hint=f"give another on all machines: --master {joined(address, port + 1)}",
            ) from error


def joined(host: str, port: int) -> str:
    """HOST:PORT, with brackets about an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(text: str, default: int) -> tuple[str, int]:
    """The host and the port of HOST, HOST:PORT, an IPv6 address, or [IPv6]:PORT.

    Raises:
        UsageError: it is none of these.
    """
    bracketed = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") > 1:
        host, port = text, None
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    port = str(default) if port is None else port
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
    is_host = re.fullmatch(r"[^\s:/,%\[\]]+|[0-9a-fA-F:.]+", host)
    if not is_host or not is_port:
        raise UsageError(
            f"cannot read the master {text!r}", hint="HOST or HOST:PORT; [ADDRESS]:PORT for IPv6"
        )
    return host, int(port)


def _resolve(master: str, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise PtoolsError(
            f"the name of the master {master} is unknown on this machine: {reason}",
            hint="give its address instead: --master 10.0.0.1",
        ) from error
    # Torch takes no address with the scope that a link-local one needs.
    return [(family, str(place[0])) for family, *_, place in found if "%" not in str(place[0])]


def _own_address(family: socket.AddressFamily, address: str, port: int) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))  # of a datagram socket: looks up the route
        return str(probe.getsockname()[0])


def _outward(name: str) -> Route:
    """The master itself, where /etc/hosts gives its name a loopback address, as Debian does."""
    others = [text for _, _, text in _interfaces() if not _is_loopback(text)]
    with suppress(OSError):
        others.insert(0, _own_address(socket.AF_INET, *_SOMEWHERE))
    others = [text for text in others if ":" not in text] or others
    if not others:
        raise PtoolsError(
            f"the name of the master {name} means this machine, which has no other address than "
            "its loopback",
            hint="give its address in the network that the machines share: --master ADDRESS",
        )
    return Route(others[0], others[0], _interface(others[0]), is_master=True)


def _interface(address: str) -> str | None:
    return next((name for name, _, text in _interfaces() if text == address), None)


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_uint16), ("data", ctypes.c_ubyte * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
    ("netmask", ctypes.c_void_p),
    ("other", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
)


def _interfaces() -> list[tuple[str, socket.AddressFamily, str]]:
    """Name, family and address of each interface: getifaddrs(3), as Linux lays it out."""
    first = ctypes.POINTER(_IfAddrs)()
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if library.getifaddrs(ctypes.byref(first)) == 0:
            try:
                return list(_walk(first))
            finally:
                library.freeifaddrs(first)
    return []


def _walk(entry: "ctypes._Pointer[_IfAddrs]") -> Iterator[tuple[str, socket.AddressFamily, str]]:
    starts = {socket.AF_INET: (2, 4), socket.AF_INET6: (6, 16)}
    while entry:
        here = entry.contents
        if here.address and here.address.contents.family in starts:
            family = socket.AddressFamily(here.address.contents.family)
            start, size = starts[family]
            raw = bytes(here.address.contents.data[start : start + size])
            yield here.name.decode(), family, socket.inet_ntop(family, raw)
        entry = here.next
