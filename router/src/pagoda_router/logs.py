"""One line of structured text for each log record, on stderr: time=… level=… logger=… msg="…". Tracebacks are folded into the line.

Called by __main__ only.
"""

import json
import logging
import sys
import time


class LineFormatter(logging.Formatter):
    """logfmt; values with spaces or quotes are JSON strings, so a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = (
            f"time={stamp} level={record.levelname.lower()} logger={record.name} msg={json.dumps(record.getMessage(), ensure_ascii=False)}"
        )
        if record.exc_info:
            line += f" trace={json.dumps(self.formatException(record.exc_info), ensure_ascii=False)}"
        return line


def log_to_stderr(level: str) -> None:
    """Once, at the start of a process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and stop lines say nothing that ours do not
    logging.getLogger("kubernetes").setLevel(logging.ERROR)  # what goes wrong there, discovery says in a sentence
