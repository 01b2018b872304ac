"""`python -m pagoda_worker`: settings, then the front until a signal. Exit status 0 after a drain; 2 with one line on bad
configuration, 3 when the model or the memory it is given makes every start end the same way."""

import asyncio
import os
import signal
import sys

from pagoda_worker.errors import ConfigError, last_line
from pagoda_worker.front.process import Front
from pagoda_worker.logs import log_to_stderr
from pagoda_worker.settings import WorkerSettings, parse_settings


async def serve(settings: WorkerSettings) -> None:
    """SIGTERM and SIGINT drain; a second one ends at once."""
    front = Front(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, front.stop)
    await front.run()


def main() -> int:
    try:
        settings = parse_settings(os.environ)
        log_to_stderr(settings.log_level)
        asyncio.run(serve(settings))
    except ConfigError as error:
        print(last_line("pagoda-worker", error), file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
