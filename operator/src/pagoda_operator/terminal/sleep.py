"""`pagoda sleep` and `pagoda wake`: asks the router's internal port, whose address and token the supervisor tells.

Called by commands.py.
"""

from typing import Any

import httpx

from pagoda_operator.terminal.errors import CommandError

GRACE_S = 5.0
"""The router's own patience ends first, and says which worker it waited for."""


def ask(router: dict[str, Any], action: str, model: str, timeout_s: float, **fields: Any) -> list[str]:
    """A line for each worker. `action`: sleep or wake. Raises CommandError with the router's sentences."""
    query = {"model": model, "timeout": f"{timeout_s:g}", **fields}
    try:
        response = httpx.post(
            f"{router['url']}/admin/{action}",
            params=query,
            headers={"Authorization": f"Bearer {router['token']}"},
            timeout=timeout_s + GRACE_S,
            trust_env=False,
        )
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise CommandError(f"the router did not answer: {error}") from error
    workers = answer.get("workers", [])
    if response.status_code == 200:
        return [_line(worker) for worker in workers]
    if not workers:
        raise CommandError(answer["error"]["message"])
    raise CommandError(*(f"{worker['worker']}: {worker['error']}" for worker in workers if "error" in worker))


def _line(worker: dict[str, Any]) -> str:
    if "freedBytes" in worker:
        return f"{worker['worker']} sleeps, {worker['freedBytes'] / 1e6:.1f} MB are free; the next request wakes it"
    return f"{worker['worker']} is awake" + (f" after {worker['loadMs'] / 1e3:.2f} s" if worker["loadMs"] else " already")
