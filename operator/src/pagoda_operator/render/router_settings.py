"""What an installation may set of its routers beyond their own defaults: the chart's router.settings → the routers' environment. Pure.

The names are the chart's, a closed set with a range each, so that a wrong one stops the operator and not every router. Read by settings.py,
rendered by pods.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouterSetting:
    variable: str
    """Of the router's environment."""
    least: float
    most: float
    is_whole: bool = False
    is_switch: bool = False


DAY_S = 86_400
ROUTER_SETTINGS: Mapping[str, RouterSetting] = {
    "decisionRing": RouterSetting("PAGODA_DECISION_RING", 0, 1_000_000, is_whole=True),
    "firstTokenTimeoutSeconds": RouterSetting("PAGODA_FIRST_TOKEN_TIMEOUT_S", 0.1, DAY_S),
    "hedgeFactor": RouterSetting("PAGODA_HEDGE_FACTOR", 1, 1000),
    "maxBodyBytes": RouterSetting("PAGODA_MAX_BODY_BYTES", 1024, 2**40, is_whole=True),
    "maxQueueRequests": RouterSetting("PAGODA_MAX_QUEUE_REQUESTS", 1, 1_000_000, is_whole=True),
    "maxQueueTokens": RouterSetting("PAGODA_MAX_QUEUE_TOKENS", 0, 1_000_000_000, is_whole=True),
    "nextTokenTimeoutSeconds": RouterSetting("PAGODA_NEXT_TOKEN_TIMEOUT_S", 0.1, DAY_S),
    "promoteAfterSeconds": RouterSetting("PAGODA_PROMOTE_AFTER_S", 0, DAY_S),
    "queueTimeoutSeconds": RouterSetting("PAGODA_QUEUE_TIMEOUT_S", 0, DAY_S),
    "replayShare": RouterSetting("PAGODA_REPLAY_SHARE", 0, 1),
    "retryShare": RouterSetting("PAGODA_RETRY_SHARE", 0, 1),
    "throughputQueueTimeoutSeconds": RouterSetting("PAGODA_THROUGHPUT_QUEUE_TIMEOUT_S", 0, DAY_S),
    "traceRing": RouterSetting("PAGODA_TRACE_RING", 0, 1_000_000, is_whole=True),
    "waves": RouterSetting("PAGODA_WAVES", 0, 1, is_switch=True),
}


def parse_router_settings(text: str) -> tuple[tuple[str, str], ...]:
    """`name=value,name=value` → the routers' variables, by name. Raises ValueError with what is wrong."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        setting = ROUTER_SETTINGS.get(name)
        if setting is None or not equals:
            raise ValueError(f"{part[:60]!r} is not a setting of routers: write NAME=VALUE of {', '.join(ROUTER_SETTINGS)}")
        found[setting.variable] = _checked(name, setting, value)
    return tuple(sorted(found.items()))


def _checked(name: str, setting: RouterSetting, value: str) -> str:
    if setting.is_switch:
        if value not in ("true", "false"):
            raise ValueError(f"{name} is {value[:40]!r}: write true or false")
        return "on" if value == "true" else "off"
    try:
        number = int(value) if setting.is_whole else float(value)
    except ValueError:
        raise ValueError(f"{name} is {value[:40]!r}, which is not a {'whole ' if setting.is_whole else ''}number") from None
    if not setting.least <= number <= setting.most:
        raise ValueError(f"{name} is {value}: write {setting.least:g} to {setting.most:g}")
    return value
