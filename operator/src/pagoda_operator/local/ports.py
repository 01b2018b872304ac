"""Free ports for processes, and who holds a busy one. Called by executor.py, and by the command line before it starts anything."""

import errno
import socket
from pathlib import Path
from random import Random

import psutil

CHOSEN_BY_THE_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUALLY = (32768, 60999)
LOWEST, HIGHEST = 10_240, 65_535
"""Browsers refuse some ports below."""


class PortPool:
    """Hands out loopback ports that are free now, one after another from a random one on: two processes starting together get different
    ones. None that the kernel chooses for others: a connection could have it before our process listens."""

    def __init__(self, rng: Random | None = None) -> None:
        try:
            first, last = map(int, CHOSEN_BY_THE_KERNEL.read_text().split())
        except (OSError, ValueError):
            first, last = USUALLY
        self._ports = ports_beside(first, last)
        self._next = (rng or Random()).randrange(len(self._ports))

    def free(self) -> int:
        """Raises OSError when all are taken."""
        for _ in self._ports:
            port = self._ports[self._next]
            self._next = (self._next + 1) % len(self._ports)
            if is_free("127.0.0.1", port):
                return port
        raise OSError(errno.EADDRINUSE, f"every port from {self._ports[0]} to {self._ports[-1]} is taken")


def ports_beside(first: int, last: int) -> range:
    """Those below or those above the kernel's own, whichever are more; any, where it has them all."""
    return max(range(LOWEST, first), range(last + 1, HIGHEST + 1), key=len) or range(LOWEST, HIGHEST + 1)


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises OSError when the host is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # as servers do: a port in TIME_WAIT is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def holder(port: int) -> str:
    """ "nginx (pid 812)", or "" when the machine does not tell."""
    try:
        listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port]
        for connection in listening:
            if connection.pid is not None:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
