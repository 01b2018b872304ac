"""
CommandError       one or more lines for stderr and an exit status; the only thing a command raises on purpose
"""


class CommandError(Exception):
    def __init__(self, *lines: str, status: int = 1) -> None:
        super().__init__("\n".join(lines))
        self.status = status
