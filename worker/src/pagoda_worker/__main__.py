"""`python -m pagoda_worker`: settings, then the front until a signal. Exit status 0 after a drain; 2 with one line on bad
configuration, 3 when the model or the memory it is given makes every start end the same way."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from pagoda_worker.errors import ConfigError, last_line
from pagoda_worker.front.process import Front
from pagoda_worker.front.residents import Residents
from pagoda_worker.logs import log_to_stderr
from pagoda_worker.settings.worker import WorkerSettings, parse_settings, parse_shared_device


async def serve(models: Sequence[WorkerSettings], residents: Residents | None = None) -> None:
    """SIGTERM and SIGINT drain; a second one ends at once. What ends one model's front ends all."""
    fronts = [Front(settings, residents=residents) for settings in models]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for front in fronts:
            front.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = {asyncio.create_task(front.run()) for front in fronts}
    turns = {asyncio.create_task(residents.run())} if residents else set()
    left = set(serving)
    try:
        while left:
            done, _ = await asyncio.wait(left | turns, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            left -= done
    finally:
        for task in serving | turns:
            task.cancel()
        await asyncio.gather(*serving, *turns, return_exceptions=True)


def main() -> int:
    try:
        shared = parse_shared_device(os.environ)
        models = shared.models if shared else [parse_settings(os.environ)]
        log_to_stderr(models[0].log_level)
        asyncio.run(serve(models, Residents(shared.awake_bytes) if shared else None))
    except ConfigError as error:
        print(last_line("pagoda-worker", error), file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
