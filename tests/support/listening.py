"""Where processes listen, as the system tells it."""

import contextlib
import ipaddress

import psutil


def listening(process: psutil.Process) -> dict[int, bool]:
    """Return every port that a process or one that it started listens at.

    And of each whether it is this machine's alone.
    """
    found: dict[int, bool] = {}
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between
            for connection in one.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    address, port = connection.laddr
                    is_own = ipaddress.ip_address(address).is_loopback
                    found[port] = is_own and found.get(port, True)
    return found
