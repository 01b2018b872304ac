"""
LocalError                what went wrong with the local supervisor, in one line for the user
├── NotRunning            no supervisor answers for this state folder
├── Refused               the supervisor understood and declined; its own sentence
├── PortTaken             the router's public port is held by somebody else
├── BadSettings           host, port, device or key that cannot work together
└── UnknownTemplate       a planned pod template has something that no local process can be made of
"""


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
