"""Free ports, and those that are taken."""

import socket
from pathlib import Path

from flows.ports import free_ports, is_free


def test_a_port_on_which_somebody_listens_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_ports_are_different_free_and_none_of_those_taken() -> None:
    taken = set(free_ports(50))
    found = list(free_ports(50, taken))
    assert len(taken) == len(set(found)) == 50
    assert taken.isdisjoint(found)
    assert all(map(is_free, found))


def test_the_system_gives_none_of_them_to_who_opens_a_connection() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(free_ports(200)) < first
