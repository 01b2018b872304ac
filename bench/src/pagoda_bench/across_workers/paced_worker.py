"""`python -m pagoda_bench.across_workers.paced_worker`: the worker's own front with a paced engine behind it. Settings are a worker's."""

import asyncio
import os
import signal
import sys

from pagoda_worker.front.process import Front
from pagoda_worker.logs import log_to_stderr
from pagoda_worker.settings.worker import parse_settings

ENGINE = (sys.executable, "-m", "pagoda_bench.across_workers.paced_engine")


async def serve(front: Front) -> None:
    """Until a signal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, front.stop)
    await front.run()


if __name__ == "__main__":
    settings = parse_settings(os.environ)
    log_to_stderr(settings.log_level)
    asyncio.run(serve(Front(settings, engine_command=ENGINE)))
