"""
LocalError                what went wrong with the local supervisor, in one line for the user
├── NotRunning            no supervisor answers for this state folder
├── Refused               the supervisor understood and declined; its own sentence
├── PortTaken             the router's public port is held by somebody else
├── Unwritable            the state folder cannot be made, or takes nothing more
├── BadSettings           host, port, device or key that cannot work together
└── UnknownTemplate       a planned pod template has something that no local process can be made of
"""

from pathlib import Path


class LocalError(Exception):
    pass


class NotRunning(LocalError):
    pass


class Refused(LocalError):
    pass


class PortTaken(LocalError):
    pass


class BadSettings(LocalError):
    pass


class UnknownTemplate(LocalError):
    pass


class Unwritable(LocalError):
    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(f"the state folder {folder} cannot be written ({error.strerror}): make room there, or set PAGODA_HOME to another")
