"""Free ports for processes, and who holds a busy one. Called by executor.py, and by the command line before it starts anything."""

import errno
import socket
from collections import deque

import psutil

REMEMBERED = 256


class PortPool:
    """Hands out loopback ports that are free now and were not handed out lately: two processes starting together get different ones."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=REMEMBERED)

    def free(self) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self._recent:
                self._recent.append(port)
                return port


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
