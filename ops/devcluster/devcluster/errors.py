"""What can go wrong, each with a message that says what to do; the command line prints it as one line."""

from pathlib import Path


class DevclusterError(Exception):
    """One clear line for the person at the terminal."""


class Missing(DevclusterError):
    """A program or a Debian package is not here; the message says how to get it."""


class NotStarted(DevclusterError):
    """A component ended or never answered; the message names its log file and the log's last words."""

    def __init__(self, what: str, log: Path) -> None:
        super().__init__(f"{what}; see {log}{_last_line(log)}")


def _last_line(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f" (last line: {lines[-1][:300]})" if lines else " (it is empty)"
