import socket
import subprocess
import threading
import time

import pytest

from ptools.errors import PtoolsError, UsageError
from ptools.launcher import route


def test_this_machine_itself_is_the_master_through_its_loopback() -> None:
    found = route.facing("127.0.0.1", 29400)
    assert found == route.Route("127.0.0.1", "127.0.0.1", "lo", is_master=True)


def test_ipv6_is_routed_too() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    assert route.facing("::1", 29400) == route.Route("::1", "::1", "lo", is_master=True)


def test_the_interfaces_are_those_that_the_system_lists() -> None:
    listed = {name for _, name in socket.if_nameindex()}
    found = route._interfaces()
    assert {name for name, _, _ in found} <= listed
    assert ("lo", socket.AF_INET, "127.0.0.1") in found


def test_own_addresses_are_those_that_ip_tells() -> None:
    try:
        told = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("iproute2 (ip) is not installed")
    truth = {
        (words[1], words[3].partition("/")[0])
        for words in map(str.split, told.stdout.splitlines())
        if words[2] in ("inet", "inet6")
    }
    assert {(name, address) for name, _, address in route._interfaces()} == truth


def test_a_name_that_hosts_gives_a_loopback_address_is_seen_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interfaces = [
        ("lo", socket.AF_INET, "127.0.0.1"),
        ("eth7", socket.AF_INET, "10.9.8.7"),
        ("eth7", socket.AF_INET6, "fe80::1"),
    ]
    monkeypatch.setattr(route, "_resolve", lambda *_: [(socket.AF_INET, "127.0.1.1")])
    monkeypatch.setattr(route, "_interfaces", lambda: interfaces)
    monkeypatch.setattr(route, "_SOMEWHERE", ("255.255.255.255", 9))  # no route
    assert route.facing("node7", 29400) == route.Route("10.9.8.7", "10.9.8.7", "eth7", True)
    monkeypatch.setattr(route, "_interfaces", lambda: interfaces[:1])
    with pytest.raises(PtoolsError, match="node7 means this machine"):
        route.facing("node7", 29400)


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 300, "ü" * 64])
def test_an_unknown_name_is_told(name: str) -> None:
    with pytest.raises(PtoolsError, match="is unknown on this machine") as caught:
        route.facing(name, 29400)
    assert name in caught.value.message


def test_a_master_without_a_route_is_told() -> None:
    with pytest.raises(PtoolsError, match=r"no route from here to the master 255\.255\.255\.255"):
        route.facing("255.255.255.255", 29400)


def test_a_master_that_comes_later_is_waited_for() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        later = threading.Timer(0.5, server.listen)
        later.start()
        begun = time.monotonic()
        route.check_reachable("127.0.0.1", port, timeout=10)
        assert 0.3 < time.monotonic() - begun < 5
        later.join()


def test_a_master_that_does_not_answer_is_named_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(PtoolsError, match=f"127.0.0.1:{port} did not answer in 1 s"):
            route.check_reachable("127.0.0.1", port, timeout=1)
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("gpu01", "gpu01", 7),
        ("gpu01:123", "gpu01", 123),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("fe80::1", "fe80::1", 7),
        ("[::1]", "::1", 7),
        ("[::1]:123", "::1", 123),
    ],
)
def test_a_master_is_read(text: str, host: str, port: int) -> None:
    assert route.split(text, 7) == (host, port)
    assert route.split(route.joined(host, port), 7) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        *":,",
        "",
        ":123",
        "a:",
        "a:b",
        "a:0",
        "a:65536",
        "a:-1",
        "a b",
        "[::1",
        "::1]:3",
        "[]:3",
        "http://a:3",
        "[::1]3",
        "a:²",
        "fe80::1%eth0",
        "1:2:x",
    ],
)
def test_a_master_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read the master"):
        route.split(text, 7)
