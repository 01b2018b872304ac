"""`python -m pagoda_worker.fetch`: makes the model's folder complete in PAGODA_MODEL_CACHE, then ends. The worker's init container.

Exit status 0: complete. 1: a later try may succeed. 2: bad configuration. 3: no later try of the same can succeed.
"""

import logging
import os
import signal
import sys
import time
from types import FrameType

from pagoda_worker.errors import ConfigError, FetchError, last_line
from pagoda_worker.fetch.probe_server import ProbeServer
from pagoda_worker.fetch.settings import parse_settings
from pagoda_worker.fetch.step import FetchState, Step, free_bytes, open_origin
from pagoda_worker.logs import log_to_stderr

log = logging.getLogger("pagoda_worker.fetch")  # __name__ is __main__ here


def main() -> int:
    signal.signal(signal.SIGTERM, _stop)  # as process 1 of a container it would be ignored otherwise
    began = time.monotonic()
    try:
        settings = parse_settings(os.environ)
        log_to_stderr(settings.log_level)
        for chatty in ("httpx2", "httpx", "httpcore"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        state = FetchState(settings.source)
        probes = ProbeServer(state, settings.bind_host, settings.http_port)
        try:
            for each in (settings, *settings.others):
                state.begin(each.source)
                Step(each, state, open_origin=open_origin, free_bytes=free_bytes).run()
        finally:
            probes.close()
    except (ConfigError, FetchError) as error:
        print(last_line("pagoda-fetch", error), file=sys.stderr)
        return error.exit_status
    log.info("done in %.2f s", time.monotonic() - began)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """At once, from whatever it waits in: parts on disk are always good to go on from."""
    os.write(2, b"pagoda-fetch: stopped; the next start goes on from what is there\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
