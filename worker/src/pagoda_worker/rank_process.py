"""The process of one further rank of a tensor parallel engine, started by rank 0 as `python -m pagoda_worker.rank_process --fd N`.

It lives exactly as long as rank 0, which tells it everything over a socket pair; knows neither front nor requests. Exit status 0 when rank
0 has left, 2 when it cannot serve its part, which it has told, 1 when a step failed.
"""

import argparse
import contextlib
import gc
import logging
import os
import socket
import sys
import time

from pagoda_worker.errors import WorkerError
from pagoda_worker.execution.following import Connection, Follower, Rank0Left
from pagoda_worker.execution.rank_messages import Failed, Join, expect
from pagoda_worker.execution.ranks import EXIT_UNUSABLE
from pagoda_worker.lifeline import die_with_parent, leave_signals_to_parent
from pagoda_worker.logs import log_to_stderr

ECHO_S = 1.0
"""A failed meeting of ranks may only be the echo of another's end, which is to be told first: rank 0 then ends this process too."""

log = logging.getLogger("pagoda_worker.rank_process")  # __name__ is __main__ here


def serve(connection: Connection) -> int:
    try:
        follower = Follower(expect(connection.next(), Join), connection)
        gc.collect()
        gc.freeze()
        follower.run()
    except Rank0Left:
        return 0
    except WorkerError as error:
        with contextlib.suppress(Rank0Left):  # rank 0 may have met the same and be gone
            connection.send(Failed(str(error), error.reason))
        return EXIT_UNUSABLE
    return 1


def main() -> None:
    log_to_stderr(os.environ.get("PAGODA_LOG_LEVEL", "info"))
    parser = argparse.ArgumentParser(prog="pagoda_worker.rank_process")
    parser.add_argument("--fd", type=int, required=True, help="this process's end of rank 0's socket pair")
    die_with_parent()
    leave_signals_to_parent()
    status = 1
    try:
        status = serve(Connection(socket.socket(fileno=parser.parse_args().fd)))
    except Exception:  # the outermost line: one structured line instead of a bare traceback
        time.sleep(ECHO_S)
        log.exception("the rank's process ends")
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
