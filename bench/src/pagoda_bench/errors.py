"""
BenchError              whatever a user, a server or a file can cause; one line that names what to do
├── ResultFormatError   a file that is no result file
├── SettingsError       an option that cannot be meant
└── ServerUnusable      the server under test cannot be measured at all: not reached, no such model, every request refused
"""


class BenchError(Exception):
    """The message is one line for stderr."""


class ResultFormatError(BenchError):
    pass


class SettingsError(BenchError):
    pass


class ServerUnusable(BenchError):
    pass
