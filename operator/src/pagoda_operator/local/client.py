"""Talks to a running supervisor over its socket. Synchronous: the command line asks one thing at a time."""

import json
import socket
from typing import Any

from pagoda_operator.local.errors import NotRunning, Refused
from pagoda_operator.local.home import Home

TIMEOUT_S = 30.0


def call(home: Home, operation: str, **fields: Any) -> dict[str, Any]:
    """Raises NotRunning when nobody listens, Refused with the supervisor's own sentence."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(home.socket))
            connection.sendall(json.dumps({"op": operation, **fields}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
        except TimeoutError:
            raise Refused(f"the supervisor did not answer within {TIMEOUT_S:g} s: run `pagoda down`, then `pagoda up` again") from None
        except OSError:
            line = b""
    if not line:
        raise NotRunning("nothing runs here: start with `pagoda up FILE` or `pagoda up --model FOLDER`")
    answer: dict[str, Any] = json.loads(line)
    if not answer.pop("ok"):
        raise Refused(answer["error"])
    return answer
