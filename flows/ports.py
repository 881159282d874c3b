"""Ports of this machine's own address: which are free, and which of those to take."""

import random
import socket
from collections.abc import Collection, Iterator

HOST = "127.0.0.1"

# Below those that the system gives to whoever opens a connection: such a one is taken now and then
# between the moment it was found free and a server's start, or at the server's next start.
_PORTS = range(20_000, 32_000)


def free_ports(count: int, taken: Collection[int] = ()) -> Iterator[int]:
    """Yield ports on which nobody listens, all different.

    Args:
        count: how many.
        taken: ports that are left out.
    """
    found = 0
    for port in random.sample(_PORTS, len(_PORTS)):
        if found == count:
            return
        if port not in taken and is_free(port):
            found += 1
            yield port


def is_free(port: int) -> bool:
    """Return whether nobody listens on a port."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((HOST, port))
        except OSError:
            return False
    return True
